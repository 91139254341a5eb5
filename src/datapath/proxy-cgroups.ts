/**
 * Whose proxy has sent something, by the cgroup of its socket: `proxy_cgroups`, for bpf/ingress.bpf.c. A cgroup in which
 * several instances have listeners tells nothing, and neither does the root, where everybody is who is nowhere else.
 */

import { u32, u64 } from '../kernel/struct.js';
import type { BpfMap } from '../native/bpf.js';

const ROOT = 1;

export class ProxyCgroups {
  readonly #map: BpfMap;
  readonly #cgroups: () => ReadonlyMap<number, ReadonlySet<number>>;

  /** `cgroups`: with the numbers of the instances that have listeners there. */
  constructor(map: BpfMap, cgroups: () => ReadonlyMap<number, ReadonlySet<number>>) {
    this.#map = map;
    this.#cgroups = cgroups;
  }

  /** Writes what differs: which proxies there are is no repair. */
  ensure(): void {
    const present = new Map(
      this.#map.entries().map(([key, value]) => [Number(key.readBigUInt64LE(0)), value.readUInt32LE(0)]),
    );
    const wanted = new Map(
      [...this.#cgroups()].flatMap(([cgroup, instances]) => {
        const [instance] = instances;
        return cgroup !== ROOT && instances.size === 1 && instance !== undefined ? [[cgroup, instance]] : [];
      }),
    );
    for (const [cgroup, instance] of wanted) {
      if (present.get(cgroup) !== instance) {
        this.#map.set(u64(cgroup), u32(instance));
      }
    }
    for (const cgroup of [...present.keys()].filter((other) => !wanted.has(other))) {
      this.#map.delete(u64(cgroup));
    }
  }
}
