/** Which address families a node has, by its settings. */

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { familiesKnown, familiesOff, familiesOn } from '../../src/kernel/families.js';

let procSys: string;
beforeEach(() => {
  procSys = mkdtempSync(join(tmpdir(), 'families-'));
});
afterEach(() => rmSync(procSys, { recursive: true }));

function set(values: Readonly<Record<'all' | 'default' | 'lo', 0 | 1>>): void {
  for (const [name, value] of Object.entries(values)) {
    const folder = join(procSys, 'net/ipv6/conf', name);
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'disable_ipv6'), `${value}\n`);
  }
}

test.each([
  { values: { all: 0, default: 0, lo: 0 }, off: [] },
  { values: { all: 0, default: 1, lo: 0 }, off: [] },
  {
    values: { all: 1, default: 1, lo: 1 },
    off: [{ family: 6, reason: 'net.ipv6.conf.all.disable_ipv6 is 1', everywhere: true, unknown: false }],
  },
  {
    values: { all: 0, default: 0, lo: 1 },
    off: [{ family: 6, reason: 'net.ipv6.conf.lo.disable_ipv6 is 1', everywhere: false, unknown: false }],
  },
  // `all` was on, and somebody has switched on what comes since.
  {
    values: { all: 1, default: 0, lo: 1 },
    off: [{ family: 6, reason: 'net.ipv6.conf.lo.disable_ipv6 is 1', everywhere: false, unknown: false }],
  },
  // What `all` was set to last is not what lo has.
  { values: { all: 1, default: 1, lo: 0 }, off: [] },
] as const)('$values', ({ values, off }) => {
  set(values);
  expect(familiesOff(procSys)).toEqual(off);
  expect(familiesOn(off)).toEqual(off.length === 0 ? [4, 6] : [4]);
  expect(familiesKnown(procSys)).toEqual([4, 6]);
});

test('a kernel without IPv6 is asked nothing about it', () => {
  expect(familiesOff(procSys)).toEqual([
    { family: 6, reason: 'the kernel has no IPv6 (ipv6.disable=1)', everywhere: true, unknown: true },
  ]);
  expect(familiesKnown(procSys)).toEqual([4]);
});
