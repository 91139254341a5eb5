/**
 * schemathesis reads `/openapi.json` of a real agent and asks what that says may be asked, and what it says may not: every
 * answer has to be one that it describes.
 */

import { join } from 'node:path';
import { expect, it } from 'vitest';
import { inNetns, tryRun, waitFor } from '../lab/exec.js';
import { useScene } from './scene.js';

const ROOT = join(import.meta.dirname, '../..');
const COMMAND = join(ROOT, '.cache/schemathesis/bin/schemathesis');
const CONFIG = join(import.meta.dirname, 'schemathesis.toml');
const PORT = 8_099;
const URL = `http://127.0.0.1:${PORT}`;
const OPERATIONS = 24; // without the document itself

const scene = useScene({
  pods: [{ name: 'web' }, { name: 'db' }],
  // It speaks TCP alone.
  prepare: async ({ lab }) => {
    lab.daemon(lab.node, 'socat', 'socat', [
      `TCP-LISTEN:${PORT},bind=127.0.0.1,fork,reuseaddr`,
      `UNIX-CONNECT:${join(lab.directory, 'run/http.sock')}`,
    ]);
  },
});

async function run(...words: readonly string[]) {
  const { lab } = scene;
  await waitFor('the agent over TCP', async () => {
    const { code } = await tryRun(...inNetns(lab.node, 'curl', ['-fsS', '-o', '/dev/null', `${URL}/livez`]));
    return code === 0;
  });
  const fixed = ['--seed', '1', '--generation-database', 'none', '--no-color'];
  // What it keeps of a run goes with the lab, whose folder it stands in.
  const command = `cd ${lab.directory} && exec "$@"`;
  const asked = [COMMAND, '--config-file', CONFIG, 'run', `${URL}/openapi.json`, ...fixed, ...words];
  const result = await tryRun(...inNetns(lab.node, 'bash', ['-c', command, 'bash', ...asked]), {
    timeoutMs: 110_000,
  });
  return { ...result, cases: Number(/(\d+) generated, \1 passed/.exec(result.stdout)?.[1]) };
}

/** Its output where it found something: what to ask again, and what was wrong with the answer. */
function expectNothingFound({ code, stdout, stderr }: Awaited<ReturnType<typeof run>>): void {
  expect(code === 0 ? 'nothing found' : `${stdout}\n${stderr}`).toBe('nothing found');
}

it('answers as its document says, whatever is asked', async () => {
  const result = await run('--max-examples', '40', '--exclude-path-regex', 'watch$');
  expectNothingFound(result);
  expect(result.cases).toBeGreaterThan(300);
  expect(result.stdout).toContain(`${OPERATIONS - 2} selected / ${OPERATIONS} total`);
});

it('refuses what its streams are asked in vain', async () => {
  // What they are asked in order goes on for ever.
  const result = await run(
    '--max-examples',
    '40',
    '--include-path-regex',
    'watch$',
    '--mode',
    'negative',
    '--phases',
    'coverage,fuzzing',
  );
  expectNothingFound(result);
  expect(result.cases).toBeGreaterThan(50);
});
