/** Whether a map still holds what it held: its bytes as a whole are compared, and taken apart only where they differ. */

import type { BpfMap, PackedEntries } from '../native/bpf.js';

export class MapLook {
  readonly #map: Pick<BpfMap, 'packed' | 'unpacked'>;
  #last: PackedEntries | undefined;

  constructor(map: Pick<BpfMap, 'packed' | 'unpacked'>) {
    this.#map = map;
  }

  /** Reads the map. Its entries; undefined: those of the last look, and nobody has called `forget` since. */
  changed(): [Buffer, Buffer][] | undefined {
    const [before, now] = [this.#last, this.#map.packed()];
    this.#last = now;
    // A hash table that nobody has written to is always walked in the same order.
    if (before?.count === now.count && before.keys.equals(now.keys) && before.values.equals(now.values)) {
      return undefined;
    }
    return this.#map.unpacked(now);
  }

  /** We write to it ourselves: the next look tells all, even if somebody has put it back by then. */
  forget(): void {
    this.#last = undefined;
  }
}
