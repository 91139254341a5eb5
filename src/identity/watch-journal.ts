/** Which pods changed lately, and what a reader may hold of them: what it takes to resume. */

import type { PodUid } from '../pods/pod.js';

export interface JournalEntry {
  readonly uid: PodUid;
  /** Of the store, after the change. */
  readonly revision: number;
  /** What the event of the change said: see `WatchEvent`. */
  readonly told: number;
  /** The change came after others had told of this revision as complete: the store does not count generations. */
  readonly isLate: boolean;
  /** The generation that readers held before; undefined: the pod was new to them. */
  readonly held: number | undefined;
}

export interface Changed {
  readonly uid: PodUid;
  readonly told: number;
  /** Every generation that a reader may hold. */
  readonly held: readonly number[];
}

export class WatchJournal {
  readonly #limit: number;
  readonly #entries: JournalEntry[] = [];
  /** The first revision that can be resumed from. */
  #from: number;

  constructor(limit: number, from: number) {
    this.#limit = limit;
    this.#from = from;
  }

  note(entry: JournalEntry): void {
    this.#entries.push(entry);
    const gone = this.#entries.length > this.#limit ? this.#entries.shift() : undefined;
    if (gone !== undefined) {
      this.#from = gone.isLate ? gone.revision + 1 : gone.revision;
    }
  }

  /** Each pod that changed after `revision`, in the order of their last changes; undefined where that is not known. */
  since(revision: number): readonly Changed[] | undefined {
    if (revision < this.#from) {
      return undefined;
    }
    const changed = new Map<PodUid, Changed>();
    for (const { uid, revision: at, told, isLate, held } of this.#entries) {
      if (at > revision || (at === revision && isLate)) {
        const before = changed.get(uid)?.held ?? [];
        changed.delete(uid);
        changed.set(uid, { uid, told, held: held === undefined ? before : [...new Set([...before, held])] });
      }
    }
    return [...changed.values()];
  }
}
