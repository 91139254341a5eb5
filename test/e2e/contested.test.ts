/**
 * Somebody on the node who takes away what is ours, again and again, and does not know that he does: a firewall that is
 * loaded anew, a routing daemon that keeps its rules alone. The judges are the wire and the proxy.
 */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { type Daemon, runIn, waitFor } from '../lab/exec.js';
import { REMOTE } from '../lab/lab.js';
import { Load, type LoadSpec, Pauses } from '../lab/load.js';
import { useScene } from './scene.js';

const scene = useScene({ pods: [{ name: 'routed' }, { name: 'bridged', topology: 'bridge' }] });
const pods = () => [scene.pod('routed'), scene.pod('bridged')];

async function allIntercepted(): Promise<void> {
  for (const { name } of pods()) {
    await scene.agent.reaches(name, 'INTERCEPTED');
  }
}

function inNode(...words: readonly string[]): Promise<string> {
  return runIn(scene.lab.node, words[0] ?? '', words.slice(1));
}

/** An open connection and new ones, of both pods and in both families. */
function everyTraffic(): LoadSpec[] {
  return pods().flatMap((pod) =>
    ([4, 6] as const).flatMap((family) =>
      (['keepalive', 'connects'] as const).map((kind) => ({ pod, kind, family, everyMs: 20 })),
    ),
  );
}

async function expectAtProxy(): Promise<void> {
  for (const pod of pods()) {
    await scene.expectAtProxy(pod);
  }
}

/** Does it over and over in the node, until it is stopped. */
function overAndOver(name: string, everyS: number, ...commands: readonly string[]): Daemon {
  const body = [...commands, 'echo done', `sleep ${everyS}`].join('; ');
  return scene.lab.daemon(scene.lab.node, name, 'bash', ['-c', `while true; do ${body}; done 2>/dev/null`]);
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
  const rules = join(scene.lab.directory, 'kube-proxy.nft');
  writeFileSync(rules, KUBE_PROXY);
  await inNode('nft', '-f', rules);
  const theirs = await inNode('nft', 'list', 'table', 'ip', 'kube-proxy');
  await waitFor('our table to be back', async () => (await tables()).includes('table inet nodesentry'));
  await allIntercepted();
  const load = await Load.start(scene.lab, everyTraffic());
  const pauses = await Pauses.undisturbed(load, () => inNode('sleep', '1'));
  const flushing = overAndOver('flushing', 0.45, `nft -f ${rules}`);
  await waitFor('ten flushes', () => times(flushing) >= 10);
  await flushing.stop();
  pauses.check('ten flushes', await load.stop());
  await waitFor('our table to be back', async () => (await tables()).includes('table inet nodesentry'));
  expect(await inNode('nft', 'list', 'table', 'ip', 'kube-proxy')).toBe(theirs);
  await allIntercepted();
  await expectAtProxy();
  await scene.expectNothingDirect();
}, 40_000);

async function tables(): Promise<string[]> {
  return (await inNode('nft', 'list', 'tables')).trim().split('\n');
}

it('a routing daemon that removes our rule every 100 ms: told while it does, nothing goes out directly, and over when it stops', async () => {
  const logged = scene.agent.log().length;
  const load = await Load.start(scene.lab, everyTraffic());
  const daemon = overAndOver('routing-daemon', 0.1, 'ip rule del pref 90', 'ip -6 rule del pref 90');
  const told = /IPv4 rule at priority 90.*put back again and again/;
  await waitFor('the pod to say so', async () => {
    const { state, reason } = (await scene.agent.workload('routed'))?.interception ?? {};
    return state === 'DEGRADED' && told.test(reason ?? '');
  });
  const { stdout } = await scene.agent.cli('status');
  expect(stdout).toMatch(/Ready: +NO: datapath: .*put back again and again/);
  // It stays so for as long as it goes on, however often we put the rule back.
  const from = times(daemon);
  const states = new Set<string | undefined>();
  await waitFor('the daemon to go on', async () => {
    states.add((await scene.agent.workload('bridged'))?.interception.state);
    return times(daemon) >= from + 40;
  });
  expect([...states]).toEqual(['DEGRADED']);
  const lines = scene.agent.log().slice(logged).trim().split('\n');
  expect(lines.length).toBeLessThan(30);
  await daemon.stop();
  const stoppedMs = performance.now();
  await allIntercepted();
  expect(performance.now() - stoppedMs).toBeLessThan(5_000);
  await load.stop();
  expect(await scene.agent.client.status()).toMatchObject({ ready: true, blockers: [] });
  await expectAtProxy();
  await scene.expectNothingDirect();
}, 40_000);
