/** So many of something a second, and after a while with fewer a burst of them. */

import type { Clock } from './clock.js';

export interface BucketLimit {
  readonly perSecond: number;
  readonly burst: number;
}

export class TokenBucket {
  readonly #limit: BucketLimit;
  readonly #nowMs: Clock;
  #tokens: number;
  #atMs: number;

  /** Full. `nowMs`: one that is set back adds nothing. */
  constructor(limit: BucketLimit, nowMs: Clock = () => performance.now()) {
    this.#limit = limit;
    this.#nowMs = nowMs;
    this.#tokens = limit.burst;
    this.#atMs = nowMs();
  }

  /** How many there are now; not always a whole number. */
  get level(): number {
    const { perSecond, burst } = this.#limit;
    const now = this.#nowMs();
    this.#tokens = Math.min(burst, this.#tokens + (Math.max(0, now - this.#atMs) * perSecond) / 1_000);
    this.#atMs = now;
    return this.#tokens;
  }

  /** As many of these as there are, whole ones; they are gone then. */
  take(wanted: number): number {
    const taken = Math.min(wanted, Math.floor(this.level));
    this.#tokens -= taken;
    return taken;
  }
}
