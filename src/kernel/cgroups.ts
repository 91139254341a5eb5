/** The tree of cgroups of version 2: a mount of its own, beside those of version 1, or below them. */

import { type Dirent, existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';

/** The host's comes first: a container may see a part of the tree only. */
const MOUNTS = [
  '/proc/1/root/sys/fs/cgroup',
  '/proc/1/root/sys/fs/cgroup/unified',
  '/sys/fs/cgroup',
  '/sys/fs/cgroup/unified',
];

const AWAY: ReadonlySet<string> = new Set(['ENOENT', 'ENODEV', 'ENOTDIR']);

export class CgroupTree {
  readonly #mounts: readonly string[];

  constructor(mounts: readonly string[] = MOUNTS) {
    this.#mounts = mounts;
  }

  /** The folder of the cgroup with this number, which is its inode; undefined where none is seen. */
  find(cgroup: number): string | undefined {
    for (const mount of this.#mounts.filter(isThere)) {
      const found = search(mount, cgroup);
      if (found !== undefined) {
        return found;
      }
    }
    return undefined;
  }
}

/** Every cgroup of version 2 has this file, and none of version 1. */
function isThere(mount: string): boolean {
  return existsSync(join(mount, 'cgroup.controllers'));
}

function search(folder: string, cgroup: number): string | undefined {
  const inode = unlessAway(() => statSync(folder).ino);
  if (inode === cgroup) {
    return folder;
  }
  const entries: Dirent[] = unlessAway(() => readdirSync(folder, { withFileTypes: true })) ?? [];
  for (const entry of entries) {
    const found = entry.isDirectory() ? search(join(folder, entry.name), cgroup) : undefined;
    if (found !== undefined) {
      return found;
    }
  }
  return undefined;
}

/** Cgroups come and go while they are looked through. */
function unlessAway<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch (error) {
    if (AWAY.has((error as NodeJS.ErrnoException).code ?? '')) {
      return undefined;
    }
    throw error;
  }
}
