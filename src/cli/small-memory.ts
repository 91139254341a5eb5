/** For commands that run for as long as the node does, and are idle for most of it. */

import { setFlagsFromString } from 'node:v8';

/**
 * V8 reads both whenever it is about to let a part of the heap grow, so that they may be set while it runs; as early as
 * possible, for it gives back little of what it has grown to.
 */
const FLAGS = [
  // The young generation doubles while modules are loaded, to 2 × 16 MiB, and is never full again. It stays at its first
  // size of 2 × 1 MiB: collected more often, each time with less to look at.
  '--semi-space-growth-factor=1',
  // The old generation is collected when it has grown by less: it is not let grow to a multiple of what is alive.
  '--optimize-for-size',
];

/** Rather another collection of garbage than memory that others on the node could use. */
export function keepMemorySmall(): void {
  for (const flag of FLAGS) {
    setFlagsFromString(flag);
  }
}
