/** How much one caller may ask: a token bucket for each. */

import type { Clock } from '../base/clock.js';
import { TokenBucket } from '../base/token-bucket.js';
import type { RateLimit } from '../config/config.js';

/** Above so many callers, those who have not asked for long enough to have all their tokens are forgotten. */
const MANY = 1_000;

export class RateLimits {
  readonly #limit: RateLimit;
  readonly #nowMs: Clock;
  readonly #buckets = new Map<string, TokenBucket>();

  constructor(limit: RateLimit, nowMs: Clock) {
    this.#limit = limit;
    this.#nowMs = nowMs;
  }

  /** Takes that many tokens, the whole burst at most. Else in how many ms they will be there; undefined: taken. */
  take(caller: string, tokens: number): number | undefined {
    const { perSecond, burst } = this.#limit;
    const bucket = this.#buckets.get(caller) ?? this.#added(caller);
    const wanted = Math.min(tokens, burst);
    const { level } = bucket;
    if (level < wanted) {
      return ((wanted - level) / perSecond) * 1_000;
    }
    bucket.take(wanted);
    return undefined;
  }

  #added(caller: string): TokenBucket {
    if (this.#buckets.size >= MANY) {
      for (const [key, bucket] of this.#buckets) {
        if (bucket.level >= this.#limit.burst) {
          this.#buckets.delete(key);
        }
      }
    }
    const bucket = new TokenBucket(this.#limit, this.#nowMs);
    this.#buckets.set(caller, bucket);
    return bucket;
  }
}
