/** Memory that is free in the C library goes back to the kernel. In a process of its own, of which nothing else is held. */

import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { expect, it } from 'vitest';

/** 64 MB in pieces that the C library does not map one by one, all but the last of them free again. */
const FREED = `
  const { trimMemory } = await import(process.argv[1]);
  let pieces = Array.from({ length: 2_000 }, () => Buffer.allocUnsafeSlow(32_768).fill(1));
  const last = pieces.pop();
  pieces = [];
  gc();
  gc();
  await new Promise((done) => setTimeout(done, 100));
  const before = process.memoryUsage.rss();
  const given = trimMemory();
  console.log(JSON.stringify({ given, mebibytes: (before - process.memoryUsage.rss()) / 2 ** 20, last: last.length }));
`;

it('what is free goes back', () => {
  const addon = join(import.meta.dirname, '../../dist/native/memory.js');
  const { stdout, stderr } = spawnSync(
    process.execPath,
    ['--expose-gc', '--input-type=module', '-e', FREED, addon],
    { encoding: 'utf8' },
  );
  expect(stderr).toBe('');
  const { given, mebibytes } = JSON.parse(stdout) as { given: boolean; mebibytes: number };
  expect(given).toBe(true);
  expect(mebibytes).toBeGreaterThan(40);
});
