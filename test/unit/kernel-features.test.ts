/** What newer kernels have: one table, told by doctor and in docs/kernels.md. */

import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { kernel } from '../../src/doctor/node.js';
import { featuresMissing, KERNEL_FEATURES, kernelAtLeast } from '../../src/kernel/features.js';

test('docs/kernels.md has the table', () => {
  const text = readFileSync('docs/kernels.md', 'utf8');
  const from = text.indexOf('| what | since |');
  const rows = text.slice(from, text.indexOf('\n\n', from)).split('\n').slice(2);
  expect(rows).toEqual(
    KERNEL_FEATURES.map(({ name, since, use, before }) => `| ${name} | ${since} | ${use} | ${before} |`),
  );
});

test.each([
  ['6.6', '6.6.0-rc1', true],
  ['6.6', '6.12.117+deb12-cloud-amd64', true],
  ['6.6', '6.1.0-56-cloud-amd64', false],
  ['5.18', '6.1.0', true],
  ['5.18', '5.4.0', false],
])('%s and later: %s is %s', (version, running, is) => {
  expect(kernelAtLeast(version, running)).toBe(is);
});

test.each([
  ['6.18.44', []],
  ['6.5.0', ['6.6', '6.6']],
  ['6.1.0-56-cloud-amd64', ['6.6', '6.6', '6.5']],
  ['5.10.0', ['6.6', '6.6', '6.5', '5.18', '5.15', '5.18']],
])('doctor says what %s does without', (running, since) => {
  expect(featuresMissing(running).map((feature) => feature.since)).toEqual(since);
  const [first, ...rest] = kernel(running);
  expect(first).toMatchObject({ status: 'ok', found: expect.stringContaining(running) });
  expect(rest.map(({ found }) => found)).toEqual(
    featuresMissing(running).map(({ name, before }) => expect.stringMatching(text(name, before))),
  );
});

function text(name: string, before: string): RegExp {
  const literal = (words: string) => words.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&');
  return new RegExp(`${literal(name)}.*${literal(before)}`);
}

test('doctor refuses a kernel before 5.10', () => {
  expect(kernel('5.4.0')).toMatchObject([{ status: 'fail' }]);
});
