/**
 * Test files that need a part of the kernel which not every machine has. Where it is missing they are left out, said aloud;
 * the machines of test/vm, which have them all, refuse to run without.
 */

import { existsSync } from 'node:fs';

export interface KernelPart {
  readonly name: string;
  readonly files: readonly string[];
}

const PARTS: readonly (KernelPart & { readonly isThere: () => boolean })[] = [
  {
    name: 'IPVS (ip_vs)',
    files: ['test/e2e/ipvs.test.ts'],
    isThere: () => existsSync('/proc/net/ip_vs'),
  },
];

const expected = process.env.NODESENTRY_TEST_ALL_PARTS !== undefined;

/** The parts that this kernel lacks. */
export function missingParts(): readonly KernelPart[] {
  const missing = PARTS.filter(({ isThere }) => !isThere());
  if (expected && missing.length > 0) {
    throw new Error(`this kernel should have ${missing.map(({ name }) => name).join(', ')}`);
  }
  return missing;
}
