/** `nodesentry/client` as a program finds it that has the package in its node_modules: its types, and that it runs. */

import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { tryRun } from '../lab/exec.js';
import { startFixture } from './api-fixture.js';

const ROOT = join(import.meta.dirname, '../..');
const TSC = join(ROOT, 'node_modules/.bin/tsc');

const PROGRAM = `
import { once } from 'node:events';
import { ApiError, IdentityClient, type Workload } from 'nodesentry/client';

const client = new IdentityClient({ socket: process.argv[2] ?? '' });
if (!client.synced) {
  await once(client, 'synced');
}
client.on('change', ({ workload }) => workload.podName.length);
const found = client.byAddress('10.66.0.3');
const workload: Workload | undefined = found.workload;
// @ts-expect-error: a text, and so the types are there
const wrong: number | undefined = workload?.spiffeId;
// @ts-expect-error: not to be read before it is known whether there is one
found.workload.spiffeId;
const refused = await client
  .resolve({ proto: 'tcp', src: { ip: '10.9.9.9', port: 1 }, dst: { ip: '10.0.0.1', port: 80 } })
  .catch((error: unknown) => (error instanceof ApiError ? error.code : error));
console.log(workload?.spiffeId, refused);
await client.close();
`;

let folder: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-package-'));
  const home = join(folder, 'node_modules/nodesentry');
  mkdirSync(home, { recursive: true });
  copyFileSync(join(ROOT, 'package.json'), join(home, 'package.json'));
  symlinkSync(join(ROOT, 'node_modules'), join(home, 'node_modules'));
  symlinkSync(join(ROOT, 'node_modules/@types'), join(folder, 'node_modules/@types'));
  execFileSync(TSC, ['-p', join(ROOT, 'tsconfig.build.json'), '--outDir', join(home, 'dist')]);
  writeFileSync(join(folder, 'package.json'), '{"type": "module"}');
  writeFileSync(join(folder, 'program.ts'), PROGRAM);
}, 120_000);

afterAll(() => rmSync(folder, { recursive: true, force: true }));

test('the package has types for its client, and the client runs', async () => {
  const words = '--strict --module nodenext --target es2022 --types node --skipLibCheck --typeRoots';
  const places = [join(folder, 'node_modules/@types'), join(folder, 'program.ts')];
  expect(await tryRun(TSC, [...words.split(' '), ...places])).toMatchObject({ stdout: '', code: 0 });
  const agent = await startFixture();
  try {
    const { stdout, stderr } = await tryRun(process.execPath, [join(folder, 'program.js'), agent.api.path]);
    expect([stderr, stdout.trim()]).toEqual([
      '',
      'spiffe://cluster.local/ns/default/sa/web WORKLOAD_NOT_FOUND',
    ]);
  } finally {
    await agent.close();
  }
}, 60_000);
