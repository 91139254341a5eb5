/**
 * What a proxy is told by getsockopt(2) of the pods behind its connections (include/nodesentry.h): a row per endpoint, and
 * to which endpoint an address leads. Read by bpf/identity-option.bpf.c, also while no agent runs.
 */

import { u32 } from '../kernel/struct.js';
import type { BpfMap } from '../native/bpf.js';
import { ipToBytes } from '../net/ip.js';
import type { RuntimeKind } from '../pods/pod.js';
import type { Layouts } from './layouts.js';
import { MapLook } from './map-look.js';

/** Rows are large and change rarely: they are compared at one look in so many. */
const COMPARE_EVERY = 10;

export interface IdentityMaps {
  readonly identities: BpfMap;
  readonly addresses: BpfMap;
}

export interface EndpointIdentity {
  readonly uid: string;
  readonly generation: number;
  readonly namespace: string;
  readonly podName: string;
  readonly serviceAccount: string;
  readonly app: string;
  readonly runtime: RuntimeKind;
  /** Empty where it is not confirmed, or there is none. */
  readonly spiffeId: string;
}

export class Identities {
  readonly #maps: IdentityMaps;
  readonly #layouts: Layouts;
  readonly #addresses: MapLook;
  /** By endpoint id, as wanted. */
  readonly #rows = new Map<number, Buffer>();
  /** Endpoint ids by address, and addresses by endpoint id. */
  readonly #claims = new Map<string, Set<number>>();
  readonly #claimed = new Map<number, Set<string>>();
  #looks = 0;

  /** Goes on with what an agent before us has left of endpoints that `isKnown`. */
  constructor(maps: IdentityMaps, layouts: Layouts, isKnown: (id: number) => boolean) {
    this.#maps = maps;
    this.#layouts = layouts;
    this.#addresses = new MapLook(maps.addresses);
    for (const [key, value] of maps.identities.entries()) {
      const id = key.readUInt32LE(0);
      if (isKnown(id)) {
        this.#rows.set(id, value);
      } else {
        maps.identities.delete(key);
      }
    }
    for (const [key, value] of maps.addresses.entries()) {
      const id = value.readUInt32LE(0);
      if (isKnown(id)) {
        const address = key.toString('latin1');
        this.#claims.set(address, new Set([id]));
        this.#claimed.set(id, (this.#claimed.get(id) ?? new Set()).add(address));
      } else {
        maps.addresses.delete(key);
      }
    }
  }

  /** Writes what differs. An address that two endpoints claim leads to neither. */
  describe(id: number, identity: EndpointIdentity, ips: readonly string[]): void {
    const row = this.#encode(identity);
    if (this.#rows.get(id)?.equals(row) !== true) {
      this.#maps.identities.set(u32(id), row);
      this.#rows.set(id, row);
    }
    this.#claim(id, new Set(ips.map((ip) => Buffer.from(ipToBytes(ip)).toString('latin1'))));
  }

  /** These addresses lead to the endpoint no more; who it was can still be asked by a connection. `keys`: as in the map. */
  leave(id: number, keys: Iterable<string>): void {
    const rest = new Set(this.#claimed.get(id));
    for (const key of keys) {
      rest.delete(key);
    }
    this.#claim(id, rest);
  }

  forget(id: number): void {
    this.#claim(id, new Set());
    this.#maps.identities.delete(u32(id));
    this.#rows.delete(id);
  }

  /** Puts back what somebody has taken away or changed. Returns what, in words. */
  ensure(): string[] {
    const wrong: string[] = [];
    const entries = this.#addresses.changed();
    const held = new Map(entries?.map(([key, value]) => [key.toString('latin1'), value]));
    for (const [key, ids] of entries === undefined ? [] : this.#claims) {
      const [id] = ids;
      if (ids.size === 1 && id !== undefined && held.get(key)?.readUInt32LE(0) !== id) {
        this.#addresses.forget();
        this.#maps.addresses.set(Buffer.from(key, 'latin1'), u32(id));
        wrong.push(`an address of endpoint ${id}`);
      }
    }
    if (this.#looks++ % COMPARE_EVERY === 0) {
      const rows = new Map(
        this.#maps.identities.entries().map(([key, value]) => [key.readUInt32LE(0), value]),
      );
      for (const [id, row] of this.#rows) {
        if (rows.get(id)?.equals(row) !== true) {
          this.#maps.identities.set(u32(id), row);
          wrong.push(`the identity of endpoint ${id}`);
        }
      }
    }
    return wrong;
  }

  /** Throws where the table is full; what has been claimed by then is, and nothing else. */
  #claim(id: number, wanted: ReadonlySet<string>): void {
    const held = this.#claimed.get(id) ?? new Set();
    this.#claimed.set(id, held);
    try {
      for (const key of [...held].filter((candidate) => !wanted.has(candidate))) {
        this.#unclaim(id, key, held);
      }
      for (const key of wanted) {
        const ids = this.#claims.get(key) ?? new Set();
        if (!ids.has(id)) {
          this.#claims.set(key, ids.add(id));
          held.add(key);
          try {
            this.#settle(key, ids);
          } catch (error) {
            this.#unclaim(id, key, held);
            throw error;
          }
        }
      }
    } finally {
      if (held.size === 0) {
        this.#claimed.delete(id);
      }
    }
  }

  #unclaim(id: number, key: string, held: Set<string>): void {
    held.delete(key);
    const ids = this.#claims.get(key);
    if (ids?.delete(id) === true) {
      this.#settle(key, ids);
    }
  }

  #settle(key: string, ids: ReadonlySet<number>): void {
    const [id] = ids;
    this.#addresses.forget();
    if (ids.size === 1 && id !== undefined) {
      this.#maps.addresses.set(Buffer.from(key, 'latin1'), u32(id));
    } else {
      this.#maps.addresses.delete(Buffer.from(key, 'latin1'));
    }
    if (ids.size === 0) {
      this.#claims.delete(key);
    }
  }

  #encode(identity: EndpointIdentity): Buffer {
    const { identityEnd, identity: layout, runtimes, identityVersion } = this.#layouts;
    const end = identityEnd.encode({
      version: identityVersion,
      size: identityEnd.size,
      runtime: runtimes[identity.runtime],
      generation: identity.generation,
      pod_uid: this.#text('pod_uid', identity.uid),
      pod_namespace: this.#text('pod_namespace', identity.namespace),
      pod_name: this.#text('pod_name', identity.podName),
      service_account: this.#text('service_account', identity.serviceAccount),
      app: this.#text('app', identity.app),
    });
    // One that does not fit is none: half of a name would be another's.
    const id = Buffer.from(identity.spiffeId);
    const fits = id.length <= layout.sizeOf('id');
    return layout.encode({ end, id: fits ? id : Buffer.alloc(0), id_length: fits ? id.length : 0 });
  }

  /** With room for the NUL; names that Kubernetes would not take may be longer, and are left out. */
  #text(field: string, text: string): Buffer {
    const bytes = Buffer.from(text);
    return bytes.length < this.#layouts.identityEnd.sizeOf(field) ? bytes : Buffer.alloc(0);
  }
}
