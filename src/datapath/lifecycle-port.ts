/** The port at which the agent itself answers pods, and the kubelet in their name: one row that the programs read. */

import { u32 } from '../kernel/struct.js';
import type { BpfMap } from '../native/bpf.js';
import type { Layouts } from './layouts.js';

/** The agent's own listeners, among those of instances; no configured one can be called so. */
export const LIFECYCLE_INSTANCE = '@lifecycle';

const ROW = u32(0);

type WantedPort = {
  /** The number of LIFECYCLE_INSTANCE. */
  readonly instance: number;
  readonly port: number;
};

export class LifecyclePort {
  readonly #map: BpfMap;
  readonly #layout: Layouts['lifecycle'];
  readonly #wanted: () => WantedPort | undefined;

  /** `wanted`: undefined where the agent answers no hooks. */
  constructor(map: BpfMap, layouts: Pick<Layouts, 'lifecycle'>, wanted: () => WantedPort | undefined) {
    this.#map = map;
    this.#layout = layouts.lifecycle;
    this.#wanted = wanted;
  }

  /** Writes what differs. Returns what did, in words. */
  ensure(): string[] {
    const row = this.#layout.encode(this.#wanted() ?? { instance: 0, port: 0 });
    if (this.#map.get(ROW)?.equals(row) === true) {
      return [];
    }
    this.#map.set(ROW, row);
    return ['the port of life-cycle hooks was not as written'];
  }
}
