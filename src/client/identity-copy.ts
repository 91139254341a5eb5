/** The live pods as a watch tells of them, found by UID and by address. */

import { isDeepStrictEqual } from 'node:util';
import type { Workload } from '../identity/workload.js';

/** Something of the copy is another. `REMOVED` bears what was held. */
export type IdentityChange =
  | { readonly type: 'UPSERT'; readonly workload: Workload }
  | { readonly type: 'REMOVED'; readonly workload: Workload };

export class IdentityCopy {
  readonly #byUid = new Map<string, Workload>();
  readonly #byAddress = new Map<string, Set<string>>();

  get(uid: string): Workload | undefined {
    return this.#byUid.get(uid);
  }

  /** All that hold it: more than one while an address changes hands, or where two claim it. */
  holders(ip: string): readonly Workload[] {
    return [...(this.#byAddress.get(ip) ?? [])].flatMap((uid) => this.#byUid.get(uid) ?? []);
  }

  list(): Workload[] {
    return [...this.#byUid.values()];
  }

  /** It stands for all that is known of its UID. The change is undefined where that was known. */
  upsert(workload: Workload): IdentityChange | undefined {
    const held = this.#byUid.get(workload.uid);
    if (isDeepStrictEqual(held, workload)) {
      return undefined;
    }
    if (held !== undefined) {
      this.#drop(held);
    }
    this.#byUid.set(workload.uid, workload);
    for (const ip of workload.ips) {
      const holders = this.#byAddress.get(ip) ?? new Set();
      this.#byAddress.set(ip, holders.add(workload.uid));
    }
    return { type: 'UPSERT', workload };
  }

  /** Of just this generation: a late removal says nothing of who came after. */
  remove(uid: string, generation: number): IdentityChange | undefined {
    const held = this.#byUid.get(uid);
    if (held === undefined || held.generation !== generation) {
      return undefined;
    }
    this.#drop(held);
    return { type: 'REMOVED', workload: held };
  }

  /** What it takes to come from here to `next`. */
  changesTo(next: IdentityCopy): IdentityChange[] {
    const removed = this.list().filter(({ uid }) => next.get(uid) === undefined);
    const upserted = next.list().filter((workload) => !isDeepStrictEqual(this.get(workload.uid), workload));
    return [
      ...removed.map((workload): IdentityChange => ({ type: 'REMOVED', workload })),
      ...upserted.map((workload): IdentityChange => ({ type: 'UPSERT', workload })),
    ];
  }

  #drop({ uid, ips }: Workload): void {
    this.#byUid.delete(uid);
    for (const ip of ips) {
      const holders = this.#byAddress.get(ip);
      holders?.delete(uid);
      if (holders?.size === 0) {
        this.#byAddress.delete(ip);
      }
    }
  }
}
