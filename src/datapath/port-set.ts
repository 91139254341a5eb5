/** Ports that the programs look up: UDP ports that stay open, ports that proxies listen at. */

import type { BpfMap } from '../native/bpf.js';

const PRESENT = Buffer.from([1]);

export class PortSet {
  readonly #map: BpfMap;
  readonly #wantedNow: () => readonly number[];
  readonly #name: string;

  /** `wanted`: asked each time. `name`: of one of them, in words. */
  constructor(map: BpfMap, wanted: () => readonly number[], name: string) {
    this.#map = map;
    this.#name = name;
    this.#wantedNow = wanted;
  }

  /** Writes what differs. Returns what did, in words. */
  ensure(): string[] {
    const wanted = new Set(this.#wantedNow());
    const present = new Set(this.#map.entries().map(([key]) => key.readUInt16LE(0)));
    const changes: string[] = [];
    for (const port of [...wanted].filter((candidate) => !present.has(candidate))) {
      this.#map.set(u16(port), PRESENT);
      changes.push(`the ${this.#name} ${port} was missing`);
    }
    for (const port of [...present].filter((candidate) => !wanted.has(candidate))) {
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
