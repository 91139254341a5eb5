/** Before and after all files of a run: what they share, and no one of them may take away. */

import { existsSync, readdirSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';
import { buildApp } from './image.js';

/** libcni's own folder, whatever a runtime is configured with: its results go with their pods, its folders stay. */
const CNI_CACHE = '/var/lib/cni';

export async function setup(): Promise<() => void> {
  const hadCache = existsSync(CNI_CACHE);
  await buildApp();
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
