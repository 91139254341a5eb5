/**
 * The BPF objects: loaded, pinned under `<bpffs>/v1`, taken over by the next agent.
 *
 * A program's pin bears its tag (a hash of its instructions) and the mark it was built with: an agent that brings
 * the very same program keeps the one that is running and changes nothing; another one is pinned beside it, the
 * links are moved over one by one (each atomically), and the old pin goes.
 */

import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { BpfMap, BpfObject, BpfProgram, isBpffs, mountBpffs } from '../native/bpf.js';
import { isKernelError } from '../native/errors.js';
import { DatapathError } from './errors.js';
import { type Layouts, readLayouts } from './layouts.js';

export const LAYOUT = 'v1';
const KERNEL_BPFFS = '/sys/fs/bpf';

/** One object file each, and the program in it. */
const PROGRAMS = {
  pod_egress: 'intercept',
  bridge_steer: 'steer',
  reuse: 'reuse',
  canary: 'canary',
} as const;
export type ProgramName = keyof typeof PROGRAMS;

const MAPS = [
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

export interface ProgramsOptions {
  /** Folder below a bpffs, such as /sys/fs/bpf/nodesentry; mounted where it is not on one. */
  readonly bpffs: string;
  /** Folder with the compiled objects, `<name>.bpf.o`. */
  readonly objects: string;
  readonly mark: { readonly value: number; readonly mask: number };
}

export interface Programs {
  readonly layouts: Layouts;
  readonly maps: Readonly<Record<MapName, BpfMap>>;
  readonly programs: Readonly<Record<ProgramName, BpfProgram>>;
  readonly linksPath: string;
  /** True where every map was found pinned: flows, endpoints and listeners were taken over. */
  readonly takenOver: boolean;
  /**
   * Puts back what somebody took from under `bpffs`, or put in its place: maps and programs live on while the agent
   * holds them, but the next agent would find nothing. Returns what was wrong, in words.
   */
  ensurePins(): readonly string[];
  /** Drops the pins of programs that no link uses any more; call it after the links have been moved. */
  removeStalePrograms(): readonly string[];
  close(): void;
}

/** The folders under `bpffs`; mounts a bpffs there, or at /sys/fs/bpf, where none is. */
export function prepareBpffs(bpffs: string): void {
  const mountPoint = bpffs.startsWith(`${KERNEL_BPFFS}/`) ? KERNEL_BPFFS : bpffs;
  const existing = [bpffs, dirname(bpffs)].find((path) => existsSync(path));
  if (existing === undefined || !isBpffs(existing)) {
    mountBpffs(mountPoint);
  }
  for (const folder of ['maps', 'programs', 'links']) {
    mkdirSync(join(bpffs, LAYOUT, folder), { recursive: true, mode: 0o700 });
  }
}

/** Refuses to work beside a layout that a newer agent left behind. */
export function refuseNewerLayout(bpffs: string): void {
  const versions = existsSync(bpffs) ? readdirSync(bpffs) : [];
  const newer = versions.find(
    (name) => /^v\d+$/.test(name) && Number(name.slice(1)) > Number(LAYOUT.slice(1)),
  );
  if (newer !== undefined) {
    throw new DatapathError(
      'LAYOUT_NEWER',
      `${join(bpffs, newer)} belongs to a newer agent: run that one, or its "nodesentry cleanup" first`,
    );
  }
}

function u32Bytes(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
}

function reuse(object: BpfObject, name: MapName, map: BpfMap, bpffs: string): void {
  try {
    object.reuseMap(name, map);
  } catch (error) {
    if (isKernelError(error) && error.code === 'EINVAL') {
      throw new DatapathError(
        'LAYOUT_MISMATCH',
        `${join(bpffs, LAYOUT, 'maps', name)} is of another shape than in this agent's objects: run "nodesentry cleanup" first`,
        error,
      );
    }
    throw error;
  }
}

function openObject(options: ProgramsOptions, file: string, maps: ReadonlyMap<MapName, BpfMap>): BpfObject {
  const path = join(options.objects, `${file}.bpf.o`);
  if (!existsSync(path)) {
    throw new DatapathError('OBJECT_MISSING', `${path} does not exist: run "make build"`);
  }
  const object = BpfObject.open(path);
  try {
    object.setReadOnlyData('mark_value', u32Bytes(options.mark.value));
    object.setReadOnlyData('mark_mask', u32Bytes(options.mark.mask));
    for (const [name, map] of maps) {
      reuse(object, name, map, options.bpffs);
    }
    object.load();
    return object;
  } catch (error) {
    object.close();
    throw error;
  }
}

/** Whatever is opened is closed with the rest, in reverse order, also where a later step fails. */
type Own = <T extends { close(): void }>(handle: T) => T;

/** Pinned maps are reused as they are; libbpf refuses one whose key, value or size differs from the object's. */
function openPinnedMaps(folder: string, own: Own): Map<MapName, BpfMap> {
  const maps = new Map<MapName, BpfMap>();
  for (const name of MAPS) {
    const path = join(folder, name);
    if (existsSync(path)) {
      maps.set(name, own(BpfMap.openPinned(path)));
    }
  }
  return maps;
}

/** Undefined where nothing is pinned; 0 for what is not of this kind. */
function pinnedId(path: string, kind: typeof BpfMap | typeof BpfProgram): number | undefined {
  if (!existsSync(path)) {
    return undefined;
  }
  try {
    const handle = kind.openPinned(path);
    try {
      return handle.id;
    } finally {
      handle.close();
    }
  } catch (error) {
    if (isKernelError(error)) {
      return 0;
    }
    throw error;
  }
}

function pinName(program: BpfProgram, name: string, mark: ProgramsOptions['mark']): string {
  return `${name}-${program.tag}-${mark.value.toString(16)}-${mark.mask.toString(16)}`;
}

export function openPrograms(options: ProgramsOptions): Programs {
  refuseNewerLayout(options.bpffs);
  prepareBpffs(options.bpffs);
  const root = join(options.bpffs, LAYOUT);
  const mapsPath = join(root, 'maps');
  const programsPath = join(root, 'programs');
  const closers: (() => void)[] = [];
  const close = () => {
    for (const closer of closers.splice(0).reverse()) {
      closer();
    }
  };
  const own: Own = (handle) => {
    closers.push(() => handle.close());
    return handle;
  };
  try {
    const maps = openPinnedMaps(mapsPath, own);
    const takenOver = maps.size === MAPS.length;
    let layouts: Layouts | undefined;
    const programs = new Map<ProgramName, BpfProgram>();
    const current = new Set<string>();
    for (const name of Object.keys(PROGRAMS) as ProgramName[]) {
      const object = own(openObject(options, PROGRAMS[name], maps));
      layouts ??= readLayouts(object);
      for (const mapName of MAPS) {
        if (!maps.has(mapName)) {
          const map = own(object.map(mapName));
          map.pin(join(mapsPath, mapName));
          maps.set(mapName, map);
        }
      }
      const fresh = own(object.program(name));
      const pin = pinName(fresh, name, options.mark);
      current.add(pin);
      const path = join(programsPath, pin);
      if (existsSync(path) && takenOver) {
        programs.set(name, own(BpfProgram.openPinned(path)));
        fresh.close();
      } else {
        rmSync(path, { force: true });
        fresh.pin(path);
        programs.set(name, fresh);
      }
      object.close(); // it would keep the copies that nobody uses in the kernel
    }
    if (layouts === undefined) {
      throw new DatapathError('LAYOUT_MISMATCH', 'no BPF object was loaded');
    }
    const pinned = [
      ...[...maps].map(([name, map]) => ({ path: join(mapsPath, name), handle: map, kind: BpfMap })),
      ...[...programs].map(([name, program]) => ({
        path: join(programsPath, pinName(program, name, options.mark)),
        handle: program,
        kind: BpfProgram,
      })),
    ];
    return {
      layouts,
      ensurePins: () => {
        prepareBpffs(options.bpffs);
        return pinned.flatMap(({ path, handle, kind }) => {
          const before = pinnedId(path, kind);
          if (before === handle.id) {
            return [];
          }
          rmSync(path, { force: true });
          handle.pin(path);
          return [`the pin ${path} ${before === undefined ? 'was missing' : 'was of something else'}`];
        });
      },
      maps: Object.fromEntries(maps) as Record<MapName, BpfMap>,
      programs: Object.fromEntries(programs) as Record<ProgramName, BpfProgram>,
      linksPath: join(root, 'links'),
      takenOver,
      removeStalePrograms: () => {
        const stale = readdirSync(programsPath).filter((pin) => !current.has(pin));
        for (const pin of stale) {
          rmSync(join(programsPath, pin), { force: true });
        }
        return stale;
      },
      close,
    };
  } catch (error) {
    close();
    throw error;
  }
}
