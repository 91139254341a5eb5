/** Work on many things without keeping everybody else from their turn. */

import { setImmediate } from 'node:timers/promises';

const TURN_MS = 2;

/** `each` for all of them, in their order; whatever else waits has its turn every few milliseconds. */
export async function inTurns<T, R>(items: readonly T[], each: (item: T) => R): Promise<R[]> {
  const results: R[] = [];
  let begun = performance.now();
  for (const item of items) {
    if (performance.now() - begun > TURN_MS) {
      await setImmediate();
      begun = performance.now();
    }
    results.push(each(item));
  }
  return results;
}
