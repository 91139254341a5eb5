/**
 * Two sizes of the same test: what `make test` needs to prove a change, and what `make test-long` runs. Set by
 * NODESENTRY_TEST_SIZE, `quick` (default) or `full`.
 */

const size = process.env.NODESENTRY_TEST_SIZE ?? 'quick';
if (size !== 'quick' && size !== 'full') {
  throw new Error(`NODESENTRY_TEST_SIZE is quick or full, not ${size}`);
}

export const FULL_SIZE = size === 'full';

export function sized<T>(quick: T, full: T): T {
  return FULL_SIZE ? full : quick;
}
