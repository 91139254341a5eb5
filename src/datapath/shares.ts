/** What endpoints have had of the flow table (`shares`, `turns`), taken away some at a time once nobody asks for them. */

import { u32 } from '../kernel/struct.js';
import type { BpfMap } from '../native/bpf.js';
import type { Layouts } from './layouts.js';

/** Turns of flows that are dropped at one look: two or three milliseconds. */
const TURNS_AT_ONCE = 4096;

export interface ShareMaps {
  readonly shares: BpfMap;
  readonly turns: BpfMap;
}

export class Shares {
  readonly #maps: ShareMaps;
  readonly #layouts: Pick<Layouts, 'share' | 'turn' | 'limits'>;
  /** Endpoints that are forgotten, and how many turns of each are still in the kernel. */
  readonly #leaving: { readonly endpoint: number; left: number }[] = [];

  constructor(maps: ShareMaps, layouts: Pick<Layouts, 'share' | 'turn' | 'limits'>) {
    this.#maps = maps;
    this.#layouts = layouts;
  }

  /** What an agent before us has left of endpoints that are not known any more. */
  forgetAllBut(isKnown: (endpoint: number) => boolean): void {
    for (const [key] of this.#maps.shares.entries()) {
      const endpoint = key.readUInt32LE(0);
      if (!isKnown(endpoint)) {
        this.forget(endpoint);
      }
    }
  }

  /** The share goes by and by: see `drop`. */
  forget(endpoint: number): void {
    const { share, limits } = this.#layouts;
    const value = this.#maps.shares.get(u32(endpoint));
    if (value !== undefined) {
      const left = Math.min(share.number(value, 'recorded'), limits.flowsOfEndpoint);
      this.#leaving.push({ endpoint, left });
    }
  }

  /** Some of the turns of those that are forgotten, an endpoint's last first; its share goes with the rest of them. */
  drop(): void {
    let room = TURNS_AT_ONCE;
    for (let first = this.#leaving[0]; first !== undefined && room > 0; first = this.#leaving[0]) {
      const count = Math.min(first.left, room);
      this.#maps.turns.deletePacked(this.#turnsBefore(first.endpoint, first.left, count));
      first.left -= count;
      room -= Math.max(count, 1);
      if (first.left === 0) {
        this.#maps.shares.delete(u32(first.endpoint));
        this.#leaving.shift();
      }
    }
  }

  #turnsBefore(endpoint: number, end: number, count: number): Buffer {
    const { turn } = this.#layouts;
    const keys = Buffer.alloc(count * turn.size, turn.encode({ endpoint }));
    for (let index = 0; index < count; index++) {
      keys.writeUInt32LE(end - 1 - index, index * turn.size + turn.offsetOf('number'));
    }
    return keys;
  }
}
