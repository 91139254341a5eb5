/** What the tests of the datapath share: the objects as built, loaded into a bpffs of the test's own. */

import { join } from 'node:path';
import { type DatapathPrograms, MANIFEST } from '../../src/datapath/manifest.js';
import { openPrograms } from '../../src/kernel/programs.js';
import type { Cleanup } from '../unit/native-lab.js';

export const OBJECTS = join(process.cwd(), 'build/bpf');
export const MARK = { value: 0x40, mask: 0x40 } as const;

export function openIn(
  cleanup: Cleanup,
  bpffs: string,
  mark = MARK as { value: number; mask: number },
): DatapathPrograms {
  return cleanup.owned(openPrograms({ set: MANIFEST, bpffs, objects: OBJECTS, mark }));
}
