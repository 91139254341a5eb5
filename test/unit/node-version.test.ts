/** The suite runs on this machine's Node, and by `make test NODE=24` on the one that the image has (scripts/install-node). */

import { join } from 'node:path';
import { expect, test } from 'vitest';
import { tryRun } from '../lab/exec.js';

const ROOT = join(import.meta.dirname, '../..');
const PRINTS = 'process.stdout.write(process.version)';

test.each([
  ['node', ['-e', PRINTS]],
  ['npx', ['--no-install', 'tsx', '-e', PRINTS]],
])('%s is that of the Node that runs the tests', async (command, words) => {
  expect(await tryRun(command, words)).toMatchObject({ stdout: process.version, stderr: '' });
});

test('make knows no other Node than that of the image, and takes it from its own command line alone', async () => {
  const make = (...words: readonly string[]) =>
    tryRun(
      'make',
      ['-C', ROOT, '--no-print-directory', '--eval', 'which: ; @command -v node', 'which', ...words],
      {
        // npm sets NODE, and a make around this one hands down its words.
        env: { NODE: '/usr/bin/node', MAKEFLAGS: '', MAKELEVEL: '' },
      },
    );
  const { stdout: own } = await tryRun('sh', ['-c', 'command -v node']);
  expect(await make()).toMatchObject({ code: 0, stdout: own });
  const refused = await make('NODE=22');
  expect(refused.code).not.toBe(0);
  expect(refused.stderr).toContain('22 is not known here: this fetches Node 24');
});
