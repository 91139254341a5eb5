/** Which pods an interface was found for: one that more than one pod claims is evidence of none. */

import type { PodUid } from '../pods/pod.js';

export class InterfaceClaims {
  readonly #pods = new Map<number, Set<PodUid>>();

  /** Every pod that claims it. */
  of(ifindex: number): PodUid[] {
    return [...(this.#pods.get(ifindex) ?? [])];
  }

  /** Returns the pods that claim one of these together with this one, and it, where there is any. */
  add(uid: PodUid, ifindexes: readonly number[]): PodUid[] {
    return ifindexes.flatMap((ifindex) => {
      const pods = this.#pods.get(ifindex) ?? new Set();
      this.#pods.set(ifindex, pods.add(uid));
      return pods.size > 1 ? [...pods] : [];
    });
  }

  /** Returns the pods that still claim one of these. */
  remove(uid: PodUid, ifindexes: readonly number[]): PodUid[] {
    return ifindexes.flatMap((ifindex) => {
      const pods = this.#pods.get(ifindex);
      pods?.delete(uid);
      if (pods?.size === 0) {
        this.#pods.delete(ifindex);
      }
      return [...(pods ?? [])];
    });
  }
}
