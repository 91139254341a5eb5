/** What is pinned, and where: under the bpffs a folder per layout version, in it maps, programs and links. */

import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { BpfObject, isBpffs, mountBpffs } from '../native/bpf.js';
import { DatapathError } from './errors.js';

const KERNEL_BPFFS = '/sys/fs/bpf';

/** build/bpf beside dist/ or src/. */
export const DEFAULT_OBJECTS = fileURLToPath(new URL('../../build/bpf', import.meta.url));

export const MAPS = [
  'endpoints',
  'sources',
  'workloads',
  'listeners',
  'flows',
  'counters',
  'canaries',
  'events',
] as const;
export type MapName = (typeof MAPS)[number];

/** Opened, not loaded. `objects`: the folder with the compiled objects, `<name>.bpf.o`. */
export function openObjectFile(objects: string, name: string): BpfObject {
  const path = join(objects, `${name}.bpf.o`);
  if (!existsSync(path)) {
    throw new DatapathError('OBJECT_MISSING', `${path} does not exist: run "make build"`);
  }
  return BpfObject.open(path);
}

/** LAYOUT_VERSION of bpf/include/layout.h, as these objects were compiled with it. */
export function layoutVersion(objects: string): number {
  const object = openObjectFile(objects, 'intercept');
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

export function versionFolder(bpffs: string, version: number): string {
  return join(bpffs, `v${version}`);
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

/** Refuses to work beside a layout that a newer agent left behind. */
export function refuseNewerLayout(bpffs: string, version: number): void {
  const [newest = version] = pinnedVersions(bpffs);
  if (newest > version) {
    throw new DatapathError(
      'LAYOUT_NEWER',
      `${versionFolder(bpffs, newest)} belongs to a newer agent: run that one, or its "nodesentry cleanup" first`,
    );
  }
}

/** The folders of a version; mounts a bpffs at `bpffs`, or at /sys/fs/bpf for what is below it, where none is. */
export function prepareBpffs(bpffs: string, version: number): void {
  const mountPoint = bpffs.startsWith(`${KERNEL_BPFFS}/`) ? KERNEL_BPFFS : bpffs;
  const existing = [bpffs, dirname(bpffs)].find((path) => existsSync(path));
  if (existing === undefined || !isBpffs(existing)) {
    mountBpffs(mountPoint);
  }
  for (const folder of ['maps', 'programs', 'links']) {
    mkdirSync(join(versionFolder(bpffs, version), folder), { recursive: true, mode: 0o700 });
  }
}
