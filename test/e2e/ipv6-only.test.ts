/** A node and pods that have no IPv4 but the node's loopback. */

import { existsSync, readdirSync } from 'node:fs';
import { afterAll, beforeAll, expect, it } from 'vitest';
import type { CheckResult } from '../../src/doctor/check.js';
import { attachedOn } from '../lab/attached.js';
import { Capture, POD_TCP } from '../lab/capture.js';
import { inNetns, run, runIn, script, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type LabPod, reply } from '../lab/pod.js';
import { staticPod, TestAgent, TestProxy } from './agent.js';

const LISTENER = '[::1]:15001';

let lab: Lab;
let agent: TestAgent;
let proxy: TestProxy;
let web: LabPod;
let uplink: Capture;
let before: Record<string, string>;

beforeAll(async () => {
  lab = await Lab.create();
  await script(lab.node, 'ip -4 addr flush dev uplink');
  await script(lab.remote, 'ip -4 addr flush dev eth0');
  await lab.serve();
  web = await podWithIpv6('web', 2);
  // Whoever reads the capture must be able to see a pod that does escape.
  uplink = await Capture.start(lab, lab.node, 'uplink', POD_TCP);
  expect(await dial(web)).toMatchObject({ ok: true, server: { peer: expect.stringContaining(web.ips[6]) } });
  expect(await escaped()).not.toEqual([]);
  await uplink.stop();
  uplink = await Capture.start(lab, lab.node, 'uplink', POD_TCP);
  before = await node();

  agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' } },
    instances: [{ name: 'default', outbound: [LISTENER] }],
  });
  agent.writePods([described(web)]);
  await agent.start();
  proxy = new TestProxy(lab, agent);
  await proxy.start();
  await agent.adopted(1);
}, 120_000);

afterAll(async () => {
  await lab?.close();
});

/** A namespace and a veth, and nothing of IPv4 at either end of it. */
async function podWithIpv6(name: string, host: number): Promise<LabPod> {
  const netnsName = `nsl-${lab.id}-${name}`;
  const ip = `fd00:66:6::${host}`;
  await run('ip', ['netns', 'add', netnsName]);
  const stop = () => run('ip', ['netns', 'del', netnsName]).then(() => undefined);
  lab.cleanup.add(`pod ${name}`, stop);
  await script(
    lab.node,
    `ip link add veth-${name} type veth peer name eth0 netns ${netnsName}
     ip link set veth-${name} up
     ip addr add fe80::1/64 dev veth-${name} nodad
     ip route add ${ip}/128 dev veth-${name}`,
  );
  await script(
    netnsName,
    `ip link set lo up
     ip link set eth0 up
     ip addr add ${ip}/128 dev eth0 nodad
     ip route add default via fe80::1 dev eth0`,
  );
  return {
    ...{ name, namespace: 'default', uid: `uid-${name}`, runtime: 'runc', ips: { 4: '', 6: ip } },
    netns: `/run/netns/${netnsName}`,
    app: async (words, timeoutMs = 60_000) =>
      tryRun(...inNetns(netnsName, await buildApp(), words), { timeoutMs }),
    stop,
  };
}

function described(pod: LabPod): object {
  return staticPod(pod, { ips: [pod.ips[6]] });
}

async function dial(pod: LabPod): Promise<ReturnType<typeof reply>> {
  return reply(await pod.app(['dial', REMOTE[6], '80'], 15_000));
}

async function escaped(): Promise<string[]> {
  return uplink.flows(6);
}

/** All that an agent puts into a node, and where an address of IPv4 would be. */
async function node(): Promise<Record<string, string>> {
  const show = (command: string, ...args: string[]) => runIn(lab.node, command, args);
  return {
    addresses4: await show('ip', '-4', '-o', 'addr'),
    rules4: await show('ip', 'rule'),
    rules6: await show('ip', '-6', 'rule'),
    routes4: await show('ip', 'route', 'show', 'table', 'all'),
    routes6: await show('ip', '-6', 'route', 'show', 'table', 'all'),
    nft: await show('nft', 'list', 'ruleset'),
    qdiscs: await show('tc', 'qdisc', 'show'),
    attached: JSON.stringify(await attachedOn(lab)),
    sysctls: (await show('sysctl', '-ar', '^net\\.(ipv4|ipv6)\\.conf\\.')).trim(),
    bpffs: agent === undefined || !existsSync(agent.bpffs) ? '' : readdirSync(agent.bpffs).join(' '),
  };
}

it('has no IPv4 address but that of loopback', () => {
  expect(before.addresses4).toMatch(/^1: lo +inet 127\.0\.0\.1\/8 [^\n]+\n[^\n]*\n?$/);
});

it('is ready, and intercepts a pod that has IPv6 alone', async () => {
  expect(await agent.client.status()).toMatchObject({ ready: true, blockers: [], familiesOff: [] });
  expect(await agent.reaches('web', 'INTERCEPTED')).toMatchObject({ interception: { reason: '' } });
  const dialled = await dial(web);
  expect(dialled).toMatchObject({ ok: true });
  expect(JSON.stringify(dialled.server)).not.toContain(web.ips[6]);
  expect(await proxy.flowFrom(`[${web.ips[6]}]:${dialled.localPort}`)).toMatchObject({
    originalDst: `[${REMOTE[6]}]:80`,
    workload: 'default/web',
    assurance: 'DATAPATH_RECORDED',
  });
  expect(await escaped()).toEqual([]);
});

it('says who it is, as any other', async () => {
  const { localPort } = await dial(web);
  const src = { ip: web.ips[6], port: Number(localPort) };
  const dst = { ip: REMOTE[6], port: 80 };
  expect(await agent.client.resolve({ proto: 'tcp', src, dst })).toMatchObject({
    workload: { podName: 'web', uid: web.uid, state: 'LIVE' },
    assurance: 'DATAPATH_RECORDED',
  });
});

it('fails no check of doctor; of IPv4 it and status say only that no proxy is configured for it', async () => {
  const { stdout } = await agent.cli('status');
  expect(stdout).toMatch(/^Ready: +yes$/m);
  expect(stdout).toMatch(/default +outbound +IPv6 +\[::1\]:15001 +yes +reach /);
  expect(stdout).toMatch(/default +outbound +IPv4 +not configured +NO +are reset/);
  expect((await agent.cli('pods')).stdout).toMatch(
    /web +runc +INTERCEPTED +outbound only +veth-web +routed +fd00:66:6::2 /,
  );
  const checks = JSON.parse((await agent.cli('doctor', '--json')).stdout) as CheckResult[];
  expect(checks.filter(({ status }) => status !== 'ok')).toMatchObject([
    { name: 'listeners', status: 'warn', found: 'default: outbound: no IPv4 address' },
  ]);
});

it('cleanup leaves nothing, and the pod goes on under its own address', async () => {
  const during = await node();
  for (const piece of ['rules6', 'routes6', 'nft', 'attached', 'bpffs']) {
    expect(during[piece], piece).not.toBe(before[piece]);
  }
  await proxy.stop();
  await agent.stop();
  expect(await agent.cli('cleanup')).toMatchObject({ code: 0, stderr: '' });
  expect(await node()).toEqual(before);
  await waitFor('the pod to be seen', async () =>
    JSON.stringify((await dial(web)).server ?? '').includes(web.ips[6]),
  );
  expect(await escaped()).not.toEqual([]);
});
