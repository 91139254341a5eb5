/** The pods that wait to start, and what each of them has waited for. */

import type { Clock } from '../base/clock.js';
import type { PodUid } from '../pods/pod.js';

/**
 * In their order; each begins where the one before it ended. writing: the attachment is written down and told to whoever
 * follows pods. confirming: another source has its say. queueing: for the round that takes the pod. deciding: where its
 * interface is. addressing: its addresses go into the node's nftables sets. installing: maps are written and programs
 * attached, for which the kernel waits (RCU). proving: the canary, and whatever had to be tried again.
 */
export const START_PARTS = [
  'writing',
  'confirming',
  'queueing',
  'deciding',
  'addressing',
  'installing',
  'proving',
] as const;
export type StartPart = (typeof START_PARTS)[number];
/** Milliseconds; without those that did not come to an end. */
export type StartTimes = Readonly<Partial<Record<StartPart, number>>>;

interface Waiting {
  sinceMs: number;
  readonly times: Partial<Record<StartPart, number>>;
}

export class StartingPods {
  readonly #nowMs: Clock;
  readonly #waiting = new Map<PodUid, Waiting>();

  constructor(nowMs: Clock = () => performance.now()) {
    this.#nowMs = nowMs;
  }

  has(uid: PodUid): boolean {
    return this.#waiting.has(uid);
  }

  list(): readonly PodUid[] {
    return [...this.#waiting.keys()];
  }

  /** `sinceMs`: of the same clock. Once it waits, nothing is changed. */
  add(uid: PodUid, sinceMs: number): void {
    if (!this.#waiting.has(uid)) {
      this.#waiting.set(uid, { sinceMs, times: {} });
    }
  }

  /** Only the first time counts: what is done again, another round may be doing beside it. */
  ended(uid: PodUid, part: StartPart): void {
    const waiting = this.#waiting.get(uid);
    if (waiting !== undefined && waiting.times[part] === undefined) {
      const now = this.#nowMs();
      waiting.times[part] = now - waiting.sinceMs;
      waiting.sinceMs = now;
    }
  }

  /** Returns what it has waited for. */
  delete(uid: PodUid): StartTimes {
    const times = this.#waiting.get(uid)?.times ?? {};
    this.#waiting.delete(uid);
    return times;
  }
}
