/** How much one caller may ask: a token bucket for each. */

import type { Clock } from '../base/clock.js';
import type { RateLimit } from '../config/config.js';

interface Bucket {
  tokens: number;
  atMs: number;
}

/** Above so many callers, those who have not asked for long enough to have all their tokens are forgotten. */
const MANY = 1_000;

export class RateLimits {
  readonly #limit: RateLimit;
  readonly #nowMs: Clock;
  readonly #buckets = new Map<string, Bucket>();

  constructor(limit: RateLimit, nowMs: Clock) {
    this.#limit = limit;
    this.#nowMs = nowMs;
  }

  /** Takes that many tokens, the whole burst at most. Else in how many ms they will be there; undefined: taken. */
  take(caller: string, tokens: number): number | undefined {
    const { perSecond, burst } = this.#limit;
    const now = this.#nowMs();
    const bucket = this.#buckets.get(caller) ?? this.#added(caller, now);
    bucket.tokens = this.#filled(bucket, now);
    bucket.atMs = now;
    const wanted = Math.min(tokens, burst);
    if (bucket.tokens < wanted) {
      return ((wanted - bucket.tokens) / perSecond) * 1_000;
    }
    bucket.tokens -= wanted;
    return undefined;
  }

  #added(caller: string, now: number): Bucket {
    const { burst } = this.#limit;
    if (this.#buckets.size >= MANY) {
      for (const [key, bucket] of this.#buckets) {
        if (this.#filled(bucket, now) >= burst) {
          this.#buckets.delete(key);
        }
      }
    }
    const bucket = { tokens: burst, atMs: now };
    this.#buckets.set(caller, bucket);
    return bucket;
  }

  #filled({ tokens, atMs }: Bucket, now: number): number {
    const { perSecond, burst } = this.#limit;
    return Math.min(burst, tokens + (Math.max(0, now - atMs) * perSecond) / 1_000);
  }
}
