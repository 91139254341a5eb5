/** Descriptors that came from the addons and are ours to close. */

import { checkFd } from './addon.js';
import { addon } from './kernel-addon.js';

/** Closing twice would close whatever has the number by then: the caller keeps count. */
export function closeFd(fd: number): void {
  checkFd(fd);
  addon.closeFd(fd);
}
