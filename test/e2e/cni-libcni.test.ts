/** The real agent behind the real plugin behind the real libcni (1.1.0): ADD, CHECK, STATUS, GC and DEL of a runtime. */

import { randomUUID } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { install } from '../../src/cni/install.js';
import { cnitool, type Libcni, type LibcniPod, prepareLibcni, primaryPtp } from '../lab/cnitool.js';
import { inNetns, type Output, run, runIn, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { reply } from '../lab/pod.js';
import { PLUGIN } from '../unit/cni-plugin-lab.js';
import { TestAgent, TestProxy } from './agent.js';

/** What starting two processes may add to a promised time on a busy machine. */
const SLACK_MS = 500;

let lab: Lab;
let agent: TestAgent;
let proxy: TestProxy;
let libcni: Libcni;
const pods: LibcniPod[] = [];

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  agent = new TestAgent(lab, { sources: { cni: {} } });
  await agent.start();
  proxy = new TestProxy(lab, agent);
  await proxy.start('--allow-unidentified');
  await agent.adopted(2);

  const folder = join(lab.directory, 'libcni');
  mkdirSync(folder);
  libcni = prepareLibcni(folder, lab.node, 'chain');
  const list = { cniVersion: '1.1.0', name: 'chain', plugins: [primaryPtp(folder)] };
  writeFileSync(join(libcni.confDir, '10-ptp.conflist'), JSON.stringify(list));
  const { confDir, binDir } = libcni;
  const socket = join(agent.runDir, 'cni.sock');
  const stateDir = join(folder, 'state');
  install({ confDir, binDir, stateDir, plugin: PLUGIN, socket, failure: 'closed', timeoutMs: 10_000 });

  for (const name of ['web-0', 'web-1']) {
    const netns = `nsl-${lab.id}-${name}`;
    await run('ip', ['netns', 'add', netns]);
    lab.cleanup.add(netns, () => run('ip', ['netns', 'del', netns]));
    await runIn(netns, 'sysctl', ['-qw', 'net.ipv6.conf.default.accept_dad=0']);
    const annotations = { 'nodesentry.io/intercept': 'enabled' };
    pods.push({ netns, uid: randomUUID(), namespace: 'shop', name, annotations });
  }
}, 120_000);

afterAll(async () => {
  await lab?.close();
});

const first = () => pods[0] as LibcniPod;

/** Of the first pod, where none is named. */
function call(command: string, pod = first()): Promise<Output> {
  return cnitool(libcni, command, pod);
}

it('ADD: the pod is intercepted when libcni returns', async () => {
  for (const pod of pods) {
    const { code, stdout, stderr } = await call('add', pod);
    expect([code, stderr]).toEqual([0, '']);
    const { ips } = JSON.parse(stdout) as { ips: { address: string }[] };
    const ip = ips[0]?.address.split('/')[0];
    const dialled = reply(await tryRun(...inNetns(pod.netns, await buildApp(), ['dial', REMOTE[4], '80'])));
    expect(dialled).toMatchObject({ ok: true });
    expect(await proxy.flowFrom(`${ip}:${dialled.localPort}`)).toMatchObject({
      originalDst: `${REMOTE[4]}:80`,
    });
  }
});

it('CHECK: passes, and fails with the reason while something takes the packets of the pod away', async () => {
  expect(await call('check')).toEqual({ code: 0, stdout: '', stderr: '' });
  await runIn(lab.node, 'ip', ['route', 'add', 'default', 'via', '10.199.0.2', 'table', '9999']);
  await runIn(lab.node, 'ip', ['rule', 'add', 'pref', '80', 'fwmark', '0x40/0x40', 'lookup', '9999']);
  try {
    await agent.reaches(first().name, 'DEGRADED');
    const failed = await call('check');
    expect([failed.code, failed.stderr]).toEqual([1, expect.stringContaining('not delivered by table 7340')]);
  } finally {
    await runIn(lab.node, 'ip', ['rule', 'del', 'pref', '80']);
    await runIn(lab.node, 'ip', ['route', 'flush', 'table', '9999']);
  }
  await agent.reaches(first().name, 'INTERCEPTED');
  expect(await call('check')).toEqual({ code: 0, stdout: '', stderr: '' });
});

it('STATUS: passes, and fails within a second while the agent hangs', async () => {
  expect(await call('status')).toEqual({ code: 0, stdout: '', stderr: '' });
  process.kill(agent.pid, 'SIGSTOP');
  try {
    const startedMs = performance.now();
    const failed = await call('status');
    expect(performance.now() - startedMs).toBeLessThan(1_000 + SLACK_MS);
    expect([failed.code, failed.stderr]).toEqual([1, expect.stringContaining('cni.sock')]);
  } finally {
    process.kill(agent.pid, 'SIGCONT');
  }
  expect(await call('status')).toEqual({ code: 0, stdout: '', stderr: '' });
});

it('DEL: the pod is forgotten; while the agent hangs it is deleted all the same, half a second later', async () => {
  process.kill(agent.pid, 'SIGSTOP');
  try {
    const startedMs = performance.now();
    expect(await call('del')).toMatchObject({ code: 0, stdout: '' });
    expect(performance.now() - startedMs).toBeLessThan(500 + SLACK_MS);
  } finally {
    process.kill(agent.pid, 'SIGCONT');
  }
  await waitFor('the pod to be forgotten', async () => (await agent.workload(first().name)) === undefined);
  await waitFor('its endpoint to go', () => agent.endpoints().length === 1);
});

it('GC: what libcni does not know is taken out of the kernel', async () => {
  expect(await call('add')).toMatchObject({ code: 0 });
  expect(agent.endpoints()).toHaveLength(2);
  // cnitool names no attachment as valid: libcni deletes all that it remembers, and asks the plugins.
  expect(await call('gc')).toMatchObject({ code: 0, stdout: '' });
  await waitFor('their endpoints to go', () => agent.endpoints().length === 0);
  await waitFor('the pod to be forgotten', async () => (await agent.workload(first().name)) === undefined);
});
