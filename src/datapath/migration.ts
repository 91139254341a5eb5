/**
 * Taking over from agents of older layouts, so that no packet finds a program without its state.
 *
 * A map of the same shape is pinned a second time and serves both layouts; the entries of another are copied by name.
 * Then each link is given its new program, which is atomic, and its pin is renamed. The older folder goes last. Every
 * step may be repeated: an agent that dies in between leaves what the next one goes on from.
 */

import { existsSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { BpfLink, BpfMap, type BpfObject, type BpfProgram } from '../native/bpf.js';
import { isKernelError } from '../native/errors.js';
import { u32 } from './layouts.js';
import { copyByName, sameShape } from './map-copy.js';
import { MAPS, type MapName, pinnedVersions, pinsIn, versionFolder } from './pins.js';
import { pinnedLink, Redirect, unlessGone } from './redirect.js';

/** What a pod's interception and identity rest on. The other maps are shared where that is possible, else begin anew. */
const STATE = ['endpoints', 'sources', 'workloads', 'flows'] as const satisfies readonly MapName[];
/** Its records have no types that the kernel would keep. */
const NEVER_SHARED: ReadonlySet<MapName> = new Set(['events']);
/** What stands behind the entrance first: a marked packet must find a program that knows its flow. */
const ORDER: Readonly<Record<string, number>> = { bridge_steer: 0, reuse: 1, pod_egress: 2 };

type Maps = Readonly<Record<MapName, BpfMap>>;
type Programs = Readonly<Record<'pod_egress' | 'bridge_steer' | 'reuse', BpfProgram>>;

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

interface OpenLink {
  readonly from: string;
  readonly to: string;
  readonly name: string;
  readonly link: BpfLink;
  readonly program: keyof Programs;
  readonly ifindex: number | undefined;
}

export class Migration {
  readonly #bpffs: string;
  readonly #version: number;
  /** The newest first: where two know a key, its entry is the one that counts. */
  readonly #older: readonly number[];
  readonly #fresh: boolean;
  readonly #shared: string[] = [];
  readonly #copied = new Map<string, number>();
  readonly #unfit = new Map<string, number>();
  #linksMoved = false;

  private constructor(bpffs: string, version: number, older: readonly number[]) {
    this.#bpffs = bpffs;
    this.#version = version;
    this.#older = older;
    this.#fresh = !existsSync(versionFolder(bpffs, version));
  }

  /** Undefined where no older agent left anything. Call it before anything of `version` is pinned. */
  static find(bpffs: string, version: number): Migration | undefined {
    const older = pinnedVersions(bpffs).filter((candidate) => candidate < version);
    return older.length === 0 ? undefined : new Migration(bpffs, version, older);
  }

  /** Pins the maps that can serve on in our folder too. `object` is opened, not loaded; nothing of ours is yet. */
  shareMaps(object: BpfObject): void {
    for (const name of MAPS) {
      const path = this.#path(this.#version, 'maps', name);
      if (existsSync(path) || NEVER_SHARED.has(name)) {
        continue;
      }
      const shape = object.mapShape(name);
      for (const map of this.#olderMaps(name)) {
        if (!existsSync(path) && sameShape(map.shape(), shape)) {
          map.pin(path);
          this.#shared.push(name);
        }
      }
    }
  }

  /** Adds what the older maps hold and ours do not. */
  copy(maps: Maps, names: readonly (typeof STATE)[number][] = STATE): void {
    for (const name of names) {
      this.#unfit.delete(name);
      for (const map of this.#olderMaps(name)) {
        if (map.id !== maps[name].id) {
          const { added, unfit } = copyByName(map, maps[name]);
          this.#copied.set(name, (this.#copied.get(name) ?? 0) + added);
          this.#unfit.set(name, (this.#unfit.get(name) ?? 0) + unfit);
        }
      }
    }
  }

  /**
   * Exchanges the programs of all links one right after the other, then moves the pins. An interface without an endpoint
   * in our maps keeps its program, which holds the maps it needs: the reconciler exchanges it when it has written one.
   */
  moveLinks(maps: Maps, programs: Programs): { readonly links: number; readonly kept: readonly string[] } {
    this.#linksMoved = true;
    const opened = this.#openLinks();
    try {
      const kept = opened.filter(
        ({ program, ifindex }) =>
          program === 'pod_egress' && ifindex !== undefined && maps.endpoints.get(u32(ifindex)) === undefined,
      );
      // Nothing else in between: what the old entrance records now, the new steering behind it does not know.
      const gone = opened.filter(
        (entry) => !kept.includes(entry) && !stillThere(() => entry.link.update(programs[entry.program])),
      );
      for (const entry of opened) {
        if (gone.includes(entry) || existsSync(entry.to)) {
          rmSync(entry.from, { force: true });
        } else {
          renameSync(entry.from, entry.to);
        }
      }
      return {
        links: opened.length - gone.length - kept.length,
        kept: kept.map(({ name }) => name),
      };
    } finally {
      for (const { link } of opened) {
        link.close();
      }
    }
  }

  /** Takes the older folders away, with all that is left in them. */
  removeOlder(): void {
    for (const version of this.#older) {
      rmSync(versionFolder(this.#bpffs, version), { recursive: true, force: true });
    }
  }

  /**
   * All that follows once our programs are loaded and their maps filled, listeners included. `filters`: interfaces to
   * look at for filters of ours, where the kernel has no tcx.
   */
  finish(maps: Maps, programs: Programs, filters: readonly number[] | undefined): MigrationReport {
    this.copy(maps, ['flows']);
    const { links, kept } = this.moveLinks(maps, programs);
    const filtered = filters === undefined ? 0 : this.#moveFilters(maps, programs, filters);
    // What the old programs recorded while they were being exchanged; a newer record of ours stays.
    this.copy(maps, ['flows']);
    this.removeOlder();
    return {
      from: this.#older.map((version) => `v${version}`),
      to: `v${this.#version}`,
      shared: this.#shared,
      copied: Object.fromEntries(this.#copied),
      unfit: [...this.#unfit.values()].reduce((sum, count) => sum + count, 0),
      links: links + filtered,
      kept,
    };
  }

  /** After a failure: as long as no link has been moved, the older agent must find things as they were. */
  abandon(): void {
    if (this.#fresh && !this.#linksMoved) {
      rmSync(versionFolder(this.#bpffs, this.#version), { recursive: true, force: true });
    }
  }

  #moveFilters(maps: Maps, programs: Programs, interfaces: readonly number[]): number {
    const redirect = new Redirect({ linksPath: this.#path(this.#version, 'links', ''), tcx: false });
    redirect.adoptFilters(interfaces);
    const ours = redirect
      .list()
      .filter(({ role, ifindex }) => role === 'steer' || maps.endpoints.get(u32(ifindex)) !== undefined)
      .sort((a, b) => Number(a.role === 'egress') - Number(b.role === 'egress'));
    for (const attachment of ours) {
      const program = attachment.role === 'steer' ? programs.bridge_steer : programs.pod_egress;
      unlessGone(() => redirect.attach(attachment, program));
    }
    return ours.length;
  }

  #openLinks(): OpenLink[] {
    const found: OpenLink[] = [];
    for (const version of this.#older) {
      for (const name of pinsIn(this.#path(version, 'links', ''))) {
        const known = pinnedLink(name);
        if (known === undefined) {
          continue; // of a kind that we have no more: it goes with the folder
        }
        const from = this.#path(version, 'links', name);
        const { program, ifindex } = known;
        const link = openLink(from);
        if (link !== undefined) {
          found.push({ from, to: this.#path(this.#version, 'links', name), name, link, program, ifindex });
        }
      }
    }
    return found.sort((a, b) => (ORDER[a.program] ?? 0) - (ORDER[b.program] ?? 0));
  }

  /** One after the other, closed when the next is asked for. */
  *#olderMaps(name: MapName): Generator<BpfMap> {
    for (const version of this.#older) {
      const path = this.#path(version, 'maps', name);
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

  #path(version: number, folder: 'maps' | 'links', name: string): string {
    return join(versionFolder(this.#bpffs, version), folder, name);
  }
}

/** False where the interface has gone, and the link with it. */
function stillThere(step: () => void): boolean {
  return (
    unlessGone(() => {
      step();
      return true;
    }) === true
  );
}

/** Undefined for what somebody else has put there. */
function openLink(path: string): BpfLink | undefined {
  try {
    return BpfLink.openPinned(path);
  } catch (error) {
    if (isKernelError(error) && error.code === 'EINVAL') {
      return undefined;
    }
    throw error;
  }
}
