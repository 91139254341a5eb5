import { fileURLToPath } from 'node:url';

/** The plugin as it was built, in build/cni beside dist/ and src/. */
export function builtPlugin(): string {
  return fileURLToPath(new URL('../../build/cni/nodesentry-cni', import.meta.url));
}
