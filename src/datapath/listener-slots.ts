/** Which sockets are wanted for an instance, and the slots of the SOCKMAP that they go to. */

import type { ListeningSocket } from '../native/sockets.js';
import { FAMILIES, type Family } from '../net/family.js';
import { formatSocketAddress } from '../net/socket-address.js';
import type { SlotLayout } from './layouts.js';
import type { OwnerRule } from './listener-owner.js';

export interface WantedListener {
  readonly host: string;
  readonly port: number;
  readonly family: Family;
}

export interface WantedInstance {
  readonly name: string;
  /** In the kernel: src/datapath/instance-slots.ts. */
  readonly number: number;
  /** Of its two sets of listeners, which take turns when its proxy is upgraded. Default 1. */
  readonly generation?: 1 | 2 | undefined;
  /** The number that endpoints refer to; that of the first generation. Default `number`. */
  readonly base?: number | undefined;
  /** They are the agent's own. */
  readonly ours?: true | undefined;
  readonly outbound: readonly WantedListener[];
  readonly inbound: readonly WantedListener[];
  /** Directions for which its proxy may announce listeners. Default none; those that have an address may be besides. */
  readonly announced?: readonly ('outbound' | 'inbound')[] | undefined;
  /** Who may hold them. */
  readonly owner: OwnerRule;
}

/** A place in the SOCKMAP: of an instance, a direction and a family. */
export interface Slot {
  readonly index: number;
  readonly instance: string;
  readonly generation: 1 | 2;
  /** The instance's number, as endpoints refer to it. */
  readonly base: number;
  readonly direction: 'outbound' | 'inbound';
  readonly family: Family;
  /** Undefined where the configuration names no address for this family. */
  readonly wanted: WantedListener | undefined;
  /** Its proxy is to announce a listener, which may not be there yet. */
  readonly announced: boolean;
  readonly owner: OwnerRule;
  readonly ours: boolean;
}

/** The key of the SOCKMAP. */
export function slotIndex(
  { perInstance, inbound, ipv6 }: SlotLayout,
  instance: number,
  direction: 'outbound' | 'inbound',
  family: Family,
): number {
  return instance * perInstance + (direction === 'inbound' ? inbound : 0) + (family === 6 ? ipv6 : 0);
}

/** The four slots of an instance. */
export function slotsOf(layout: SlotLayout, instance: WantedInstance): Slot[] {
  const slots: Slot[] = [];
  for (const direction of ['outbound', 'inbound'] as const) {
    const addresses = instance[direction];
    for (const family of FAMILIES) {
      const wanted = addressFor(addresses, family);
      slots.push({
        index: slotIndex(layout, instance.number, direction, family),
        instance: instance.name,
        generation: instance.generation ?? 1,
        base: instance.base ?? instance.number,
        direction,
        family,
        wanted,
        announced: instance.announced?.includes(direction) === true,
        owner: instance.owner,
        ours: instance.ours === true,
      });
    }
  }
  return slots;
}

/** The address that serves a family: its own, or for IPv4 an IPv6 wildcard (RFC 3493, 5.3). */
export function addressFor<T extends WantedListener>(addresses: readonly T[], family: Family): T | undefined {
  return (
    addresses.find((address) => address.family === family) ??
    (family === 4 ? addresses.find((address) => address.host === '::') : undefined)
  );
}

/** Whether `socket` is the one that was asked for, and takes `family`. */
export function serves(socket: ListeningSocket, wanted: WantedListener, family: Family): boolean {
  const isThere = socket.port === wanted.port && socket.address === wanted.host;
  return isThere && (socket.family === family || (family === 4 && socket.family === 6 && !socket.v6only));
}

/** As in the configuration. */
export function textOf({ host, port }: WantedListener): string {
  return formatSocketAddress({ ip: host, port });
}
