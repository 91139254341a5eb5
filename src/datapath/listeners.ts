/**
 * The proxies' listening sockets: found by address, adopted from whichever process owns them, put where the
 * datapath looks. The proxy need not know. When it closes a socket the kernel takes it out of the map by itself;
 * the next look adopts its successor.
 */

import type { Log } from '../base/log.js';
import { u32 } from '../kernel/struct.js';
import type { BpfMap } from '../native/bpf.js';
import { type ListeningSocket, socketOwners, tcpListeners } from '../native/sockets.js';
import type { Family } from '../net/family.js';
import type { Announced } from './announced.js';
import type { SlotLayout } from './layouts.js';
import { opensAs, refusalOfGroup, UNKNOWN_HOLDER } from './listener-owner.js';
import {
  type Slot,
  serves,
  slotsOf,
  textOf,
  type WantedInstance,
  type WantedListener,
} from './listener-slots.js';
import { isHeld, makeTransparent, processName, putInto, type SocketOwner } from './proxy-sockets.js';

export interface ListenerStatus {
  readonly instance: string;
  /** Of the instance's two sets of listeners, which take turns when its proxy is upgraded. Left out: the first. */
  readonly generation?: 2;
  /** Left out: TCP. */
  readonly protocol?: 'udp';
  readonly direction: 'outbound' | 'inbound';
  readonly family: Family;
  readonly address: string;
  readonly adopted: boolean;
  /** Its proxy announced it; left out: the configuration names its address. */
  readonly announced?: true;
  readonly pid?: number;
  readonly process?: string;
  /** Sockets at the address, one per worker of a proxy with SO_REUSEPORT: all, and those that can take connections. */
  readonly sockets: { readonly all: number; readonly transparent: number };
  /** Why the listener that is there is not the instance's; absent where none is, or it is. */
  readonly refused?: string;
}

interface Adopted extends SocketOwner {
  readonly inode: number;
  readonly process: string;
  /** When that was found; of the clock of `performance`. */
  readonly atMs: number;
}

/** At most, between two tries to adopt the same sockets. */
const RETRY_MS = 1_000;

/** Held by the agent itself alone, for a process that it has yet to start or start again: looked at anew now and then. */
function isOurOwn({ pid, atMs }: Adopted): boolean {
  return pid === process.pid && performance.now() - atMs >= RETRY_MS;
}

/** Of each that is found, by inode. */
export type Owners = ReadonlyMap<number, SocketOwner>;

export interface ListenersOptions {
  /** The SOCKMAP. */
  readonly map: BpfMap;
  readonly slots: SlotLayout;
  readonly instances: readonly WantedInstance[];
  /** Which sockets there are. Default: those that listen by TCP. */
  readonly sockets?: () => ListeningSocket[];
  /** Told in `status`. Default: TCP, of which nothing is told. */
  readonly protocol?: 'udp';
  /** What comes in the place of configured addresses. */
  readonly announced?: Announced;
  /** Numbers of the instances that endpoints refer to. */
  readonly referred: () => ReadonlySet<number>;
  readonly log: Pick<Log, 'info' | 'warn'>;
  /** The system calls on other processes' sockets, so that their failures can be tried. */
  readonly makeTransparent?: typeof makeTransparent;
}

/** Keeps the SOCKMAP in step with the sockets that listen in the current network namespace. */
export class Listeners {
  readonly #map: BpfMap;
  readonly #log: Pick<Log, 'info' | 'warn'>;
  readonly #layout: SlotLayout;
  readonly #announced: Announced | undefined;
  #slots: readonly Slot[];
  readonly #makeTransparent: typeof makeTransparent;
  readonly #adopted = new Map<number, Adopted>();
  /** As `#adopted`, and also after it has gone. */
  readonly #last = new Map<number, Adopted>();
  readonly #complaints = new Map<number, string>();
  /**
   * Sockets that could not be adopted: finding an owner walks /proc, so the same ones are tried more and more seldom. At
   * first often: a socket that is being handed from a master to its worker has a holder a moment later.
   */
  readonly #vain = new Map<number, { signature: string; sinceMs: number; untilMs: number }>();
  readonly #groups = new Map<number, ListenerStatus['sockets']>();
  /** The group that was last found to be its owner's, by cookies. */
  readonly #vetted = new Map<number, string>();
  readonly #refused = new Map<number, string>();
  /** By slot, as of the last look. */
  #announcedAt: ReadonlyMap<number, WantedListener> = new Map();
  /** Where the sockets of a slot were opened, also after they have gone: their proxy comes back most likely. */
  readonly #cgroups = new Map<number, readonly number[]>();
  #looking: Promise<boolean> | undefined;
  /** Cookies of sockets that we made transparent, for kernels that do not tell. */
  #made: ReadonlySet<bigint> = new Set();
  /** Slots of instances that an agent before us had, and we have not. */
  #foreign: Set<number>;
  readonly #referred: ListenersOptions['referred'];
  readonly #sockets: () => ListeningSocket[];
  readonly #protocol: 'udp' | undefined;
  readonly #perInstance: number;

  constructor(options: ListenersOptions) {
    const { map, slots, instances, log } = options;
    this.#map = map;
    this.#log = log;
    this.#makeTransparent = options.makeTransparent ?? makeTransparent;
    this.#referred = options.referred;
    this.#sockets = options.sockets ?? tcpListeners;
    this.#protocol = options.protocol;
    this.#perInstance = slots.perInstance;
    this.#layout = slots;
    this.#announced = options.announced;
    this.#slots = instances.flatMap((instance) => slotsOf(slots, instance));
    this.#foreign = this.#heldByOthers();
  }

  /**
   * Another list from now on; resolves when its listeners have been looked for. The listener of one that is not in it any more
   * stays where it is while a pod refers to it.
   */
  async want(instances: readonly WantedInstance[]): Promise<void> {
    while (this.#looking !== undefined) {
      await this.#looking.catch(() => undefined);
    }
    const before = new Set(this.#slots.map(({ index }) => index));
    this.#slots = instances.flatMap((instance) => slotsOf(this.#layout, instance));
    this.#foreign = this.#heldByOthers();
    const wanted = new Set(this.#slots.map(({ index }) => index));
    for (const index of before) {
      if (!wanted.has(index)) {
        this.#forget(index);
      }
    }
    await this.refresh();
  }

  #heldByOthers(): Set<number> {
    const known = new Set(this.#slots.map(({ index }) => index));
    const held = this.#map.entries().map(([key]) => key.readUInt32LE(0));
    return new Set(held.filter((index) => !known.has(index)));
  }

  #forget(index: number): void {
    for (const kept of [
      this.#adopted,
      this.#last,
      this.#complaints,
      this.#vain,
      this.#groups,
      this.#vetted,
    ]) {
      kept.delete(index);
    }
    this.#refused.delete(index);
    this.#cgroups.delete(index);
  }

  /**
   * One look: drops what is not wanted, adopts what is there and not adopted, and sees that every socket of its group is
   * transparent and its owner's. Resolves to true if anything changed. A call during a look waits for that one.
   */
  refresh(): Promise<boolean> {
    this.#looking ??= this.#refresh().finally(() => {
      this.#looking = undefined;
    });
    return this.#looking;
  }

  async #refresh(): Promise<boolean> {
    const sockets = this.#slots.length === 0 ? [] : this.#sockets();
    let changed = this.#dropForeignSlots();
    const present = new Set(sockets.map(({ cookie }) => cookie));
    this.#made = new Set([...this.#made].filter((cookie) => present.has(cookie)));
    let found: Promise<Owners> | undefined;
    const owners = () => {
      found ??= ownersOf(sockets);
      return found;
    };
    this.#announced?.keep(sockets, new Set(this.#slots.map(({ instance }) => instance)));
    this.#announcedAt = new Map(
      this.#slots.flatMap((slot) => {
        const at = this.#announced?.of(slot, sockets);
        return at === undefined ? [] : [[slot.index, at] as const];
      }),
    );
    for (const slot of this.#slots) {
      const { family } = slot;
      const wanted = this.#wantedFor(slot);
      const group = wanted === undefined ? [] : sockets.filter((socket) => serves(socket, wanted, family));
      changed = (await this.#look(slot, group, owners)) || changed;
    }
    return changed;
  }

  #wantedFor({ index, wanted }: Slot): WantedListener | undefined {
    return this.#announcedAt.get(index) ?? wanted;
  }

  /** Whose listener a socket is, or would be: by what is configured, and by what was announced. */
  takersOf(socket: ListeningSocket): Slot[] {
    return this.#slots.filter((slot) =>
      [slot.wanted, this.#announcedAt.get(slot.index)].some(
        (wanted) => wanted !== undefined && serves(socket, wanted, slot.family),
      ),
    );
  }

  /** `group`: the sockets at the slot's address. */
  async #look(
    slot: Slot,
    group: readonly ListeningSocket[],
    findOwners: () => Promise<Owners>,
  ): Promise<boolean> {
    const opaque = group.filter((socket) => !this.#isTransparent(socket));
    this.#groups.set(slot.index, { all: group.length, transparent: group.length - opaque.length });
    const inMap = this.#cookieIn(slot.index);
    const cgroups = slot.ours ? [] : group.flatMap(({ cgroup }) => cgroup ?? []);
    if (cgroups.length > 0) {
      this.#cgroups.set(slot.index, cgroups);
    }
    const isInPlace = inMap !== undefined && group.some((socket) => socket.cookie === inMap);
    const isForeign = group.some((socket) => !opensAs(slot.owner, socket));
    let changed = false;
    if (inMap !== undefined && (!isInPlace || isForeign)) {
      changed = this.#map.delete(u32(slot.index)); // alive, but no longer at the configured address, or not alone there
    }
    const signature = group.map(({ cookie }) => cookie).join(' ');
    const adopted = this.#adopted.get(slot.index);
    const isKnown =
      isInPlace && adopted !== undefined && isHeld(adopted) && (slot.ours || !isOurOwn(adopted));
    // Handed on to another process, the same socket is looked at again.
    const isVetted = isKnown && this.#vetted.get(slot.index) === signature && !isForeign;
    if (isVetted && opaque.length === 0) {
      return changed;
    }
    if (group.length === 0) {
      this.#refused.delete(slot.index);
      this.#lost(slot);
      return changed;
    }
    const nowMs = performance.now();
    const last = this.#vain.get(slot.index);
    const vain = last?.signature === signature ? last : { signature, sinceMs: nowMs, untilMs: nowMs };
    if (nowMs < vain.untilMs) {
      return changed;
    }
    const owners = await findOwners();
    const refusal = isVetted ? undefined : refusalOfGroup(slot.owner, group, owners);
    const failures = refusal === undefined ? this.#openGroup(opaque, owners) : [refusal];
    if (refusal === undefined) {
      this.#vetted.set(slot.index, signature);
      if (this.#announcedAt.has(slot.index)) {
        this.#announced?.follow(slot, group);
      }
      this.#refused.delete(slot.index);
      this.#groups.set(slot.index, { all: group.length, transparent: group.length - failures.length });
    }
    if (failures.length === 0 && (isKnown || this.#adoptAny(slot, group, inMap, owners))) {
      this.#vain.delete(slot.index);
      return true;
    }
    const elapsedMs = nowMs - vain.sinceMs;
    this.#vain.set(slot.index, { ...vain, untilMs: nowMs + Math.min(elapsedMs, RETRY_MS) });
    // Of a proxy that works, a socket that cannot be opened is most likely being closed: the tries of a second tell.
    const isOld = elapsedMs >= RETRY_MS;
    const isCertain = refusal !== undefined && refusal !== UNKNOWN_HOLDER;
    if (failures.length > 0 && (isCertain || isOld || !isInPlace)) {
      if (refusal !== undefined) {
        this.#refused.set(slot.index, refusal);
      }
      this.#complain(slot, failures[0]);
      changed = this.#map.delete(u32(slot.index)) || changed;
      this.#lost(slot);
    }
    return changed;
  }

  /** Numbers of the cgroups of version 2 that the listeners were opened in, and so what they accept, with whose they are. */
  cgroups(): ReadonlyMap<number, ReadonlySet<number>> {
    const found = new Map<number, Set<number>>();
    const bases = new Map(this.#slots.map(({ index, base }) => [index, base]));
    for (const [index, cgroups] of this.#cgroups) {
      for (const cgroup of cgroups) {
        const instance = bases.get(index) ?? Math.floor(index / this.#perInstance);
        found.set(cgroup, (found.get(cgroup) ?? new Set()).add(instance));
      }
    }
    return found;
  }

  status(): ListenerStatus[] {
    const inbound = new Set(
      this.#slots.flatMap((slot) =>
        slot.direction === 'inbound' && this.#isAsked(slot) ? [slot.instance] : [],
      ),
    );
    const told = this.#slots.filter(
      (slot) =>
        !slot.ours &&
        ((slot.direction === 'outbound' && slot.generation === 1 && this.#protocol === undefined) ||
          (slot.direction === 'outbound' ? this.#isAsked(slot) : inbound.has(slot.instance))),
    );
    return told.map((slot) => {
      const adopted = this.#cookieIn(slot.index) === undefined ? undefined : this.#adopted.get(slot.index);
      const refused = this.#refused.get(slot.index);
      const wanted = this.#wantedFor(slot);
      const base = {
        instance: slot.instance,
        ...(slot.generation === 1 ? {} : { generation: slot.generation }),
        ...(this.#protocol === undefined ? {} : { protocol: this.#protocol }),
        direction: slot.direction,
        family: slot.family,
        address:
          wanted === undefined ? (slot.announced ? 'none announced' : 'not configured') : textOf(wanted),
        adopted: adopted !== undefined,
        ...(this.#announcedAt.has(slot.index) ? { announced: true as const } : {}),
        sockets: this.#groups.get(slot.index) ?? { all: 0, transparent: 0 },
        ...(refused === undefined ? {} : { refused }),
      };
      // By now it may execute another program than when it was found.
      return adopted === undefined ? base : { ...base, pid: adopted.pid, process: processName(adopted.pid) };
    });
  }

  #isAsked(slot: Slot): boolean {
    return slot.announced || this.#wantedFor(slot) !== undefined;
  }

  #isTransparent({ cookie, transparent }: ListeningSocket): boolean {
    return transparent ?? this.#made.has(cookie);
  }

  /** Makes the members of a group transparent. Returns, for each that cannot be, why. */
  #openGroup(opaque: readonly ListeningSocket[], owners: Owners): unknown[] {
    const failures: unknown[] = [];
    for (const socket of opaque) {
      const owner = owners.get(socket.inode);
      try {
        if (owner === undefined) {
          throw new Error(`no process is found that holds the socket ${socket.inode} at this address`);
        }
        this.#makeTransparent(socket, owner);
        this.#made = new Set([...this.#made, socket.cookie]);
      } catch (error) {
        failures.push(error);
      }
    }
    return failures;
  }

  #cookieIn(index: number): bigint | undefined {
    const value = this.#map.get(u32(index));
    return value === undefined || value.length < 8 ? undefined : value.readBigUInt64LE(0);
  }

  /** While an endpoint refers to it, a pod that no source has named yet goes on with the proxy that it had. */
  #dropForeignSlots(): boolean {
    if (this.#foreign.size === 0) {
      return false;
    }
    const referred = this.#referred();
    let dropped = false;
    for (const index of this.#foreign) {
      if (!referred.has(Math.floor(index / this.#perInstance))) {
        this.#foreign.delete(index);
        dropped = this.#map.delete(u32(index)) || dropped;
      }
    }
    return dropped;
  }

  #adoptAny(
    slot: Slot,
    candidates: readonly ListeningSocket[],
    inMap: bigint | undefined,
    owners: Owners,
  ): boolean {
    // Taken over from the agent before us, or handed on by its process: only its owner's name is not known yet.
    const ordered = [...candidates].sort((a, b) => Number(b.cookie === inMap) - Number(a.cookie === inMap));
    for (const socket of ordered) {
      const owner = owners.get(socket.inode);
      if (owner === undefined) {
        continue; // closed since, or held by a process that has just died
      }
      try {
        if (socket.cookie !== inMap) {
          putInto(this.#map, slot.index, socket, owner);
        }
        const adopted = {
          inode: socket.inode,
          ...owner,
          process: processName(owner.pid),
          atMs: performance.now(),
        };
        const change = this.#changeOfOwner(slot, adopted);
        const before = this.#adopted.get(slot.index);
        const isSame = before?.pid === adopted.pid && before.inode === adopted.inode;
        this.#adopted.set(slot.index, adopted);
        this.#last.set(slot.index, adopted);
        this.#complaints.delete(slot.index);
        if (!isSame) {
          this.#log.info(
            {
              ...this.#nameOf(slot),
              ...(slot.generation === 1 ? {} : { generation: slot.generation }),
              uid: socket.uid,
              pid: adopted.pid,
              process: adopted.process,
              ...change,
            },
            'listener adopted',
          );
        }
        return true;
      } catch (error) {
        this.#complain(slot, error);
      }
    }
    return false;
  }

  /** For the log. */
  #nameOf({ instance, direction, family }: Slot): object {
    return { instance, ...(this.#protocol && { protocol: this.#protocol }), direction, family };
  }

  /** Whose it was before, where that was another process. */
  #changeOfOwner(slot: Slot, { pid }: Adopted): object {
    const before = this.#last.get(slot.index);
    return before === undefined || before.pid === pid
      ? {}
      : { before: { pid: before.pid, process: before.process } };
  }

  #lost(slot: Slot): void {
    const adopted = this.#adopted.get(slot.index);
    if (adopted !== undefined) {
      this.#adopted.delete(slot.index);
      this.#log.warn(
        { ...this.#nameOf(slot), pid: adopted.pid },
        'listener gone: new connections meet the failure policy',
      );
    }
  }

  /** Once per slot and reason: the look is repeated several times a second. */
  #complain(slot: Slot, error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error);
    if (this.#complaints.get(slot.index) !== reason) {
      this.#complaints.set(slot.index, reason);
      this.#log.warn({ ...this.#nameOf(slot), reason }, 'listener not adopted');
    }
  }
}

/** Walks /proc. */
export async function ownersOf(sockets: readonly ListeningSocket[]): Promise<Owners> {
  const found = await socketOwners(sockets.map(({ inode }) => inode));
  return new Map(found.map(({ inode, pid, fd }) => [inode, { pid, fd }]));
}
