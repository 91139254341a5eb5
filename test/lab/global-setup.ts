/** Before and after all files of a run: what they share, and no one of them may take away. */

import { keepCniCache } from './cni-cache.js';
import { buildApp } from './image.js';
import { missingParts } from './kernel-parts.js';

export async function setup(): Promise<() => void> {
  // Once, though every project sets up anew.
  const isTold = process.env.NODESENTRY_TEST_TOLD !== undefined;
  process.env.NODESENTRY_TEST_TOLD = 'yes';
  for (const { name, files } of isTold ? [] : missingParts()) {
    process.stdout.write(
      `WITHOUT ${files.join(', ')}: this kernel has no ${name}; make test-kernels has one\n`,
    );
  }
  const restore = keepCniCache();
  await buildApp();
  return restore;
}
