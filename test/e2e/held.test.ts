/**
 * A pod that is enrolled and comes out otherwise than it was, after a restart or while it runs, is held: its traffic
 * goes to the proxy as before until it is located anew, un-enrolled by who may say so, or has ended.
 */

import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { createNetwork, type Network } from '../lab/cni.js';
import { run, runIn, script, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { hostIndexOf, type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { OUTBOUND, staticPod, TestAgent } from './agent.js';

let lab: Lab;
let ptp: Network;
let bridge: Network;
let agent: TestAgent;
const described = new Map<string, object>();

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  ptp = createNetwork(lab, 'ptp');
  bridge = createNetwork(lab, 'bridge');
  agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' } },
    instances: [{ name: 'default', outbound: OUTBOUND[0], apps: ['web'] }],
  });
  agent.writePods([]);
  const answer = join(lab.directory, 'answer');
  writeFileSync(answer, '{"peer":"the proxy"}\n');
  const listen = 'TCP-LISTEN:15001,bind=127.0.0.1,fork,reuseaddr';
  lab.daemon(lab.node, 'proxy', 'socat', [listen, `SYSTEM:read line; cat ${answer}`]);
  await agent.start();
  await agent.adopted(1);
});

afterAll(async () => {
  await lab?.close();
});

function describePod(pod: PlainPod, more: object = {}): void {
  described.set(pod.uid, staticPod(pod, { labels: labels('web'), ...more }));
  agent.writePods([...described.values()]);
}

function labels(app: string, intercept = 'enabled'): object {
  return { app, 'nodesentry.io/intercept': intercept };
}

async function intercepted(name: string): Promise<PlainPod> {
  const pod = await runPlainPod(lab, ptp, name);
  describePod(pod);
  await agent.reaches(name, 'INTERCEPTED');
  expect(await wayOf(pod)).toBe('proxy');
  return pod;
}

async function restart(): Promise<void> {
  await agent.stop();
  await agent.start();
}

/** Where a new connection of the pod comes out. */
async function wayOf(pod: Pick<PlainPod, 'ips' | 'app'>): Promise<string> {
  const { ok, server, error } = reply(await pod.app(['dial', REMOTE[4], '80']));
  if (ok !== true) {
    return `failed: ${String(error)}`;
  }
  const { peer } = server as { peer: string };
  return peer.includes(pod.ips[4]) ? 'directly' : peer === 'the proxy' ? 'proxy' : `as ${peer}`;
}

async function heldFor(pod: PlainPod, why: string): Promise<void> {
  const { interception } = await agent.reaches(pod.name, 'DEGRADED');
  expect(interception.reason).toMatch(/^held as it was: /);
  expect(interception.reason).toContain(why);
}

/** Makes the pod's eth0 a port of a bridge of its own, which takes over its address. */
async function bridgeInside(pod: PlainPod, route: string): Promise<void> {
  await script(
    pod.netnsName,
    `ip link add br0 type bridge
     ip addr flush dev eth0 scope global
     ip link set eth0 master br0
     ip link set br0 up
     ip addr add ${pod.ips[4]}/32 dev br0
     ip route add ${pod.gateway[4]} dev br0
     ip route add ${route}`,
  );
}

const nftTable = () => runIn(lab.node, 'nft', ['list', 'table', 'inet', 'nodesentry']);

it('its eth0 made a port of a bridge of its own: held, also by the next agent, and intercepted when it is as before', async () => {
  const pod = await intercepted('bridged-inside');
  await bridgeInside(pod, `default via ${pod.gateway[4]}`);
  await heldFor(pod, 'NO_INTERFACE');
  expect(await wayOf(pod)).toBe('proxy');
  await restart();
  await heldFor(pod, 'NO_INTERFACE');
  expect(await wayOf(pod)).toBe('proxy');
  await script(
    pod.netnsName,
    `ip link del br0
     ip addr add ${pod.ips[4]}/32 dev eth0
     ip route add ${pod.gateway[4]} dev eth0
     ip route add default via ${pod.gateway[4]}`,
  );
  await agent.reaches(pod.name, 'INTERCEPTED');
  expect(await wayOf(pod)).toBe('proxy');
});

it('one of its two veths made a port of a bridge: held there, and intercepted at the other', async () => {
  const pod = await runPlainPod(lab, ptp, 'second-veth');
  const second = await bridge.attach(`${pod.netnsName}-net1`, pod.netns, undefined, 'net1');
  lab.cleanup.add('net1', () => bridge.detach(`${pod.netnsName}-net1`, pod.netns, 'net1'));
  describePod(pod, { ips: [pod.ips[4]], interfaceIps: { net1: [second[4]] } });
  await agent.reaches(pod.name, 'INTERCEPTED');
  const both = [await hostIndexOf(pod.netnsName), await hostIndexOf(pod.netnsName, 'net1')].sort();
  await bridgeInside(pod, `${REMOTE[4]} via ${pod.gateway[4]} dev br0 src ${pod.ips[4]}`);
  await heldFor(pod, 'is not found in the pod any more');
  await restart();
  await heldFor(pod, 'is not found in the pod any more');
  expect(await wayOf(pod)).toBe('proxy');
  expect(agent.endpoints()).toEqual(expect.arrayContaining(both));
});

it('the path of its network namespace not there for a while: held, and intercepted when it is back', async () => {
  const pod = await intercepted('no-path');
  const process = lab.daemon(pod.netnsName, 'no-path-process', 'sleep', ['300']);
  const app = await buildApp();
  const inside = {
    ips: pod.ips,
    app: (words: readonly string[]) =>
      tryRun('nsenter', ['-t', String(process.pid), '-n', app, ...words], { timeoutMs: 60_000 }),
  };
  await waitFor('the process to be inside', async () => (await wayOf(inside)) === 'proxy');
  await run('umount', [pod.netns]);
  await run('rm', [pod.netns]);
  try {
    await restart();
    await heldFor(pod, 'NETNS_GONE');
    expect(await wayOf(inside)).toBe('proxy');
  } finally {
    await run('touch', [pod.netns]);
    await run('mount', ['--bind', `/proc/${process.pid}/ns/net`, pod.netns]);
  }
  await agent.reaches(pod.name, 'INTERCEPTED');
  expect(await wayOf(inside)).toBe('proxy');
});

it('its interface claimed by another pod as well: who has it keeps it, the other gets nothing', async () => {
  const pod = await intercepted('owner');
  const other = { ...pod, uid: 'uid-of-claimant', name: 'claimant' };
  describePod(other);
  await heldFor(pod, 'INTERFACE_SHARED');
  await agent.reaches('claimant', 'REFUSED');
  expect(await wayOf(pod)).toBe('proxy');
  await restart();
  await heldFor(pod, 'INTERFACE_SHARED');
  await agent.reaches('claimant', 'REFUSED');
  expect(await wayOf(pod)).toBe('proxy');
  described.delete(other.uid);
  describePod(pod);
  await agent.reaches(pod.name, 'INTERCEPTED');
});

it('relabelled to an app that no instance serves: held, and let go at once by a label that says so', async () => {
  const pod = await intercepted('relabelled');
  describePod(pod, { labels: labels('of-nobody') });
  await heldFor(pod, 'NO_INSTANCE');
  expect(await wayOf(pod)).not.toBe('directly');
  await restart();
  await heldFor(pod, 'NO_INSTANCE');
  expect(await wayOf(pod)).not.toBe('directly');
  describePod(pod, { labels: labels('of-nobody', 'disabled') });
  await agent.reaches(pod.name, 'NOT_ENROLLED');
  expect(await wayOf(pod)).toBe('directly');
  expect(await nftTable()).not.toContain(pod.ips[4]);
});

it('no source names it since the agent started: it stays as it was, with its addresses in the sets', async () => {
  const pod = await intercepted('unheard');
  await agent.stop();
  agent.writeConfig({ sources: { cri: { endpoint: 'unix:///run/nobody-listens-here.sock' } } });
  await agent.start({ ready: false });
  await waitFor('the round of the new agent', async () => {
    const { blockers } = await agent.client.status();
    return blockers.length === 1 && blockers[0] === 'source cri has not synced';
  });
  await agent.adopted(1);
  const table = await nftTable();
  expect(table).toContain(pod.ips[4]);
  expect(table).toContain(pod.ips[6]);
  expect(await wayOf(pod)).toBe('proxy');
  await agent.stop();
  agent.writeConfig({});
  await agent.start();
  await agent.reaches(pod.name, 'INTERCEPTED');
});

it('it ends: everything of it goes at once, whatever the sources still say', async () => {
  const pod = await intercepted('ends');
  const ifindex = await hostIndexOf(pod.netnsName);
  describePod(pod, { labels: labels('of-nobody') });
  await heldFor(pod, 'NO_INSTANCE');
  const { ips } = pod;
  await pod.stop();
  const startedMs = performance.now();
  await waitFor('the endpoint to go', () => !agent.endpoints().includes(ifindex));
  await waitFor('the addresses to go', async () => !(await nftTable()).includes(ips[4]));
  expect(performance.now() - startedMs).toBeLessThan(3_000);
  expect(readdirSync(join(agent.bpffs, 'v1/links'))).not.toContain(`egress-${ifindex}`);
});

it('a pod that the static file does not name any more is let go at once', async () => {
  const pod = await intercepted('dropped');
  described.delete(pod.uid);
  agent.writePods([...described.values()]);
  await waitFor('the pod to be let go', async () => (await wayOf(pod)) === 'directly', 3_000);
});
