/** Connections to pods that are out of the ordinary, and what stands in their way: filters of the node, its settings. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { inNetns, runIn, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { patient } from '../lab/patience.js';
import { hostIndexOf, type PlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { sized } from '../lab/size.js';
import { useScene } from './scene.js';

const PORT = '80';
const FAR = { 4: '10.199.0.2', 6: 'fd00:199::2' } as const;
const FAMILIES = [4, 6] as const;
const OPEN = sized(1_000, 10_000);
const TCP_ESTABLISHED = 1;
const BYTES = 4 * 1024 * 1024;

const scene = useScene({
  pods: [{ name: 'routed' }, { name: 'bridged', topology: 'bridge' }],
  inbound: true,
});
/** From nobody to nobody, on the client's side. */
const NO_END_ARRIVES = `table inet no-end-arrives {
  chain input {
    type filter hook input priority filter
    tcp flags & fin == fin drop
  }
  chain output {
    type filter hook output priority filter
    tcp flags & fin == fin drop
  }
}`;

const PODS = ['routed', 'bridged'] as const;

const far = async (...words: readonly string[]) =>
  reply(await tryRun(...inNetns(scene.lab.remote, await buildApp(), words), { timeoutMs: patient(60_000) }));

/** Until the test has ended; the function returned takes it back. */
async function setting(netns: string, name: string, value: string): Promise<() => Promise<unknown>> {
  const before = (await runIn(netns, 'sysctl', ['-n', name])).trim();
  await runIn(netns, 'sysctl', ['-qw', `${name}=${value}`]);
  return () => runIn(netns, 'sysctl', ['-qw', `${name}=${before}`]);
}

const node = (...words: readonly [string, ...string[]]) => runIn(scene.lab.node, words[0], words.slice(1));

/** Connections that the node tracks to this pod's server. */
const tracked = async (ip: string) =>
  (await node('cat', '/proc/net/nf_conntrack'))
    .split('\n')
    .filter(
      (line) =>
        line.includes('ESTABLISHED') && line.includes(` dst=${ip} `) && line.includes(` dport=${PORT} `),
    );

/** The pod's own. */
const connections = async (name: string) =>
  (
    await runIn((scene.pod(name) as PlainPod).netnsName, 'ss', [
      '-Htn',
      'state',
      'connected',
      `sport = :${PORT}`,
    ])
  )
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('TIME-WAIT'));

let beyond: string;

beforeAll(async () => {
  beyond = await scene.lab.narrowPath(1_300);
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

  it.each(FAMILIES)('IPv%i: by a path that carries less than the links at its ends', async (family) => {
    const ip = ips()[family];
    const words = ['fetch', ip, PORT, String(BYTES)];
    expect(
      reply(await tryRun(...inNetns(beyond, await buildApp(), words), { timeoutMs: patient(60_000) })),
    ).toMatchObject({
      ok: true,
      bytes: BYTES,
    });
  });

  it('a connection that its client resets is reset at the pod', async () => {
    expect(await far('abort', ips()[4], PORT, 'client')).toMatchObject({ ok: true });
    await waitFor('the pod to have no connection', async () => (await connections(name)).length === 0);
  });

  it('a connection that the pod resets is reset at its client', async () => {
    expect(await far('abort', ips()[6], PORT, 'server')).toMatchObject({ got: -1, error: 'ECONNRESET' });
  });

  it('a connection that both end at the same time has ended in order', async () => {
    await runIn(scene.lab.remote, 'nft', ['-f', '-'], { input: NO_END_ARRIVES });
    // Each says so before the other's word has come.
    const ended = far('end', ips()[4], PORT, '0', '200');
    await sleep(500);
    await runIn(scene.lab.remote, 'nft', ['delete', 'table', 'inet', 'no-end-arrives']);
    expect(await ended).toMatchObject({ ok: true, stateBefore: TCP_ESTABLISHED });
    await waitFor('the pod to have no connection', async () => (await connections(name)).length === 0);
  });

  it('a connection that is idle for longer than connection tracking remembers it goes on', async () => {
    const back = await setting(scene.lab.node, 'net.netfilter.nf_conntrack_tcp_timeout_established', '1');
    const control = join(scene.lab.directory, `${name}-idle`);
    try {
      const idle = scene.lab.daemon(scene.lab.remote, `${name}-idle`, await buildApp(), [
        'hold',
        ips()[4],
        PORT,
        control,
      ]);
      await idle.logged(/"localPort"/);
      expect(await tracked(ips()[4])).not.toEqual([]);
      await sleep(4_000);
      expect(await tracked(ips()[4])).toEqual([]);
      writeFileSync(control, '.');
      await idle.logged(/"ok":true,"request":0/);
      await idle.stop();
    } finally {
      await back();
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

/** A process may have no more than 20,000 files open on some machines: here the listener answers by itself. */
describe('with a proxy that has no legs to pods', () => {
  beforeAll(async () => {
    await scene.proxy.stop();
    const echo = `require('node:net')
      .createServer((socket) => socket.on('error', () => socket.destroy()).pipe(socket))
      .listen({ host: '127.0.0.1', port: 15006, backlog: 4096 })`;
    scene.lab.daemon(scene.lab.node, 'echo', process.execPath, ['-e', echo]);
    await scene.agent.adopted(1);
  });

  it.each(PODS)(
    `${OPEN} connections at once to a %s pod, each of which goes on`,
    async (name) => {
      const before = (await scene.agent.received(name)).FLOW_STARTED ?? 0;
      const ip = scene.pod(name).ips[4];
      expect(await far('many', ip, PORT, String(OPEN))).toMatchObject({ ok: true, open: OPEN });
      // A SYN that comes again counts again; one on the port of a connection that the stopped proxy has not ended yet, as
      // a packet of that.
      const started = ((await scene.agent.received(name)).FLOW_STARTED ?? 0) - before;
      expect(started).toBeGreaterThanOrEqual(OPEN * 0.99);
    },
    patient(300_000),
  );
});
