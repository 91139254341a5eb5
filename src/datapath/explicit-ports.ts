/** The ports at which pods dial a proxy of their node by themselves, and whose each is. */

import { u32 } from '../kernel/struct.js';
import type { BpfMap } from '../native/bpf.js';

export class ExplicitPorts {
  readonly #map: BpfMap;
  readonly #wanted: () => ReadonlyMap<number, number>;

  /** `wanted`: the number of the instance by port, asked each time. */
  constructor(map: BpfMap, wanted: () => ReadonlyMap<number, number>) {
    this.#map = map;
    this.#wanted = wanted;
  }

  /** Writes what differs. Returns what did, in words. */
  ensure(): string[] {
    const wanted = this.#wanted();
    const present = new Map(
      this.#map.entries().map(([key, value]) => [key.readUInt16LE(0), value.readUInt32LE(0)]),
    );
    const changes: string[] = [];
    for (const [port, instance] of wanted) {
      if (present.get(port) !== instance) {
        this.#map.set(keyOf(port), u32(instance));
        changes.push(`the explicit port ${port} was not as written`);
      }
    }
    for (const port of [...present.keys()].filter((candidate) => !wanted.has(candidate))) {
      this.#map.delete(keyOf(port));
      changes.push(`the explicit port ${port} did not belong there`);
    }
    return changes;
  }
}

function keyOf(port: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16LE(port);
  return bytes;
}
