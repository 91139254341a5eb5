/** `nodesentry cni`, through bin/nodesentry as it is built. */

import { chmodSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { takeLock } from '../../src/agent/run-lock.js';
import { tryRun } from '../lab/exec.js';
import { CALICO, CniNode, PLAIN } from './cni-node.js';

const CONFLIST = '10-calico.conflist';

let node: CniNode;

beforeEach(() => {
  node = new CniNode();
});

afterEach(() => node.close());

function cni(command: 'install' | 'uninstall', ...more: string[]) {
  const { confDir, binDir, stateDir } = node;
  const places = ['--conf-dir', confDir, '--bin-dir', binDir, '--state-dir', stateDir];
  return tryRun(join(process.cwd(), 'bin/nodesentry'), ['cni', command, ...places, ...more]);
}

test('install says what it did, the second time that there was nothing to do; uninstall gives all back', async () => {
  node.write(CONFLIST, CALICO);
  const file = node.path(CONFLIST);
  const binary = join(node.binDir, 'nodesentry-cni');
  expect(await cni('install', '--run-dir', '/run/ns')).toEqual({
    stdout: `${binary}: copied\n${file}: nodesentry-cni is in the chain\n`,
    stderr: '',
    code: 0,
  });
  const { plugins } = JSON.parse(node.read(CONFLIST)) as { plugins: object[] };
  expect(plugins.at(-1)).toEqual({
    type: 'nodesentry-cni',
    socket: '/run/ns/cni.sock',
    failure: 'closed',
    timeoutMs: 10_000,
    rule: join(node.stateDir, 'rule.json'),
    capabilities: { 'io.kubernetes.cri.pod-annotations': true },
  });
  expect((await cni('install', '--run-dir', '/run/ns')).stdout).toBe(
    `${file}: nodesentry-cni was in the chain already, nothing changed\n`,
  );
  expect(await cni('uninstall')).toEqual({
    stdout: `${file}: as it was before, byte for byte\n${binary}: removed\n`,
    stderr: '',
    code: 0,
  });
  expect([node.read(CONFLIST), readdirSync(node.binDir)]).toEqual([CALICO, []]);
  expect(await cni('uninstall')).toEqual({
    stdout: 'The CNI plugin is not installed.\n',
    stderr: '',
    code: 0,
  });
});

test('options reach the chain, and --json prints the report', async () => {
  node.write(CONFLIST, CALICO);
  const given = ['--socket', '/x/y.sock', '--failure', 'open', '--timeout-ms', '250', '--json'];
  expect(JSON.parse((await cni('install', ...given)).stdout)).toEqual({
    file: node.path(CONFLIST),
    change: 'added',
    binary: { path: join(node.binDir, 'nodesentry-cni'), change: 'copied' },
    released: [],
  });
  expect(node.read(CONFLIST)).toContain('"socket":"/x/y.sock","failure":"open","timeoutMs":250');
  expect(JSON.parse((await cni('uninstall', '--json')).stdout)).toEqual({
    files: [{ path: node.path(CONFLIST), change: 'restored' }],
    binary: { path: join(node.binDir, 'nodesentry-cni'), change: 'removed' },
  });
});

test('a plain configuration is said to be turned into a list beside it', async () => {
  node.write('10-lonely.conf', PLAIN);
  const { stdout } = await cni('install');
  expect(stdout).toContain(
    `${node.path('10-lonely-nodesentry.conflist')}: made from ${node.path('10-lonely.conf')}, which has no chain`,
  );
});

test('a conflist that is not JSON is one line on stderr and exit 1; nothing is changed', async () => {
  node.write(CONFLIST, '{"name": ');
  const run = await cni('install');
  expect([run.code, run.stdout]).toEqual([1, '']);
  expect(run.stderr).toMatch(/^nodesentry: .*10-calico\.conflist: not JSON: .*\n$/);
  expect([node.read(CONFLIST), readdirSync(node.root)]).toEqual(['{"name": ', ['net.d']]);
});

test('no configuration at all likewise', async () => {
  expect(await cni('install')).toEqual({
    stdout: '',
    stderr: `nodesentry: ${node.confDir}: no *.conflist, *.conf or *.json: install the primary CNI first\n`,
    code: 1,
  });
});

test('a place that cannot be written is named', async () => {
  node.write(CONFLIST, CALICO);
  node.write('a-file', '');
  const run = await cni('install', '--bin-dir', node.path('a-file'));
  expect([run.code, run.stderr]).toEqual([1, expect.stringContaining(`${node.path('a-file')}`)]);
  expect(node.read(CONFLIST)).toBe(CALICO);
});

test.each([
  [['--failure', 'ajar'], 'Allowed choices are closed, open'],
  [['--timeout-ms', '0'], 'expected a whole number from 1 to 600000'],
  [['--sockets', '/x'], "unknown option '--sockets'"],
])('wrong usage exits 2: %j', async (args, message) => {
  const run = await cni('install', ...args);
  expect([run.code, run.stderr]).toEqual([2, expect.stringContaining(message)]);
});

test('uninstall under a running agent says that it may come back', async () => {
  node.write(CONFLIST, CALICO);
  await cni('install');
  const runDir = join(node.root, 'run');
  mkdirSync(runDir);
  chmodSync(runDir, 0o755);
  const lock = takeLock(runDir);
  try {
    const { stdout } = await cni('uninstall', '--run-dir', runDir);
    expect(stdout).toContain(`The agent (pid ${process.pid}) is running: with sources.cni.install`);
  } finally {
    lock.release();
  }
});
