/** Work on many things without keeping everybody else from their turn. */

import { setImmediate } from 'node:timers/promises';

/** A few milliseconds of what is done here for each. */
const IN_A_ROW = 100;

/** `each` for all of them, in their order; whatever else waits has its turn after every hundred. */
export async function inTurns<T, R>(items: readonly T[], each: (item: T) => R): Promise<R[]> {
  const results: R[] = [];
  for (let from = 0; from < items.length; from += IN_A_ROW) {
    if (from > 0) {
      await setImmediate();
    }
    for (const item of items.slice(from, from + IN_A_ROW)) {
      results.push(each(item));
    }
  }
  return results;
}
