/** What callers of HTTP send besides questions, checked key by key. */

import type { WatchFrom } from '../identity/watch.js';
import { checkedKeys, epochOf, invalid, revisionOf } from './checks.js';

export const MAX_BATCH = 256;
export const MAX_FLOWS = 10_000;
const DEFAULT_FLOWS = 100;
/** Of a label, or the name of a pod's owner. */
export const MAX_APP = 253;

/** The queries of a batch, unchecked: each is answered for itself. Throws IdentityError KEY_INVALID. */
export function batchQueries(body: unknown): readonly unknown[] {
  const { queries } = checkedKeys(body, ['queries'], '');
  if (!Array.isArray(queries) || queries.length > MAX_BATCH) {
    throw invalid('queries', `a list of at most ${MAX_BATCH} queries`, queries);
  }
  return queries;
}

/** The default where none is given. Throws IdentityError KEY_INVALID. */
export function parseLimit(given: unknown): number {
  const { limit } = checkedKeys(given, ['limit'], '');
  if (limit === undefined) {
    return DEFAULT_FLOWS;
  }
  const value = typeof limit === 'string' && /^\d{1,5}$/.test(limit) ? Number(limit) : 0;
  if (value < 1 || value > MAX_FLOWS) {
    throw invalid('limit', `a number from 1 to ${MAX_FLOWS}`, limit);
  }
  return value;
}

/** Undefined: every app. Throws IdentityError KEY_INVALID. */
export function parseApp(given: unknown): string | undefined {
  const { app } = checkedKeys(given, ['app'], '');
  if (app !== undefined && (typeof app !== 'string' || app === '' || app.length > MAX_APP)) {
    throw invalid('app', `a text of 1 to ${MAX_APP} characters`, app);
  }
  return app;
}

/** Throws IdentityError KEY_INVALID, which names the parameter. */
export function parseWatchFrom(given: unknown): WatchFrom {
  const { epoch, since } = checkedKeys(given, ['epoch', 'since'], '');
  return {
    epoch: epoch === undefined ? undefined : epochOf(epoch, 'epoch'),
    since: since === undefined ? undefined : revisionOf(since, 'since'),
  };
}

/** For what takes no parameters. Throws IdentityError KEY_INVALID. */
export function refuseKeys(given: unknown): void {
  checkedKeys(given, [], '');
}
