/** Advisory locks on whole files. */

import { checkFd } from './addon.js';
import { addon } from './kernel-addon.js';

/**
 * An exclusive lock on the file behind `fd`: flock(2). It lasts as long as that open file, so it ends with the process.
 * False where another open file has one.
 */
export function tryLock(fd: number): boolean {
  checkFd(fd);
  return addon.tryLock(fd);
}
