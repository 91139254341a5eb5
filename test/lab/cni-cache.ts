/** libcni's own folder, whatever a runtime is configured with: its results go with their pods, its folders stay. */

import { existsSync, readdirSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';

const CNI_CACHE = '/var/lib/cni';

/** To be called before the first runtime of a process tree; the function returned takes back what has come since, after the last. */
export function keepCniCache(): () => void {
  const hadCache = existsSync(CNI_CACHE);
  return () => {
    if (!hadCache) {
      removeEmptyFolders(CNI_CACHE);
    }
  };
}

function removeEmptyFolders(path: string): void {
  if (!existsSync(path)) {
    return;
  }
  for (const entry of readdirSync(path, { withFileTypes: true })) {
    if (entry.isDirectory()) {
      removeEmptyFolders(join(path, entry.name));
    }
  }
  if (readdirSync(path).length === 0) {
    rmdirSync(path);
  }
}
