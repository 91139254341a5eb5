/**
 * The BPF objects: loaded, pinned under `<bpffs>/v<layout version>`, taken over by the next agent.
 *
 * A program's pin bears its tag (a hash of its instructions) and the mark it was built with: an agent that brings
 * the very same program keeps the one that is running and changes nothing; another one is pinned beside it, the
 * links are moved over one by one (each atomically), and the old pin goes.
 */

import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { BpfMap, type BpfObject, BpfProgram } from '../native/bpf.js';
import { isKernelError } from '../native/errors.js';
import { DatapathError } from './errors.js';
import { type Layouts, readLayouts } from './layouts.js';
import { Migration, type MigrationReport } from './migration.js';
import {
  layoutVersion,
  MAPS,
  type MapName,
  openObjectFile,
  prepareBpffs,
  refuseNewerLayout,
  versionFolder,
} from './pins.js';

/** One object file each, and the program in it. */
const PROGRAMS = {
  pod_egress: 'intercept',
  bridge_steer: 'steer',
  reuse: 'reuse',
  canary: 'canary',
} as const;
export type ProgramName = keyof typeof PROGRAMS;

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
  /**
   * Exchanges the programs of an older agent for ours, where one left any; call it once every map is filled, listeners
   * included, and before anything is attached. `filters`: the interfaces of the host, where the kernel has no tcx.
   * Closed without it, an unfinished migration leaves the older agent's things as they were.
   */
  finishMigration(filters?: readonly number[]): MigrationReport | undefined;
  /** Drops the pins of programs that no link uses any more; call it after the links have been moved. */
  removeStalePrograms(): readonly string[];
  close(): void;
}

function u32Bytes(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
}

function reuse(object: BpfObject, name: MapName, map: BpfMap, mapsPath: string): void {
  try {
    object.reuseMap(name, map);
  } catch (error) {
    if (isKernelError(error) && error.code === 'EINVAL') {
      throw new DatapathError(
        'LAYOUT_MISMATCH',
        `${join(mapsPath, name)} is of another shape than in this agent's objects: run "nodesentry cleanup" first`,
        error,
      );
    }
    throw error;
  }
}

function openObject(
  options: ProgramsOptions,
  file: string,
  mapsPath: string,
  maps: ReadonlyMap<MapName, BpfMap>,
): BpfObject {
  const object = openObjectFile(options.objects, file);
  try {
    object.setReadOnlyData('mark_value', u32Bytes(options.mark.value));
    object.setReadOnlyData('mark_mask', u32Bytes(options.mark.mask));
    for (const [name, map] of maps) {
      reuse(object, name, map, mapsPath);
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

function shareMaps({ objects }: ProgramsOptions, migration: Migration): void {
  const object = openObjectFile(objects, PROGRAMS.pod_egress);
  try {
    migration.shareMaps(object);
  } finally {
    object.close();
  }
}

function pinName(program: BpfProgram, name: string, mark: ProgramsOptions['mark']): string {
  return `${name}-${program.tag}-${mark.value.toString(16)}-${mark.mask.toString(16)}`;
}

export function openPrograms(options: ProgramsOptions): Programs {
  const version = layoutVersion(options.objects);
  refuseNewerLayout(options.bpffs, version);
  let migration = Migration.find(options.bpffs, version);
  prepareBpffs(options.bpffs, version);
  const root = versionFolder(options.bpffs, version);
  const mapsPath = join(root, 'maps');
  const programsPath = join(root, 'programs');
  const closers: (() => void)[] = [];
  const close = () => {
    for (const closer of closers.splice(0).reverse()) {
      closer();
    }
    migration?.abandon();
  };
  const own: Own = (handle) => {
    closers.push(() => handle.close());
    return handle;
  };
  try {
    if (migration !== undefined) {
      shareMaps(options, migration);
    }
    const maps = openPinnedMaps(mapsPath, own);
    const takenOver = maps.size === MAPS.length;
    let layouts: Layouts | undefined;
    const programs = new Map<ProgramName, BpfProgram>();
    const current = new Set<string>();
    for (const name of Object.keys(PROGRAMS) as ProgramName[]) {
      const object = own(openObject(options, PROGRAMS[name], mapsPath, maps));
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
    const byName = Object.fromEntries(maps) as Record<MapName, BpfMap>;
    const programByName = Object.fromEntries(programs) as Record<ProgramName, BpfProgram>;
    // Before anybody reads them: the ids and generations in them must go on.
    migration?.copy(byName);
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
        prepareBpffs(options.bpffs, version);
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
      maps: byName,
      programs: programByName,
      linksPath: join(root, 'links'),
      takenOver,
      finishMigration: (filters) => {
        const report = migration?.finish(byName, programByName, filters);
        migration = undefined;
        return report;
      },
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
