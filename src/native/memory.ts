/** What this process holds from the C library. */

import { addon } from './kernel-addon.js';

/**
 * Gives what is free back to the kernel: malloc_trim(3). Of V8's compiler, whose threads take and free megabytes at the
 * start, the C library keeps most. False where there was nothing to give, or where the C library is none of GNU's.
 */
export function trimMemory(): boolean {
  return addon.trimMemory();
}
