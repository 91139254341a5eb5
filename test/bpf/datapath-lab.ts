/** What the tests of the datapath share: the objects as built, loaded into a bpffs of the test's own. */

import { join } from 'node:path';
import { openPrograms, type Programs } from '../../src/datapath/programs.js';
import type { Cleanup } from '../unit/native-lab.js';

export const OBJECTS = join(process.cwd(), 'build/bpf');
export const MARK = { value: 0x40, mask: 0x40 } as const;

export function openIn(
  cleanup: Cleanup,
  bpffs: string,
  mark = MARK as { value: number; mask: number },
): Programs {
  return cleanup.owned(openPrograms({ bpffs, objects: OBJECTS, mark }));
}
