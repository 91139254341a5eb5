/** Packets of each endpoint by verdict, as the programs count them: what its pod sends, and what it is sent. */

import { u32 } from '../kernel/struct.js';
import type { BpfMap } from '../native/bpf.js';
import type { FlowDirection } from './flows.js';
import type { Layouts } from './layouts.js';

export interface CounterMaps {
  readonly counters: BpfMap;
  readonly ingress_counters: BpfMap;
}

export interface Counted {
  readonly endpointId: number;
  /** What the pod sends, or what it is sent. */
  readonly direction: FlowDirection;
  readonly packets: Readonly<Record<string, number>>;
}

export class PacketCounters {
  readonly #maps: readonly { readonly direction: FlowDirection; readonly map: BpfMap }[];
  readonly #verdicts: readonly string[];
  /** Ids whose counters are known to be there. */
  readonly #known = new Set<number>();

  constructor({ counters, ingress_counters }: CounterMaps, { verdicts }: Pick<Layouts, 'verdicts'>) {
    this.#maps = [
      { direction: 'EGRESS', map: counters },
      { direction: 'INGRESS', map: ingress_counters },
    ];
    this.#verdicts = verdicts;
  }

  ensure(id: number): void {
    if (this.#known.has(id)) {
      return;
    }
    for (const { map } of this.#maps.filter((each) => each.map.get(u32(id)) === undefined)) {
      map.set(u32(id), Buffer.alloc(map.valueSize));
    }
    this.#known.add(id);
  }

  forget(id: number): void {
    for (const { map } of this.#maps) {
      map.delete(u32(id));
    }
    this.#known.delete(id);
  }

  /** Looks which are there, off the event loop: a row that has gone is made anew by the next `ensure`. */
  async recount(): Promise<void> {
    for (const { map } of this.#maps) {
      const { count, keys } = await map.sums();
      const present = new Set(Array.from({ length: count }, (_, entry) => keys.readUInt32LE(entry * 4)));
      for (const id of [...this.#known].filter((known) => !present.has(known))) {
        this.#known.delete(id);
      }
    }
  }

  /** Summed up over the CPUs, off the event loop. */
  async read(): Promise<Counted[]> {
    const all: Counted[] = [];
    for (const { direction, map } of this.#maps) {
      const { count, keys, values } = await map.sums();
      const stride = values.length / count;
      for (let entry = 0; entry < count; entry++) {
        const packets: Record<string, number> = {};
        this.#verdicts.forEach((name, index) => {
          packets[name] = number64(values, entry * stride + index * 8);
        });
        all.push({ endpointId: keys.readUInt32LE(entry * 4), direction, packets });
      }
    }
    return all;
  }
}

/** As a number of JavaScript: exact up to 2^53. */
function number64(bytes: Buffer, offset: number): number {
  return bytes.readUInt32LE(offset) + bytes.readUInt32LE(offset + 4) * 0x1_0000_0000;
}
