import { mkdtempSync, rmSync, unlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { LiveInstances } from '../../src/agent/live-instances.js';
import type { Instance } from '../../src/config/config.js';
import { loadConfig } from '../../src/config/load.js';
import { DatapathError } from '../../src/kernel/errors.js';

const DEFAULT = '{name: default, outbound: "127.0.0.1:15001"}';
const PAYMENTS = '{name: payments, apps: [pay], outbound: "127.0.0.1:16001"}';

let folder: string;
let path: string;
let events: string[];
let told: unknown[];
let refuse: Error | undefined;
let live: LiveInstances;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-live-'));
  path = join(folder, 'config.yaml');
  events = [];
  told = [];
  refuse = undefined;
  write(DEFAULT);
  const names = (list: readonly Instance[]) => list.map(({ name }) => name).join(' ');
  const tell = (fields: unknown) => void told.push(fields);
  live = new LiveInstances({
    path,
    nodeName: 'node-a',
    config: loadConfig(path, 'node-a'),
    prepare: async (list) => {
      events.push(`prepare ${names(list)} while ${names(live.current)}`);
      if (refuse !== undefined) {
        throw refuse;
      }
    },
    changed: () => void events.push(`changed ${names(live.current)}`),
    log: { info: tell, warn: tell },
  });
});

afterEach(() => rmSync(folder, { recursive: true }));

function write(instances: string, more = ''): void {
  writeFileSync(path, `sources: {static: {file: pods.yaml}}\ninstances: [${instances}]\n${more}`);
}

test('nothing happens while the file says the same', async () => {
  await live.look();
  await live.reload();
  write(DEFAULT, '# a remark\n');
  await live.look();
  expect([events, told, live.status()]).toEqual([[], [], { applied: 0, problem: undefined }]);
});

test('listeners are looked for before pods are moved', async () => {
  write(`${PAYMENTS}, ${DEFAULT}`);
  await live.look();
  expect(events).toEqual(['prepare payments default while default', 'changed payments default']);
  expect(told).toEqual([{ added: ['payments'], changed: [], removed: [] }]);
  write(`${PAYMENTS.replace('16001', '16002')}, ${DEFAULT}`);
  await live.look();
  write(DEFAULT);
  await live.look();
  expect(told.slice(1)).toEqual([
    { added: [], changed: ['payments'], removed: [] },
    { added: [], changed: [], removed: ['payments'] },
  ]);
  expect(live.status()).toEqual({ applied: 3, problem: undefined });
});

test('a mistake is told once, and the list stays', async () => {
  write(PAYMENTS.replace('outbound', 'outboard'));
  await live.look();
  await live.reload();
  expect(live.current.map(({ name }) => name)).toEqual(['default']);
  expect(live.status().problem).toMatch(/outboard.*the instances stay as they were/s);
  expect(told).toHaveLength(1);
  unlinkSync(path);
  await live.look();
  expect(live.status().problem).toContain('cannot be read');
  write(DEFAULT);
  await live.look();
  expect([events, live.status()]).toEqual([[], { applied: 0, problem: undefined }]);
});

test('where the kernel has no room for them, nothing is half applied', async () => {
  refuse = new DatapathError('LISTENER_LIMIT', 'instances: at most 1 are possible, 2 are configured');
  write(`${PAYMENTS}, ${DEFAULT}`);
  await live.look();
  expect(live.current.map(({ name }) => name)).toEqual(['default']);
  expect(live.status().problem).toContain('at most 1 are possible');
  refuse = undefined;
  await live.reload();
  expect(live.current.map(({ name }) => name)).toEqual(['payments', 'default']);
});

test('where the kernel did not answer, the next look tries again, and it is told once', async () => {
  refuse = new Error('asking which sockets listen: Interrupted system call');
  write(`${PAYMENTS}, ${DEFAULT}`);
  await live.look();
  await live.look();
  expect(told).toHaveLength(1);
  expect(live.current.map(({ name }) => name)).toEqual(['default']);
  refuse = undefined;
  await live.look();
  expect(live.current.map(({ name }) => name)).toEqual(['payments', 'default']);
  expect(live.status().problem).toBeUndefined();
});

test('what only a restart changes is named, and the instances change all the same', async () => {
  write(`${PAYMENTS}, ${DEFAULT}`, 'trustDomain: other.example\n');
  await live.look();
  expect(live.status()).toEqual({
    applied: 1,
    problem: 'trustDomain: what changed there holds after a restart of the agent',
  });
});
