/**
 * Test files that need a part of the kernel which not every machine has. Where it is missing they are left out, said aloud;
 * the machines of test/vm, which have them all, refuse to run without.
 */

import { existsSync } from 'node:fs';
import { tcxSupported } from '../../src/native/bpf.js';

export interface KernelPart {
  readonly name: string;
  readonly files: readonly string[];
}

interface Checked extends KernelPart {
  readonly isThere: () => boolean;
  /** The machines of test/vm may be without it: their kernels are older. */
  readonly isOptional?: true;
}

const PARTS: readonly Checked[] = [
  {
    name: 'IPVS (ip_vs)',
    files: ['test/e2e/ipvs.test.ts'],
    isThere: () => existsSync('/proc/net/ip_vs'),
  },
  {
    // What an upgrade does to filters is shown by test/bpf/attachments.test.ts and the agent's own tests.
    name: 'tcx (Linux 6.6)',
    files: ['test/bpf/migration.test.ts'],
    isThere: () => tcxSupported(),
    isOptional: true,
  },
];

const expected = process.env.NODESENTRY_TEST_ALL_PARTS !== undefined;

/** The parts that this kernel lacks. */
export function missingParts(): readonly KernelPart[] {
  const missing = PARTS.filter(({ isThere }) => !isThere());
  const needed = missing.filter(({ isOptional }) => isOptional !== true);
  if (expected && needed.length > 0) {
    throw new Error(`this kernel should have ${needed.map(({ name }) => name).join(', ')}`);
  }
  return missing;
}
