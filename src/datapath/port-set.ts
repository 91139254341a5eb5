/** Ports that the programs look up: UDP ports that stay open, ports that proxies listen at or are dialled at. */

import type { BpfMap } from '../native/bpf.js';

const PRESENT = Buffer.from([1]);

export class PortSet {
  readonly #map: BpfMap;
  readonly #wantedNow: () => readonly number[];
  readonly #name: string;
  readonly #bytesOf: (port: number) => Buffer;

  /** `wanted`: asked each time. `name`: of one of them, in words. `bytesOf`: what the map says of it. */
  constructor(
    map: BpfMap,
    wanted: () => readonly number[],
    name: string,
    bytesOf: (port: number) => Buffer = () => PRESENT,
  ) {
    this.#map = map;
    this.#name = name;
    this.#bytesOf = bytesOf;
    this.#wantedNow = wanted;
  }

  /** Writes what differs. Returns what did, in words. */
  ensure(): string[] {
    const wanted = new Set(this.#wantedNow());
    const present = new Map(this.#map.entries().map(([key, value]) => [key.readUInt16LE(0), value]));
    const changes: string[] = [];
    for (const port of wanted) {
      const value = this.#bytesOf(port);
      if (present.get(port)?.equals(value) !== true) {
        this.#map.set(u16(port), value);
        changes.push(`the ${this.#name} ${port} was ${present.has(port) ? 'not as written' : 'missing'}`);
      }
    }
    for (const port of [...present.keys()].filter((candidate) => !wanted.has(candidate))) {
      this.#map.delete(u16(port));
      changes.push(`the ${this.#name} ${port} did not belong there`);
    }
    return changes;
  }
}

function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16LE(value);
  return bytes;
}
