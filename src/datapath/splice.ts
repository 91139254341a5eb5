/**
 * The splice in the kernel (bpf/splice.bpf.c): loaded for the first pod that has it, pinned in a folder of its own, so that
 * connections go on past the agent's end. What is in a socket's queue lasts as long as the map that the socket is in: the
 * map goes only when no socket is in it any more.
 */

import { existsSync, mkdirSync, rmdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { Opened } from '../base/opened.js';
import { attachAt } from '../kernel/cgroup-links.js';
import type { CgroupTree } from '../kernel/cgroups.js';
import { PinnedLink } from '../kernel/pinned-link.js';
import { detachPinned, openObjectFile, pinsIn } from '../kernel/pins.js';
import { Struct, u32, u64 } from '../kernel/struct.js';
import { attachSkMsg, BpfMap, type BpfProgram, type CgroupHook } from '../native/bpf.js';
import { isKernelError } from '../native/errors.js';

/** Of what is pinned here: a new one for every change of a map or a key in bpf/include/splice.h. */
const VERSION = 1;
const ROOT_CGROUP = 1;
const LINKS = {
  'link-pair': 'sockOps',
  'link-hold': 'skbIngress',
  'link-ulp': 'setsockopt',
} as const satisfies Record<string, CgroupHook>;
/** Those of the splice alone; the others are the datapath's. */
const MAPS = [
  'splice_sockets',
  'splice_socks',
  'splice_ends',
  'splice_pods',
  'splice_interfaces',
  'splice_settings',
  'splice_counts',
] as const;
type SpliceMap = (typeof MAPS)[number];
/** The pin of the program that looks for bytes that wait. */
export const LOOK = 'program-look';

export interface SpliceOptions {
  readonly bpffs: string;
  /** Folder with the compiled objects. */
  readonly objects: string;
  /** All that the programs share. */
  readonly maps: Readonly<Record<string, BpfMap>>;
  readonly tree: Pick<CgroupTree, 'find'>;
}

/** A pod whose connections are to be spliced. */
export interface SplicedPod {
  /** Of its network namespace. */
  readonly netnsCookie: bigint;
  /** Of its first interface at the host. */
  readonly ifindex: number;
}

/** Since the splice was loaded; all 0 where it is not. */
export interface SpliceCounts {
  /** Sockets that were taken in. */
  readonly ends: number;
  readonly messages: number;
  readonly bytes: number;
  /** Messages of such sockets that went by TCP. */
  readonly leftToTcp: number;
  /** Packets that had to be sent again, for spliced bytes were still to be read. */
  readonly heldBack: number;
}

const COUNTS = ['ends', 'messages', 'bytes', 'left_to_tcp', 'held_back'];

interface Held {
  readonly maps: Readonly<Record<SpliceMap, BpfMap>>;
  readonly count: Struct;
  readonly opened: Opened;
}

export class Splice {
  readonly #options: SpliceOptions;
  readonly #folder: string;
  /** Something may be pinned that is not wanted. */
  #isRetired = false;
  #held: Held | undefined;
  #problem: string | undefined;

  constructor(options: SpliceOptions) {
    this.#options = options;
    this.#folder = join(options.bpffs, `splice-v${VERSION}`);
  }

  /** Why nothing can be spliced here; undefined as long as nothing was found. */
  get problem(): string | undefined {
    return this.#problem;
  }

  /**
   * Exactly the connections of these pods are spliced from now on, as they are opened; those of others go on by TCP.
   * True where it was loaded for that. KernelError only where a table refuses.
   */
  ensure(pods: readonly SplicedPod[]): boolean {
    if (pods.length === 0) {
      this.#retire();
      return false;
    }
    this.#retireOthers();
    const before = this.#held;
    const held = this.#hold();
    if (held === undefined) {
      return false;
    }
    this.#isRetired = false;
    const { maps } = held;
    write(maps.splice_interfaces, new Map(pods.map(({ ifindex }) => [hex(u32(ifindex)), Buffer.from([1])])));
    write(
      maps.splice_pods,
      new Map(pods.map(({ netnsCookie, ifindex }) => [hex(u64(netnsCookie)), u32(ifindex)])),
    );
    enable(maps.splice_settings, true);
    return before === undefined;
  }

  counts(): SpliceCounts {
    const none = { ends: 0, messages: 0, bytes: 0, leftToTcp: 0, heldBack: 0 };
    if (this.#held === undefined) {
      return none;
    }
    const { maps, count } = this.#held;
    const perCpu = maps.splice_counts.get(u32(0)) ?? Buffer.alloc(0);
    const sum = (field: string) => {
      let total = 0;
      for (let base = 0; base + count.size <= perCpu.length; base += count.size) {
        total += count.number(perCpu, field, base);
      }
      return total;
    };
    return {
      ends: sum('ends'),
      messages: sum('messages'),
      bytes: sum('bytes'),
      leftToTcp: sum('left_to_tcp'),
      heldBack: sum('held_back'),
    };
  }

  /** What is pinned stays. */
  close(): void {
    this.#held?.opened.closeNow();
    this.#held = undefined;
  }

  #hold(): Held | undefined {
    if (this.#held !== undefined || this.#problem !== undefined) {
      return this.#held;
    }
    const opened = new Opened();
    try {
      this.#held = this.#load(opened);
    } catch (error) {
      opened.closeNow();
      if (!isKernelError(error) && !(error instanceof SpliceError)) {
        throw error;
      }
      this.#problem = `this kernel does not do it (${error.message.split('\n', 1)[0]})`;
    }
    return this.#held;
  }

  #load(opened: Opened): Held {
    const { objects, maps: shared, tree } = this.#options;
    const root = tree.find(ROOT_CGROUP);
    if (root === undefined) {
      throw new SpliceError('no root of cgroups of version 2 is seen here');
    }
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    const object = opened.own(openObjectFile(objects, 'splice'));
    for (const [name, map] of Object.entries(shared)) {
      object.reuseMap(name, map);
    }
    const before = new Map<SpliceMap, BpfMap>();
    for (const name of MAPS.filter((candidate) => existsSync(join(this.#folder, candidate)))) {
      const map = opened.own(BpfMap.openPinned(join(this.#folder, name)));
      object.reuseMap(name, map);
      before.set(name, map);
    }
    object.load();
    const maps = Object.fromEntries(
      MAPS.map((name) => [name, before.get(name) ?? this.#pinned(opened.own(object.map(name)), name)]),
    ) as Record<SpliceMap, BpfMap>;
    const program = (name: string): BpfProgram => opened.own(object.program(name));
    attachSkMsg(program('splice_send'), maps.splice_sockets);
    pinAgain(program('splice_look'), join(this.#folder, LOOK));
    this.#attach(opened, 'link-ulp', program('splice_ulp'), root);
    this.#attach(opened, 'link-hold', program('splice_hold'), root);
    this.#attach(opened, 'link-pair', program('splice_pair'), root);
    const count = new Struct(object.layout('splice_count'), COUNTS);
    return { maps, count, opened };
  }

  #pinned(map: BpfMap, name: string): BpfMap {
    map.pin(join(this.#folder, name));
    return map;
  }

  #attach(opened: Opened, name: keyof typeof LINKS, program: BpfProgram, cgroup: string): void {
    const link = opened.own(
      new PinnedLink(join(this.#folder, name), (attached) => attachAt(cgroup, attached, LINKS[name])),
    );
    link.attach(program);
  }

  /** Nothing is spliced any more. All of it goes as soon as no socket is in it: until then it is asked each time. */
  #retire(): void {
    this.#held?.opened.closeNow();
    this.#held = undefined;
    this.#isRetired ||= spliceFolders(this.#options.bpffs).every(retireSplice);
  }

  /** What an agent of another version has pinned. */
  #retireOthers(): void {
    for (const folder of spliceFolders(this.#options.bpffs).filter((path) => path !== this.#folder)) {
      retireSplice(folder);
    }
  }
}

/** `error.message` says what is missing. */
class SpliceError extends Error {
  override readonly name = 'SpliceError';
}

/** Where it is pinned: a folder for each version that is. */
export function spliceFolders(bpffs: string): string[] {
  return pinsIn(bpffs)
    .filter((name) => /^splice-v\d+$/.test(name))
    .map((name) => join(bpffs, name));
}

/**
 * Nothing is spliced from now on; what has been can still be read. False while sockets are in the map, which stays for
 * them. `folder`: one of `spliceFolders`.
 */
export function retireSplice(folder: string): boolean {
  disable(folder);
  if (socketsIn(folder) > 0) {
    return false;
  }
  unpin(folder);
  return true;
}

/** Nothing is spliced from now on. */
export function disable(folder: string): void {
  withPinned(folder, 'splice_settings', (map) => enable(map, false));
}

/** How many are in the map. */
export function socketsIn(folder: string): number {
  return withPinned(folder, 'splice_sockets', (map) => map.entries().length) ?? 0;
}

/** Whatever is in it: a connection that has bytes waiting loses them. Returns the names of the pins. */
export function unpin(folder: string): string[] {
  for (const link of Object.keys(LINKS)) {
    detachPinned(join(folder, link));
  }
  const pins = pinsIn(folder);
  for (const pin of pins) {
    rmSync(join(folder, pin), { force: true });
  }
  if (existsSync(folder)) {
    rmdirSync(folder);
  }
  return pins;
}

/** Exactly these rows, keys in hexadecimal. */
function write(map: BpfMap, wanted: ReadonlyMap<string, Buffer>): void {
  const present = new Map(map.entries().map(([key, value]) => [hex(key), value]));
  for (const [key, value] of wanted) {
    if (present.get(key)?.equals(value) !== true) {
      map.set(Buffer.from(key, 'hex'), value);
    }
  }
  for (const key of present.keys()) {
    if (!wanted.has(key)) {
      map.delete(Buffer.from(key, 'hex'));
    }
  }
}

function enable(settings: BpfMap, isEnabled: boolean): void {
  settings.set(u32(0), u32(isEnabled ? 1 : 0));
}

function withPinned<T>(folder: string, name: SpliceMap, use: (map: BpfMap) => T): T | undefined {
  const path = join(folder, name);
  if (!existsSync(path)) {
    return undefined;
  }
  const map = BpfMap.openPinned(path);
  try {
    return use(map);
  } finally {
    map.close();
  }
}

function pinAgain(program: BpfProgram, path: string): void {
  rmSync(path, { force: true });
  program.pin(path);
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}
