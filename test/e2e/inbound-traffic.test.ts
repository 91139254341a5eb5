/** Connections to pods that are out of the ordinary, and what stands in their way: filters of the node, its settings. */

import { beforeAll, describe, expect, it } from 'vitest';
import { inNetns, runIn, tryRun } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { patient } from '../lab/patience.js';
import { hostIndexOf, type PlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { useScene } from './scene.js';

const PORT = '80';
const FAR = { 4: '10.199.0.2', 6: 'fd00:199::2' } as const;
const FAMILIES = [4, 6] as const;
const BYTES = 4 * 1024 * 1024;

const scene = useScene({
  pods: [{ name: 'routed' }, { name: 'bridged', topology: 'bridge' }],
  inbound: true,
});
const PODS = ['routed', 'bridged'] as const;

const far = async (...words: readonly string[]) =>
  reply(await tryRun(...inNetns(scene.lab.remote, await buildApp(), words), { timeoutMs: patient(60_000) }));

/** Until the test has ended; the function returned takes it back. */
async function setting(netns: string, name: string, value: string): Promise<() => Promise<unknown>> {
  const before = (await runIn(netns, 'sysctl', ['-n', name])).trim();
  await runIn(netns, 'sysctl', ['-qw', `${name}=${value}`]);
  return () => runIn(netns, 'sysctl', ['-qw', `${name}=${before}`]);
}

beforeAll(async () => {
  for (const name of PODS) {
    expect(reply(await scene.pod(name).app(['server', PORT]))).toMatchObject({ serving: true });
  }
});

describe.each(PODS)('to a %s pod', (name) => {
  const ips = () => scene.pod(name).ips;
  const started = async () => (await scene.agent.received(name)).FLOW_STARTED ?? 0;

  it.each(FAMILIES)('IPv%i: with SYN cookies', async (family) => {
    const back = await setting(scene.lab.node, 'net.ipv4.tcp_syncookies', '2');
    const before = await started();
    expect(await far('dial', ips()[family], PORT)).toMatchObject({ ok: true });
    expect(await started()).toBe(before + 1);
    await back();
  });

  it.each(FAMILIES)('IPv%i: again and again from the same port', async (family) => {
    const again = await far('reuse', ips()[family], PORT, '33333', '5');
    expect(again).toMatchObject({ ok: true, failures: 0 });
    const seen = scene.proxy
      .flows()
      .filter(({ peer }) => peer.startsWith(family === 4 ? `${FAR[4]}:33333` : `[${FAR[6]}]:33333`));
    expect(seen.length).toBeGreaterThanOrEqual(5);
  });

  it.each(FAMILIES)('IPv%i: with a smaller MTU than the node’s', async (family) => {
    const { netnsName } = scene.pod(name) as PlainPod;
    const index = await hostIndexOf(netnsName);
    const links = JSON.parse(await runIn(scene.lab.node, 'ip', ['-j', 'link'])) as {
      ifindex: number;
      ifname: string;
    }[];
    const host = links.find(({ ifindex }) => ifindex === index)?.ifname ?? '';
    for (const mtu of ['1300', '1500']) {
      await runIn(netnsName, 'ip', ['link', 'set', 'eth0', 'mtu', mtu]);
      await runIn(scene.lab.node, 'ip', ['link', 'set', host, 'mtu', mtu]);
      expect(await far('fetch', ips()[family], PORT, String(BYTES))).toMatchObject({
        ok: true,
        bytes: BYTES,
      });
      expect(await far('push', ips()[family], PORT, String(BYTES))).toMatchObject({ ok: true });
    }
  });

  it('with src_valid_mark, which WireGuard sets, and a reverse-path check', async () => {
    const undo = [
      await setting(scene.lab.node, 'net.ipv4.conf.all.src_valid_mark', '1'),
      await setting(scene.lab.node, 'net.ipv4.conf.all.rp_filter', '2'),
    ];
    try {
      await expect
        .poll(() => far('dial', ips()[4], PORT), { timeout: patient(30_000), interval: 500 })
        .toMatchObject({ ok: true });
      expect(await far('fetch', ips()[4], PORT, String(BYTES))).toMatchObject({ ok: true, bytes: BYTES });
    } finally {
      for (const back of undo) {
        await back();
      }
    }
  });

  it('what a policy of the CNI in FORWARD refuses does not reach the proxy either', async () => {
    const before = await started();
    await runIn(scene.lab.node, 'nft', ['-f', '-'], {
      input: `table inet of-the-cni { chain forward { type filter hook forward priority filter;
        ip daddr ${ips()[4]} tcp dport 80 reject with tcp reset
        ip6 daddr ${ips()[6]} tcp dport 80 reject with tcp reset
        }
      }`,
    });
    try {
      for (const family of FAMILIES) {
        expect(await far('dial', ips()[family], PORT)).toMatchObject({ ok: false, error: 'ECONNREFUSED' });
      }
      expect(await started()).toBe(before);
    } finally {
      await runIn(scene.lab.node, 'nft', ['delete', 'table', 'inet', 'of-the-cni']);
    }
    expect(await far('dial', ips()[4], PORT)).toMatchObject({ ok: true });
  });
});
