/** Which commands there are, through bin/nodesentry as it is built. */

import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';

const ROOT = join(import.meta.dirname, '../..');

function nodesentry(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(join(ROOT, 'bin/nodesentry'), args, { encoding: 'utf8' });
  return { status, stdout, stderr };
}

/** As their own files name them. */
function commands(): string[] {
  const folder = join(ROOT, 'src/cli');
  return readdirSync(folder).flatMap((file) => {
    const exported = readFileSync(join(folder, file), 'utf8')
      .split(/^export function \w+Command\(/m)
      .slice(1);
    return exported.flatMap((text) => /new Command\('([a-z-]+)'\)/.exec(text)?.[1] ?? []);
  });
}

test('the help names every command', () => {
  const { stdout } = nodesentry('--help');
  const named = [...stdout.matchAll(/^ {2}([a-z][a-z-]+)\b.* {2}/gm)].map(([, name]) => name);
  expect(commands().length).toBeGreaterThan(15);
  expect(named.filter((name) => name !== 'help').sort()).toEqual(commands().sort());
});

test.each(commands())('%s is loaded by its name', (name) => {
  expect(nodesentry('help', name).stdout).toMatch(new RegExp(`^Usage: nodesentry ${name} `));
});

test('a folder that is called like a command is none', () => {
  const { status, stderr } = nodesentry('--run-dir', 'agent', 'status');
  expect({ status, stderr }).toMatchObject({ status: 1, stderr: expect.stringContaining('agent/http.sock') });
});

test('of a word that is no command, the one that was meant is named', () => {
  const { status, stderr } = nodesentry('agnet');
  expect({ status, stderr }).toMatchObject({ status: 2, stderr: expect.stringContaining('agent') });
});
