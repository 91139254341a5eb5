/**
 * Which certificate is served and which authorities are trusted, by the age of each generation alone: replicas with one
 * Secret and nearly one clock come to one answer. A new one is trusted first and served later, an old one the other way
 * round, so that at no time a replica serves what an API server does not trust.
 */

import type { Generation } from './certificates.js';

const DAY_MS = 86_400_000;

export interface RotationTerms {
  readonly lifetimeMs: number;
  /** A next one is made when the newest is this old. */
  readonly renewMs: number;
  /** Trusted for this long before it is served; and the one before it for as long again afterwards. */
  readonly spreadMs: number;
  /** How often a replica looks what the others have made; much less than `spreadMs`. */
  readonly roundMs: number;
}

export const TERMS: RotationTerms = {
  lifetimeMs: 90 * DAY_MS,
  renewMs: 60 * DAY_MS,
  spreadMs: DAY_MS,
  roundMs: 30_000,
};

/** Those worth keeping, the newest last. */
export function kept(generations: readonly Generation[], nowMs: number, terms: RotationTerms): Generation[] {
  const valid = generations
    .filter(({ endsMs }) => endsMs > nowMs)
    .sort((one, other) => one.madeMs - other.madeMs);
  const lastSettled = valid.findLastIndex(({ madeMs }) => nowMs - madeMs >= 2 * terms.spreadMs);
  return valid.slice(Math.max(0, lastSettled));
}

export function isDue(generations: readonly Generation[], nowMs: number, terms: RotationTerms): boolean {
  const newest = kept(generations, nowMs, terms).at(-1);
  return newest === undefined || nowMs - newest.madeMs >= terms.renewMs;
}

/**
 * The newest that has been trusted for long enough and that this process knows to be published; where none is, the
 * oldest, which was served before.
 */
export function served(
  generations: readonly Generation[],
  published: ReadonlySet<string>,
  nowMs: number,
  terms: RotationTerms,
): Generation | undefined {
  const candidates = kept(generations, nowMs, terms);
  return (
    candidates.findLast(
      ({ madeMs, authority }) => nowMs - madeMs >= terms.spreadMs && published.has(authority),
    ) ?? candidates[0]
  );
}
