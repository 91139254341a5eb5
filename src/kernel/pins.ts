/** What is pinned, and where: under the bpffs a folder per layout version, in it maps, programs and links. */

import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { BpfLink, BpfObject, isBpffs, mountBpffs } from '../native/bpf.js';
import { unlessGone } from '../native/errors.js';
import { DatapathError } from './errors.js';

const KERNEL_BPFFS = '/sys/fs/bpf';

/**
 * Opened, not loaded. `objects`: the folder with the compiled objects, `<name>.bpf.o`. DatapathError OBJECT_MISSING.
 */
export function openObjectFile(objects: string, name: string): BpfObject {
  const path = join(objects, `${name}.bpf.o`);
  if (!existsSync(path)) {
    throw new DatapathError('OBJECT_MISSING', `${path} does not exist: run "make build"`);
  }
  return BpfObject.open(path);
}

/**
 * LAYOUT_VERSION of bpf/include/layout.h, as the object `main` among `objects` was compiled with it. DatapathError
 * OBJECT_MISSING, LAYOUT_MISMATCH.
 */
export function layoutVersion(objects: string, main: string): number {
  const object = openObjectFile(objects, main);
  try {
    const version = object.enumValues('layout').get('LAYOUT');
    if (version === undefined) {
      throw new DatapathError('LAYOUT_MISMATCH', `the objects in ${objects} name no layout: build again`);
    }
    return version;
  } finally {
    object.close();
  }
}

/** As in `<bpffs>/v1`. */
export function versionFolder(bpffs: string, version: number): string {
  return join(bpffs, `v${version}`);
}

export interface PinFolders {
  readonly maps: string;
  readonly programs: string;
  readonly links: string;
}

/** Paths only: `prepareBpffs` makes them. */
export function pinFolders(bpffs: string, version: number): PinFolders {
  const root = versionFolder(bpffs, version);
  return { maps: join(root, 'maps'), programs: join(root, 'programs'), links: join(root, 'links') };
}

/** The layouts that something is pinned of, or was: the newest first. */
export function pinnedVersions(bpffs: string): number[] {
  return (existsSync(bpffs) ? readdirSync(bpffs) : [])
    .filter((name) => /^v\d+$/.test(name))
    .map((name) => Number(name.slice(1)))
    .sort((a, b) => b - a);
}

/** Names of pins; none where the folder is missing. */
export function pinsIn(folder: string): string[] {
  return existsSync(folder) ? readdirSync(folder) : [];
}

/** Takes a pinned link off, with its pin, and waits for the kernel. False where nothing is pinned at `path`. */
export function detachPinned(path: string): boolean {
  if (!existsSync(path)) {
    return false;
  }
  const link = BpfLink.openPinned(path);
  try {
    unlessGone(() => link.detach());
  } finally {
    link.close();
  }
  rmSync(path, { force: true });
  return true;
}

/** DatapathError LAYOUT_NEWER beside a layout that a newer agent left behind. */
export function refuseNewerLayout(bpffs: string, version: number): void {
  const [newest = version] = pinnedVersions(bpffs);
  if (newest > version) {
    throw new DatapathError(
      'LAYOUT_NEWER',
      `${versionFolder(bpffs, newest)} belongs to a newer agent: run that one, or its "nodesentry cleanup" first`,
    );
  }
}

/**
 * The folders of a version; mounts a bpffs at `bpffs`, or at /sys/fs/bpf for what is below it, where none is. DatapathError
 * BPFFS_MISSING instead, where that is not to be (`mayMount`): in a container, whose mounts end with it.
 */
export function prepareBpffs(bpffs: string, version: number, mayMount = true): PinFolders {
  const mountPoint = bpffs.startsWith(`${KERNEL_BPFFS}/`) ? KERNEL_BPFFS : bpffs;
  const existing = [bpffs, dirname(bpffs)].find((path) => existsSync(path));
  if (existing === undefined || !isBpffs(existing)) {
    if (!mayMount) {
      throw new DatapathError(
        'BPFFS_MISSING',
        `${mountPoint} is not a bpffs any more: run "mount -t bpf bpf ${mountPoint}" on the node`,
      );
    }
    mountBpffs(mountPoint);
  }
  const folders = pinFolders(bpffs, version);
  for (const folder of Object.values(folders)) {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
  }
  return folders;
}
