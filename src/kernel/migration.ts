/**
 * Taking over from agents of older layouts, so that no packet finds a program without its state.
 *
 * A map of the same shape is pinned a second time and serves both layouts; the entries of another are copied by name.
 * Then each link is given its new program, which is atomic, and its pin is renamed. The older folder goes last. Every
 * step may be repeated: an agent that dies in between leaves what the next one goes on from.
 *
 * The order is in the types: found, then shared, then copied, then finished. Each phase gives the next one, and nothing
 * else does.
 */

import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { BpfMap, type BpfObject, type BpfProgram } from '../native/bpf.js';
import { copyByName, sameShape } from './map-copy.js';
import { moveFilters, moveLinks } from './migration-links.js';
import { type MapName, mapNames, type ObjectSet, type ProgramName } from './object-set.js';
import { pinFolders, pinnedVersions, versionFolder } from './pins.js';

export interface MigrationReport {
  readonly from: readonly string[];
  readonly to: string;
  /** Maps that serve on as they are. */
  readonly shared: readonly string[];
  /** Entries taken over, by map. */
  readonly copied: Readonly<Record<string, number>>;
  /** Entries left behind, since a value did not fit. */
  readonly unfit: number;
  readonly links: number;
  /** Links that keep their program until the reconciler has programmed their interface. */
  readonly kept: readonly string[];
}

type Maps<S extends ObjectSet> = Readonly<Record<MapName<S>, BpfMap>>;
type Programs<S extends ObjectSet> = Readonly<Record<ProgramName<S>, BpfProgram>>;

interface Phase {
  /** After a failure: as long as no link has been moved, the older agent must find things as they were. */
  abandon(): void;
}

/** Older agents have left something. */
export interface FoundMigration<S extends ObjectSet = ObjectSet> extends Phase {
  /** Pins the maps that can serve on in our folder too. `object` is opened, not loaded; nothing of ours is yet. */
  shareMaps(object: BpfObject): SharedMigration<S>;
}

/** Our objects can be loaded now. */
export interface SharedMigration<S extends ObjectSet = ObjectSet> extends Phase {
  /** Adds what the older maps hold and ours do not. */
  copy(maps: Maps<S>): CopiedMigration<S>;
}

/** Our maps hold what the older ones held. */
export interface CopiedMigration<S extends ObjectSet = ObjectSet> extends Phase {
  /**
   * Exchanges the programs of all links, then takes the older folders away. `filters`: interfaces to look at for filters
   * of ours, where the kernel has no tcx. Listeners have to be in place by now.
   */
  finish(programs: Programs<S>, filters: readonly number[] | undefined): MigrationReport;
}

/** Undefined where no older agent left anything. Call it before anything of `version` is pinned. */
export function findMigration<S extends ObjectSet>(
  set: S,
  bpffs: string,
  version: number,
): FoundMigration<S> | undefined {
  const older = pinnedVersions(bpffs).filter((candidate) => candidate < version);
  return older.length === 0 ? undefined : new Found(new Handover(set, bpffs, version, older));
}

/** The folders of the layouts, and what has been done between them so far. */
class Handover<S extends ObjectSet> {
  readonly isFresh: boolean;
  readonly shared: string[] = [];
  readonly copied = new Map<string, number>();
  readonly unfit = new Map<string, number>();
  linksMoved = false;

  constructor(
    readonly set: S,
    readonly bpffs: string,
    readonly version: number,
    /** The newest first: where two know a key, its entry is the one that counts. */
    readonly older: readonly number[],
  ) {
    this.isFresh = !existsSync(versionFolder(bpffs, version));
  }

  /** One after the other, closed when the next is asked for. */
  *olderMaps(name: string): Generator<BpfMap> {
    for (const version of this.older) {
      const path = join(pinFolders(this.bpffs, version).maps, name);
      if (existsSync(path)) {
        const map = BpfMap.openPinned(path);
        try {
          yield map;
        } finally {
          map.close();
        }
      }
    }
  }

  copy(maps: Maps<S>, names: readonly MapName<S>[]): void {
    for (const name of names) {
      this.unfit.delete(name);
      for (const map of this.olderMaps(name)) {
        if (map.id !== maps[name].id) {
          const { added, unfit } = copyByName(map, maps[name]);
          this.copied.set(name, (this.copied.get(name) ?? 0) + added);
          this.unfit.set(name, (this.unfit.get(name) ?? 0) + unfit);
        }
      }
    }
  }

  abandon(): void {
    if (this.isFresh && !this.linksMoved) {
      rmSync(versionFolder(this.bpffs, this.version), { recursive: true, force: true });
    }
  }
}

class Found<S extends ObjectSet> implements FoundMigration<S> {
  constructor(readonly handover: Handover<S>) {}

  shareMaps(object: BpfObject): SharedMigration<S> {
    const { handover } = this;
    const { set, bpffs, version } = handover;
    for (const name of mapNames(set)) {
      const path = join(pinFolders(bpffs, version).maps, name);
      if (existsSync(path) || set.maps[name]?.neverShared === true) {
        continue;
      }
      const shape = object.mapShape(name);
      for (const map of handover.olderMaps(name)) {
        if (!existsSync(path) && sameShape(map.shape(), shape)) {
          map.pin(path);
          handover.shared.push(name);
        }
      }
    }
    return new Shared(handover);
  }

  abandon(): void {
    this.handover.abandon();
  }
}

class Shared<S extends ObjectSet> implements SharedMigration<S> {
  constructor(readonly handover: Handover<S>) {}

  copy(maps: Maps<S>): CopiedMigration<S> {
    const { set } = this.handover;
    this.handover.copy(
      maps,
      mapNames(set).filter((name) => set.maps[name]?.onNewLayout === 'copied'),
    );
    return new Copied(this.handover, maps);
  }

  abandon(): void {
    this.handover.abandon();
  }
}

class Copied<S extends ObjectSet> implements CopiedMigration<S> {
  constructor(
    readonly handover: Handover<S>,
    readonly maps: Maps<S>,
  ) {}

  finish(programs: Programs<S>, filters: readonly number[] | undefined): MigrationReport {
    const { handover, maps } = this;
    const { set, bpffs, version, older } = handover;
    const busy = mapNames(set).filter((name) => set.maps[name]?.writtenByPrograms === true);
    handover.copy(maps, busy);
    handover.linksMoved = true;
    const { moved, kept } = moveLinks({ set, bpffs, version, older, maps, programs });
    const filtered = filters === undefined ? 0 : moveFilters({ set, maps, programs }, filters);
    // What the old programs recorded while they were being exchanged; a newer record of ours stays.
    handover.copy(maps, busy);
    for (const old of older) {
      rmSync(versionFolder(bpffs, old), { recursive: true, force: true });
    }
    return {
      from: older.map((old) => `v${old}`),
      to: `v${version}`,
      shared: handover.shared,
      copied: Object.fromEntries(handover.copied),
      unfit: [...handover.unfit.values()].reduce((sum, count) => sum + count, 0),
      links: moved + filtered,
      kept,
    };
  }

  abandon(): void {
    this.handover.abandon();
  }
}
