import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, expect, it } from 'vitest';
import { lockHolder, takeLock } from '../../src/agent/run-lock.js';
import { Cleanup, temporaryFolder } from './native-lab.js';

const FIXTURE = fileURLToPath(new URL('fixtures/takes-lock.ts', import.meta.url));
const cleanup = new Cleanup();
afterEach(() => cleanup.run());

async function another(): Promise<ChildProcess> {
  const child = fork(FIXTURE, { execArgv: ['--import', 'tsx'] });
  cleanup.add(child, (it) => it.kill('SIGKILL'));
  await once(child, 'message');
  return child;
}

async function takes(child: ChildProcess, runDir: string, atMs = 0): Promise<string> {
  const answer = once(child, 'message');
  child.send({ runDir, atMs });
  return String((await answer)[0]);
}

const file = (runDir: string) => join(runDir, 'agent.pid');

it('the first holds it and is named, the second is told whose it is, the third gets it when it is free', () => {
  const runDir = join(temporaryFolder(cleanup), 'run');
  const lock = takeLock(runDir);
  expect(lockHolder(runDir)).toBe(process.pid);
  expect(() => takeLock(runDir)).toThrow(`an agent is already running on ${runDir} (pid ${process.pid})`);
  lock.release();
  expect(existsSync(file(runDir))).toBe(false);
  expect(lockHolder(runDir)).toBeUndefined();
  takeLock(runDir).release();
});

it('of agents that start together on a stale file exactly one gets it, every time', async () => {
  const children = await Promise.all([another(), another()]);
  for (let round = 0; round < 50; round++) {
    const runDir = temporaryFolder(cleanup);
    writeFileSync(file(runDir), '4194305 1\n'); // no process can have this pid
    const atMs = Date.now() + 10;
    const answers = await Promise.all(children.map((child) => takes(child, runDir, atMs)));
    expect(answers.sort()).toEqual(['ALREADY_RUNNING', 'locked']);
  }
});

it('one that is killed leaves its name and no lock', async () => {
  const runDir = temporaryFolder(cleanup);
  const child = await another();
  expect(await takes(child, runDir)).toBe('locked');
  expect(lockHolder(runDir)).toBe(child.pid);
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
  expect(readFileSync(file(runDir), 'utf8')).toContain(String(child.pid));
  expect(lockHolder(runDir)).toBeUndefined();
  const lock = takeLock(runDir);
  expect(lockHolder(runDir)).toBe(process.pid);
  lock.release();
});

it('an agent of before the lock, which only names itself, is respected while it lives', async () => {
  const runDir = temporaryFolder(cleanup);
  const lock = takeLock(runDir);
  const named = readFileSync(file(runDir), 'utf8');
  lock.release();
  writeFileSync(file(runDir), named);
  expect(() => takeLock(runDir)).toThrow(expect.objectContaining({ code: 'ALREADY_RUNNING' }));
});
