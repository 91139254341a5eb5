/** Before and after all files of a run: what they share, and no one of them may take away. */

import { keepCniCache } from './cni-cache.js';
import { buildApp } from './image.js';

export async function setup(): Promise<() => void> {
  const restore = keepCniCache();
  await buildApp();
  return restore;
}
