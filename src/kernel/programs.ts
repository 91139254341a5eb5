/**
 * The BPF objects: loaded, pinned under `<bpffs>/v<layout version>`, taken over by the next agent.
 *
 * A program's pin bears its tag (a hash of its instructions) and the mark it was built with: an agent that brings
 * the very same program keeps the one that is running and changes nothing; another one is pinned beside it, the
 * links are moved over one by one (each atomically), and the old pin goes.
 */

import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { Opened } from '../base/opened.js';
import { BpfMap, type BpfObject, BpfProgram } from '../native/bpf.js';
import { isKernelError } from '../native/errors.js';
import type { Mark } from '../net/mark.js';
import { DatapathError } from './errors.js';
import { type CopiedMigration, findMigration, type MigrationReport } from './migration.js';
import {
  type MapName,
  type MapSpec,
  mapNames,
  type ObjectSet,
  type ProgramName,
  programNames,
} from './object-set.js';
import { layoutVersion, openObjectFile, type PinFolders, prepareBpffs, refuseNewerLayout } from './pins.js';

export interface ProgramsOptions<S extends ObjectSet = ObjectSet> {
  readonly set: S;
  /** Folder below a bpffs, such as /sys/fs/bpf/nodesentry; mounted where it is not on one. */
  readonly bpffs: string;
  /** Default true. */
  readonly mountBpffs?: boolean;
  /** Folder with the compiled objects, `<name>.bpf.o`. */
  readonly objects: string;
  readonly mark: Mark;
}

export interface Programs<S extends ObjectSet = ObjectSet> {
  readonly layouts: ReturnType<S['readLayouts']>;
  readonly maps: Readonly<Record<MapName<S>, BpfMap>>;
  readonly programs: Readonly<Record<ProgramName<S>, BpfProgram>>;
  readonly linksPath: string;
  /** True where every map whose contents count was found pinned: endpoints and flows go on as they were. */
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

/** A pinned handle, and where. */
interface Pinned {
  readonly path: string;
  readonly handle: BpfMap | BpfProgram;
  readonly kind: typeof BpfMap | typeof BpfProgram;
}

interface Loaded<S extends ObjectSet>
  extends Pick<Programs<S>, 'layouts' | 'maps' | 'programs' | 'takenOver'> {
  readonly pinned: readonly Pinned[];
}

/**
 * DatapathError with the code LAYOUT_NEWER, LAYOUT_MISMATCH or OBJECT_MISSING; KernelError where the kernel refuses.
 */
export function openPrograms<S extends ObjectSet>(options: ProgramsOptions<S>): Programs<S> {
  const { set, bpffs, objects, mountBpffs } = options;
  const version = layoutVersion(objects, set.main);
  refuseNewerLayout(bpffs, version);
  const found = findMigration(set, bpffs, version);
  const folders = prepareBpffs(bpffs, version, mountBpffs);
  const opened = new Opened();
  let migration: CopiedMigration | undefined;
  opened.add(found, () => (migration ?? found)?.abandon());
  try {
    const shared = found && withObject(objects, set.main, (object) => found.shareMaps(object));
    const loaded = load(options, folders, opened);
    // Before anybody reads the maps: the ids and generations in them must go on.
    migration = shared?.copy(loaded.maps);
    return {
      layouts: loaded.layouts,
      maps: loaded.maps,
      programs: loaded.programs,
      linksPath: folders.links,
      takenOver: loaded.takenOver,
      ensurePins: () => {
        prepareBpffs(bpffs, version, mountBpffs);
        return loaded.pinned.flatMap(ensurePin);
      },
      finishMigration: (filters) => {
        const report = migration?.finish(loaded.programs, filters);
        migration = undefined;
        return report;
      },
      removeStalePrograms: () => removeStale(folders.programs, loaded.pinned),
      close: () => opened.closeNow(),
    };
  } catch (error) {
    opened.closeNow();
    throw error;
  }
}

/** Every object, with the maps that are pinned already or that the first of them brings. */
function load<S extends ObjectSet>(
  options: ProgramsOptions<S>,
  folders: PinFolders,
  opened: Opened,
): Loaded<S> {
  const { set } = options;
  const maps = openPinnedMaps(set, folders.maps, opened);
  const takenOver = mapNames(set).every((name) => {
    const spec: MapSpec | undefined = set.maps[name];
    return spec?.onNewLayout !== 'copied' || spec.mayBeMissing === true || maps.has(name);
  });
  // A program refers to its maps: one of an agent that had fewer, or whose map has lost its pin, is of no use.
  const hasAllMaps = maps.size === mapNames(set).length;
  const programs = new Map<string, BpfProgram>();
  const pinned: Pinned[] = [];
  let layouts: unknown;
  for (const name of programNames(set)) {
    const object = opened.own(loadObject(options, name, folders.maps, maps));
    layouts ??= set.readLayouts(object);
    for (const mapName of mapNames(set).filter((candidate) => !maps.has(candidate))) {
      const map = opened.own(object.map(mapName));
      map.pin(join(folders.maps, mapName));
      maps.set(mapName, map);
    }
    const fresh = opened.own(object.program(name));
    const path = join(folders.programs, programPin(fresh, name, options.mark));
    const handle = hasAllMaps && existsSync(path) ? opened.own(BpfProgram.openPinned(path)) : fresh;
    if (handle === fresh) {
      rmSync(path, { force: true });
      fresh.pin(path);
    } else {
      fresh.close();
    }
    programs.set(name, handle);
    pinned.push({ path, handle, kind: BpfProgram });
    object.close(); // it would keep the copies that nobody uses in the kernel
  }
  pinned.push(
    ...[...maps].map(([name, handle]) => ({ path: join(folders.maps, name), handle, kind: BpfMap })),
  );
  return {
    layouts: layouts as Programs<S>['layouts'],
    maps: Object.fromEntries(maps) as Programs<S>['maps'],
    programs: Object.fromEntries(programs) as Programs<S>['programs'],
    takenOver,
    pinned,
  };
}

function loadObject<S extends ObjectSet>(
  options: ProgramsOptions<S>,
  name: ProgramName<S>,
  mapsPath: string,
  maps: ReadonlyMap<string, BpfMap>,
): BpfObject {
  const { set, objects, mark } = options;
  const object = openObjectFile(objects, set.programs[name]?.object ?? name);
  try {
    object.setReadOnlyData('mark_value', u32Bytes(mark.value));
    object.setReadOnlyData('mark_mask', u32Bytes(mark.mask));
    for (const [mapName, map] of maps) {
      shareMap(object, mapName, map, mapsPath);
    }
    object.load();
    return object;
  } catch (error) {
    object.close();
    throw error;
  }
}

/** Pinned maps serve on as they are; libbpf refuses one whose key, value or size differs from the object's. */
function shareMap(object: BpfObject, name: string, map: BpfMap, mapsPath: string): void {
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

function openPinnedMaps(set: ObjectSet, folder: string, opened: Opened): Map<string, BpfMap> {
  const maps = new Map<string, BpfMap>();
  for (const name of mapNames(set)) {
    const path = join(folder, name);
    if (existsSync(path)) {
      maps.set(name, opened.own(BpfMap.openPinned(path)));
    }
  }
  return maps;
}

/** Pins again what is not pinned at its path any more. Returns what was wrong, in words. */
function ensurePin({ path, handle, kind }: Pinned): string[] {
  const before = pinnedId(path, kind);
  if (before === handle.id) {
    return [];
  }
  rmSync(path, { force: true });
  handle.pin(path);
  return [`the pin ${path} ${before === undefined ? 'was missing' : 'was of something else'}`];
}

/** Undefined where nothing is pinned; 0 for what is not of this kind. */
function pinnedId(path: string, kind: Pinned['kind']): number | undefined {
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

function removeStale(programsPath: string, pinned: readonly Pinned[]): string[] {
  const current = new Set(pinned.map(({ path }) => path));
  const stale = readdirSync(programsPath).filter((pin) => !current.has(join(programsPath, pin)));
  for (const pin of stale) {
    rmSync(join(programsPath, pin), { force: true });
  }
  return stale;
}

function withObject<T>(objects: string, name: string, use: (object: BpfObject) => T): T {
  const object = openObjectFile(objects, name);
  try {
    return use(object);
  } finally {
    object.close();
  }
}

function programPin(program: BpfProgram, name: string, mark: Mark): string {
  return `${name}-${program.tag}-${mark.value.toString(16)}-${mark.mask.toString(16)}`;
}

function u32Bytes(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
}
