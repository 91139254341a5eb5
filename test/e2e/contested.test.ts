/**
 * Somebody on the node who takes away what is ours, again and again, and does not know that he does: a firewall that is
 * loaded anew, a routing daemon that keeps its rules alone. The judges are the wire and the proxy.
 */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { Capture, flowOf, POD_TCP } from '../lab/capture.js';
import { createNetwork } from '../lab/cni.js';
import { type Daemon, runIn, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { Load, type LoadSpec, Pauses } from '../lab/load.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { staticPod, TestAgent, TestProxy } from './agent.js';

let lab: Lab;
let agent: TestAgent;
let proxy: TestProxy;
let uplink: Capture;
let routed: PlainPod;
let bridged: PlainPod;

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  routed = await runPlainPod(lab, createNetwork(lab, 'ptp'), 'routed');
  bridged = await runPlainPod(lab, createNetwork(lab, 'bridge'), 'bridged');
  agent.writePods([staticPod(routed), staticPod(bridged)]);
  await agent.start();
  proxy = new TestProxy(lab, agent);
  await proxy.start();
  await agent.adopted(2);
  await allIntercepted();
  uplink = await Capture.start(lab, lab.node, 'uplink', POD_TCP);
}, 60_000);

afterAll(async () => {
  await lab?.close();
});

async function allIntercepted(): Promise<void> {
  for (const { name } of [routed, bridged]) {
    await agent.reaches(name, 'INTERCEPTED');
  }
}

function inNode(...words: readonly string[]): Promise<string> {
  return runIn(lab.node, words[0] ?? '', words.slice(1));
}

/** An open connection and new ones, of both pods and in both families. */
function everyTraffic(): LoadSpec[] {
  return [routed, bridged].flatMap((pod) =>
    ([4, 6] as const).flatMap((family) =>
      (['keepalive', 'connects'] as const).map((kind) => ({ pod, kind, family, everyMs: 20 })),
    ),
  );
}

async function expectNothingDirect(): Promise<void> {
  expect((await uplink.all()).map(flowOf)).toEqual([]);
}

/** A new connection of each pod, as the proxy sees it. */
async function expectAtProxy(): Promise<void> {
  for (const pod of [routed, bridged]) {
    const { localPort } = reply(await pod.app(['dial', REMOTE[4], '80'], 10_000));
    expect(await proxy.flowFrom(`${pod.ips[4]}:${localPort}`)).toMatchObject({
      originalDst: `${REMOTE[4]}:80`,
    });
  }
}

/** Does it over and over in the node, until it is stopped. */
function overAndOver(name: string, everyS: number, ...commands: readonly string[]): Daemon {
  const body = [...commands, 'echo done', `sleep ${everyS}`].join('; ');
  return lab.daemon(lab.node, name, 'bash', ['-c', `while true; do ${body}; done 2>/dev/null`]);
}

function times(daemon: Daemon): number {
  return daemon.log().split('done').length - 1;
}

/** As nftables.service and some kube-proxies do it: away with everything, and their own written again. */
const KUBE_PROXY = `
flush ruleset
table ip kube-proxy {
  chain services {
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr 10.201.0.1 tcp dport 80 dnat to ${REMOTE[4]}:80
  }
  chain masquerading {
    type nat hook postrouting priority srcnat; policy accept;
    meta mark & 0x4000 == 0x4000 masquerade
  }
}
`;

it('a firewall that flushes the ruleset ten times in five seconds: no request fails, nothing goes out directly', async () => {
  const rules = join(lab.directory, 'kube-proxy.nft');
  writeFileSync(rules, KUBE_PROXY);
  await inNode('nft', '-f', rules);
  const theirs = await inNode('nft', 'list', 'table', 'ip', 'kube-proxy');
  await waitFor('our table to be back', async () => (await tables()).includes('table inet nodesentry'));
  await allIntercepted();
  const load = await Load.start(lab, everyTraffic());
  const pauses = await Pauses.undisturbed(load, () => inNode('sleep', '1'));
  const flushing = overAndOver('flushing', 0.45, `nft -f ${rules}`);
  await waitFor('ten flushes', () => times(flushing) >= 10);
  await flushing.stop();
  pauses.check('ten flushes', await load.stop());
  await waitFor('our table to be back', async () => (await tables()).includes('table inet nodesentry'));
  expect(await inNode('nft', 'list', 'table', 'ip', 'kube-proxy')).toBe(theirs);
  await allIntercepted();
  await expectAtProxy();
  await expectNothingDirect();
}, 40_000);

async function tables(): Promise<string[]> {
  return (await inNode('nft', 'list', 'tables')).trim().split('\n');
}

it('a routing daemon that removes our rule every 100 ms: told while it does, nothing goes out directly, and over when it stops', async () => {
  const logged = agent.log().length;
  const load = await Load.start(lab, everyTraffic());
  const daemon = overAndOver('routing-daemon', 0.1, 'ip rule del pref 90', 'ip -6 rule del pref 90');
  const told = /IPv4 rule at priority 90.*put back again and again/;
  await waitFor('the pod to say so', async () => {
    const { state, reason } = (await agent.workload('routed'))?.interception ?? {};
    return state === 'DEGRADED' && told.test(reason ?? '');
  });
  const { stdout } = await agent.cli('status');
  expect(stdout).toMatch(/Ready: +NO: datapath: .*put back again and again/);
  // It stays so for as long as it goes on, however often we put the rule back.
  const from = times(daemon);
  const states = new Set<string | undefined>();
  await waitFor('the daemon to go on', async () => {
    states.add((await agent.workload('bridged'))?.interception.state);
    return times(daemon) >= from + 40;
  });
  expect([...states]).toEqual(['DEGRADED']);
  const lines = agent.log().slice(logged).trim().split('\n');
  expect(lines.length).toBeLessThan(30);
  await daemon.stop();
  const stoppedMs = performance.now();
  await allIntercepted();
  expect(performance.now() - stoppedMs).toBeLessThan(5_000);
  await load.stop();
  expect(await agent.client.status()).toMatchObject({ ready: true, blockers: [] });
  await expectAtProxy();
  await expectNothingDirect();
}, 40_000);
