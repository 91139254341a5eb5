/**
 * The proxies' listening sockets: found by address, adopted from whichever process owns them, put where the
 * datapath looks. The proxy need not know. When it closes a socket the kernel takes it out of the map by itself;
 * the next look adopts its successor.
 */

import type { Log } from '../base/log.js';
import { DatapathError } from '../kernel/errors.js';
import { u32 } from '../kernel/struct.js';
import type { BpfMap } from '../native/bpf.js';
import { type TcpListener, tcpListeners } from '../native/sockets.js';
import { FAMILIES, type Family } from '../net/family.js';
import type { SlotLayout } from './layouts.js';
import { isHeld, processName, putInto, type SocketOwner, socketOwners } from './proxy-sockets.js';

export interface WantedListener {
  readonly host: string;
  readonly port: number;
  readonly family: Family;
}

export interface WantedInstance {
  readonly name: string;
  readonly outbound: readonly WantedListener[];
  readonly inbound: readonly WantedListener[];
}

export interface ListenerStatus {
  readonly instance: string;
  readonly direction: 'outbound' | 'inbound';
  readonly family: Family;
  readonly address: string;
  readonly adopted: boolean;
  readonly pid?: number;
  readonly process?: string;
}

interface Slot {
  readonly index: number;
  readonly instance: string;
  readonly direction: 'outbound' | 'inbound';
  readonly family: Family;
  /** Undefined where the configuration names no address for this family. */
  readonly wanted: WantedListener | undefined;
}

interface Adopted extends SocketOwner {
  readonly inode: number;
  readonly process: string;
}

const RETRY_MS = 1_000;
const WILDCARD: Readonly<Record<Family, string>> = { 4: '0.0.0.0', 6: '::' };

/** The key of the SOCKMAP. */
export function slotIndex(
  { perInstance, inbound, ipv6 }: SlotLayout,
  instance: number,
  direction: 'outbound' | 'inbound',
  family: Family,
): number {
  return instance * perInstance + (direction === 'inbound' ? inbound : 0) + (family === 6 ? ipv6 : 0);
}

function slotsOf(layout: SlotLayout, instance: WantedInstance, position: number): Slot[] {
  const slots: Slot[] = [];
  for (const direction of ['outbound', 'inbound'] as const) {
    const addresses = instance[direction];
    for (const family of FAMILIES) {
      const wanted = addressFor(addresses, family);
      slots.push({
        index: slotIndex(layout, position, direction, family),
        instance: instance.name,
        direction,
        family,
        wanted,
      });
    }
  }
  return slots;
}

/** The address that serves a family: its own, or for IPv4 an IPv6 wildcard (RFC 3493, 5.3). */
export function addressFor<T extends WantedListener>(addresses: readonly T[], family: Family): T | undefined {
  return (
    addresses.find((address) => address.family === family) ??
    (family === 4 ? addresses.find((address) => address.host === WILDCARD[6]) : undefined)
  );
}

/** Whether `socket` is the one that was asked for, and takes `family`. */
export function serves(socket: TcpListener, wanted: WantedListener, family: Family): boolean {
  const isThere = socket.port === wanted.port && socket.address === wanted.host;
  return isThere && (socket.family === family || (family === 4 && socket.family === 6 && !socket.v6only));
}

export interface ListenersOptions {
  /** The SOCKMAP. */
  readonly map: BpfMap;
  readonly slots: SlotLayout;
  readonly instances: readonly WantedInstance[];
  readonly log: Pick<Log, 'info' | 'warn'>;
}

/** Keeps the SOCKMAP in step with the sockets that listen in the current network namespace. */
export class Listeners {
  readonly #map: BpfMap;
  readonly #log: Pick<Log, 'info' | 'warn'>;
  readonly #slots: readonly Slot[];
  readonly #adopted = new Map<number, Adopted>();
  readonly #complaints = new Map<number, string>();
  /** Sockets that could not be adopted: finding an owner walks /proc, so the same ones are not tried at every look. */
  readonly #vain = new Map<number, { signature: string; untilMs: number }>();
  #first = true;

  /** DatapathError LISTENER_LIMIT where the map has no room for so many instances. */
  constructor({ map, slots, instances, log }: ListenersOptions) {
    const most = Math.floor(map.maxEntries / slots.perInstance);
    if (instances.length > most) {
      throw new DatapathError(
        'LISTENER_LIMIT',
        `instances: at most ${most} are possible, ${instances.length} are configured`,
      );
    }
    this.#map = map;
    this.#log = log;
    this.#slots = instances.flatMap((instance, position) => slotsOf(slots, instance, position));
  }

  /** One look: drops what is not wanted, adopts what is there and not adopted. Returns true if anything changed. */
  refresh(): boolean {
    const sockets = tcpListeners();
    let changed = this.#first && this.#dropForeignSlots();
    this.#first = false;
    let owners: ReadonlyMap<number, SocketOwner> | undefined;
    for (const slot of this.#slots) {
      const candidates = sockets.filter(
        (socket) => slot.wanted !== undefined && serves(socket, slot.wanted, slot.family),
      );
      const inMap = this.#cookieIn(slot.index);
      if (inMap !== undefined && candidates.some((socket) => socket.cookie === inMap)) {
        const adopted = this.#adopted.get(slot.index);
        if (adopted !== undefined && isHeld(adopted)) {
          continue;
        }
      } else if (inMap !== undefined) {
        this.#map.delete(u32(slot.index)); // alive, but no longer at the configured address
        changed = true;
      }
      if (candidates.length === 0) {
        this.#lost(slot);
        continue;
      }
      const signature = candidates.map(({ cookie }) => cookie).join(' ');
      const vain = this.#vain.get(slot.index);
      if (vain?.signature === signature && performance.now() < vain.untilMs) {
        continue;
      }
      owners ??= socketOwners(new Set(sockets.map((socket) => socket.inode)));
      if (this.#adoptAny(slot, candidates, inMap, owners)) {
        this.#vain.delete(slot.index);
        changed = true;
      } else {
        this.#vain.set(slot.index, { signature, untilMs: performance.now() + RETRY_MS });
      }
    }
    return changed;
  }

  status(): ListenerStatus[] {
    return this.#slots
      .filter((slot) => slot.wanted !== undefined || slot.direction === 'outbound')
      .map((slot) => {
        const adopted = this.#cookieIn(slot.index) === undefined ? undefined : this.#adopted.get(slot.index);
        const base = {
          instance: slot.instance,
          direction: slot.direction,
          family: slot.family,
          address: slot.wanted === undefined ? 'not configured' : textOf(slot.wanted),
          adopted: adopted !== undefined,
        };
        return adopted === undefined ? base : { ...base, pid: adopted.pid, process: adopted.process };
      });
  }

  #cookieIn(index: number): bigint | undefined {
    const value = this.#map.get(u32(index));
    return value === undefined || value.length < 8 ? undefined : value.readBigUInt64LE(0);
  }

  /** Slots of an agent before us that had other instances; nobody but us writes the map after that. */
  #dropForeignSlots(): boolean {
    const known = new Set(this.#slots.map((slot) => slot.index));
    let dropped = false;
    for (const [key] of this.#map.entries()) {
      if (!known.has(key.readUInt32LE(0))) {
        dropped = this.#map.delete(key) || dropped;
      }
    }
    return dropped;
  }

  #adoptAny(
    slot: Slot,
    candidates: readonly TcpListener[],
    inMap: bigint | undefined,
    owners: ReadonlyMap<number, SocketOwner>,
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
        const adopted = { inode: socket.inode, ...owner, process: processName(owner.pid) };
        this.#adopted.set(slot.index, adopted);
        this.#complaints.delete(slot.index);
        this.#log.info(
          {
            instance: slot.instance,
            direction: slot.direction,
            family: slot.family,
            pid: adopted.pid,
            process: adopted.process,
          },
          'listener adopted',
        );
        return true;
      } catch (error) {
        this.#complain(slot, error);
      }
    }
    return false;
  }

  #lost(slot: Slot): void {
    const adopted = this.#adopted.get(slot.index);
    if (adopted !== undefined) {
      this.#adopted.delete(slot.index);
      this.#log.warn(
        { instance: slot.instance, direction: slot.direction, family: slot.family, pid: adopted.pid },
        'listener gone: new connections meet the failure policy',
      );
    }
  }

  /** Once per slot and reason: the look is repeated several times a second. */
  #complain(slot: Slot, error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error);
    if (this.#complaints.get(slot.index) !== reason) {
      this.#complaints.set(slot.index, reason);
      this.#log.warn(
        { instance: slot.instance, direction: slot.direction, family: slot.family, reason },
        'listener not adopted',
      );
    }
  }
}

function textOf(listener: WantedListener): string {
  return listener.family === 6 ? `[${listener.host}]:${listener.port}` : `${listener.host}:${listener.port}`;
}
