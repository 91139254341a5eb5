/** `nodesentry doctor` on nodes that have something wrong with them, each in a network namespace of its own. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { DEFAULT_OBJECTS } from '../../src/cli/options.js';
import type { CheckResult } from '../../src/doctor/check.js';
import { nodeChecks } from '../../src/doctor/node.js';
import { inNetns, type Output, run, runIn, tryRun } from '../lab/exec.js';

const CLI = join(import.meta.dirname, '../../bin/nodesentry');
const netns = `nsdoc${process.pid}`;
let directory: string;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'nodesentry-doctor-'));
  writeFileSync(join(directory, 'pods.yaml'), 'pods: []\n');
  writeFileSync(
    join(directory, 'config.yaml'),
    'sources: {static: {file: pods.yaml}}\ninstances: [{name: default, outbound: "127.0.0.1:15001"}]\n',
  );
  await run('ip', ['netns', 'add', netns]);
  await run('ip', ['-n', netns, 'link', 'set', 'lo', 'up']);
});

afterEach(async () => {
  await run('ip', ['netns', 'del', netns]);
  rmSync(directory, { recursive: true });
});

function doctor(...words: readonly string[]): Promise<Output> {
  const globals = ['--config', join(directory, 'config.yaml'), '--bpffs', join(directory, 'bpf')];
  return tryRun(...inNetns(netns, CLI, ['doctor', ...words, ...globals]));
}

async function lines(): Promise<CheckResult[]> {
  return JSON.parse((await doctor('--json')).stdout) as CheckResult[];
}

it('finds nothing wrong with a plain node, and names families without a listener', async () => {
  const { code, stdout } = await doctor();
  expect(code).toBe(0);
  expect(stdout).not.toContain('FAIL');
  expect(stdout).toContain('nobody listens at 127.0.0.1:15001');
  expect(stdout).toContain('no IPv6 address');
});

it('fails on a rule and a route of others in our table, and says what to do', async () => {
  await runIn(netns, 'ip', ['rule', 'add', 'fwmark', '0x40/0xff', 'lookup', '7340', 'priority', '90']);
  await runIn(netns, 'ip', ['route', 'add', 'blackhole', '10.0.0.0/8', 'table', '7340']);
  const found = await lines();
  const rules = found.filter(({ name }) => name === 'policy rules');
  expect(rules.map(({ status }) => status).sort()).toEqual(['fail', 'warn', 'warn']);
  expect(found.find(({ name }) => name === 'table 7340')).toMatchObject({ status: 'fail' });
  expect(found.filter(({ status, advice }) => status !== 'ok' && advice === '')).toEqual([]);
  const { code, stderr } = await doctor();
  expect(code).toBe(1);
  expect(stderr.trim().split('\n')).toHaveLength(1);
});

it("warns of others' marks on our bit, and of a firewall that drops what is untracked", async () => {
  await runIn(netns, 'nft', ['-f', '-'], {
    input: `table ip other {
      chain mangle { type filter hook prerouting priority mangle; meta mark set mark or 0x40; }
      chain input { type filter hook input priority filter; policy drop; ct state established accept; }
    }`,
  });
  const found = await lines();
  expect(found.find(({ name }) => name === 'marks of others')).toMatchObject({ status: 'warn' });
  expect(found.find(({ name }) => name === 'host firewall')).toMatchObject({
    status: 'warn',
    found: 'input drop by default',
  });
});

it('says which line of the configuration is wrong', async () => {
  writeFileSync(join(directory, 'config.yaml'), 'sources: {static: {file: pods.yaml}}\nnonsense: 1\n');
  const found = await lines();
  const [wrong] = found.filter(({ name }) => name === 'configuration');
  expect(wrong).toMatchObject({ status: 'fail' });
  expect(wrong?.found).toMatch(/config\.yaml:2: nonsense/);
});

it('fails where replies would inherit our mark', async () => {
  await runIn(netns, 'sysctl', ['-qw', 'net.ipv4.tcp_fwmark_accept=1']);
  const found = await lines();
  expect(found.find(({ name }) => name === 'mark inheritance')).toMatchObject({
    status: 'fail',
    advice: 'sysctl -w net.ipv4.tcp_fwmark_accept=0',
  });
});

it('goes on when one check breaks', async () => {
  const broken = nodeChecks('/nowhere', DEFAULT_OBJECTS, () => {
    throw new Error('no /proc');
  });
  const { runChecks } = await import('../../src/doctor/check.js');
  const results = await runChecks(broken);
  expect(results.filter(({ found }) => found.includes('no /proc')).length).toBeGreaterThan(2);
  expect(results.find(({ name }) => name === 'kernel')).toMatchObject({ status: 'ok' });
});
