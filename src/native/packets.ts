/** Frames sent from another network namespace. */

import { checkBytes, checkText } from './addon.js';
import { addon } from './kernel-addon.js';

/**
 * Sends each frame, from its Ethernet header on, by that interface of the namespace at `netns`: packet(7). On a thread of
 * the pool, for closing a packet socket takes 10 to 25 ms. KernelError ENOENT where the namespace is gone, ENODEV where the
 * interface is, ENETDOWN where it is down.
 */
export function sendFrames(
  netns: string,
  interfaceName: string,
  frames: readonly Uint8Array[],
): Promise<void> {
  checkText(netns, 'netns');
  checkText(interfaceName, 'interfaceName');
  for (const frame of frames) {
    checkBytes(frame, 'frame');
  }
  return addon.sendFrames(netns, interfaceName, frames);
}
