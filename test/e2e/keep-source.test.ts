/** Proxies that connect from the client's own address, run with the files of examples/: it is what the pod sees. */

import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Containerd } from '../lab/containerd.js';
import { type Daemon, inNetns, runIn, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { MicroVms } from '../lab/microvm.js';
import { type LabPod, reply, type Topology } from '../lab/pod.js';
import { RUNTIMES } from '../lab/runtimes.js';
import { staticPod, TestAgent, TestProxy } from './agent.js';
import { BOTH_WAYS, INBOUND_WORDS } from './scene.js';

const EXAMPLES = join(import.meta.dirname, '../../examples');
const ENVOY = join(import.meta.dirname, '../../.cache/bin/envoy');
const FAMILIES = [4, 6] as const;
const FAR = { 4: '10.199.0.2', 6: 'fd00:199::2' } as const;
const PORT = 80;
const BYTES = 4 * 1024 * 1024;
/** From which a connection takes its port: the node's are none that a client has, unless a test says so. */
const CLIENT_PORTS = [32_768, 60_999] as const;
const NODE_PORTS = [20_000, 29_999] as const;

const PROXIES = [
  {
    name: 'HAProxy',
    command: 'haproxy',
    words: ['-f', join(EXAMPLES, 'haproxy-inbound.cfg')],
    sharedPort: 40_000,
  },
  {
    name: 'Envoy',
    command: ENVOY,
    // A hot restart would be shared with the Envoys of other namespaces.
    words: [
      '-c',
      join(EXAMPLES, 'envoy-inbound.yaml'),
      '--disable-hot-restart',
      '--file-flush-interval-msec',
      '50',
    ],
    sharedPort: 40_010,
  },
] as const;

const at = (ip: string, port: unknown) => (ip.includes(':') ? `[${ip}]:${port}` : `${ip}:${port}`);
const isFrom = (peer: string, ip: string) => peer.startsWith(ip.includes(':') ? `[${ip}]:` : `${ip}:`);
const isNodePort = (peer: string) => {
  const port = Number(peer.slice(peer.lastIndexOf(':') + 1));
  return port >= NODE_PORTS[0] && port <= NODE_PORTS[1];
};
const setPorts = (netns: string, [first, last]: readonly [number, number]) =>
  runIn(netns, 'sysctl', ['-qw', `net.ipv4.ip_local_port_range=${first} ${last}`]);
const endsOf = (dialled: Record<string, unknown>) => dialled.server as { peer: string; local: string };

describe.each(['ptp', 'bridge'] as const)('%s pods', (topology: Topology) => {
  let lab: Lab;
  let agent: TestAgent;
  const pods = new Map<string, LabPod>();
  const pod = (name: string) => pods.get(name) as LabPod;

  beforeAll(async () => {
    lab = await Lab.create();
    await setPorts(lab.node, NODE_PORTS);
    await lab.serve();
    const containerd = await Containerd.start(lab, topology);
    const microvms = new MicroVms(lab, topology, containerd.network);
    agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } }, instances: [BOTH_WAYS] });
    const started = RUNTIMES.map((runtime) =>
      runtime === 'rund' ? microvms.runPod({ name: runtime }) : containerd.runPod({ name: runtime, runtime }),
    );
    for (const one of await Promise.all(started)) {
      pods.set(one.name, one);
      expect(reply(await one.app(['server', String(PORT)]))).toMatchObject({ serving: true });
    }
    agent.writePods([...pods.values()].map((one) => staticPod(one)));
    await agent.start();
    await Promise.all(RUNTIMES.map((name) => agent.reaches(name, 'INTERCEPTED')));
  });

  afterAll(async () => {
    await lab?.close();
  });

  const far = async (...words: readonly string[]) =>
    reply(await tryRun(...inNetns(lab.remote, await buildApp(), words)));

  async function keepsSource(name: string, family: 4 | 6): Promise<string> {
    const { ips } = pod(name);
    const dialled = await far('dial', ips[family], String(PORT));
    expect(dialled).toMatchObject({ ok: true });
    const { peer, local } = endsOf(dialled);
    expect(isFrom(peer, FAR[family])).toBe(true);
    // The address only: the connection is the proxy's own.
    expect(isNodePort(peer)).toBe(true);
    expect(local).toBe(at(ips[family], PORT));
    await fetches(name, family);
    return at(FAR[family], dialled.localPort);
  }

  async function fetches(name: string, family: 4 | 6): Promise<void> {
    const fetched = await far('fetch', pod(name).ips[family], String(PORT), String(BYTES));
    expect(fetched).toMatchObject({ ok: true, bytes: BYTES });
  }

  /** Of two ports to choose from, Linux takes the even one first: at the client, and at the proxy. */
  async function sharesPort(name: string, family: 4 | 6, port: number): Promise<void> {
    const choice = async (first: number) => {
      await setPorts(lab.node, [first, first + 1]);
      await setPorts(lab.remote, [first, first + 1]);
    };
    try {
      await choice(port);
      const dialled = await far('dial', pod(name).ips[family], String(PORT));
      expect(dialled).toMatchObject({ ok: true, localPort: port });
      expect(endsOf(dialled).peer).toBe(at(FAR[family], port));
      await choice(port + 2);
      await fetches(name, family);
    } finally {
      await setPorts(lab.node, NODE_PORTS);
      await setPorts(lab.remote, CLIENT_PORTS);
    }
  }

  describe.each(PROXIES)('$name', ({ name, command, words, sharedPort }) => {
    let proxy: Daemon;

    beforeAll(async () => {
      proxy = lab.daemon(lab.node, `${name}-${topology}`, command, words);
      await agent.adopted(2);
    });

    afterAll(async () => {
      await proxy?.stop();
      await agent.adopted(0);
    });

    describe.each(RUNTIMES)('%s', (runtime) => {
      it.each(FAMILIES)('IPv%i: the pod sees the client, and the access log has both', async (family) => {
        const peer = await keepsSource(runtime, family);
        const line = `peer=${peer} dialled=${at(pod(runtime).ips[family], PORT)}`;
        // HAProxy writes IPv6 addresses without brackets.
        await waitFor('the line in the access log', () =>
          proxy.log().replaceAll(/[[\]]/g, '').includes(line.replaceAll(/[[\]]/g, '')),
        );
      });

      it.each(FAMILIES)("IPv%i: the proxy may happen to take the client's own port", (family) =>
        sharesPort(runtime, family, sharedPort),
      );
    });
  });

  describe('the reference proxy', () => {
    let proxy: TestProxy;

    beforeAll(async () => {
      proxy = new TestProxy(lab, agent);
      await proxy.start(...INBOUND_WORDS, '--keep-source');
      await agent.adopted(4);
    });

    describe.each(RUNTIMES)('%s', (runtime) => {
      it.each(FAMILIES)('IPv%i: the pod sees the client', async (family) => {
        const peer = await keepsSource(runtime, family);
        expect(await proxy.flowFrom(peer)).toMatchObject({
          direction: 'INGRESS',
          originalDst: at(pod(runtime).ips[family], PORT),
        });
      });

      it.each(FAMILIES)('IPv%i: outbound too, the server sees the pod', async (family) => {
        const dialled = reply(await pod(runtime).app(['dial', REMOTE[family], String(PORT)]));
        expect(dialled).toMatchObject({ ok: true });
        const { peer } = endsOf(dialled);
        expect(isFrom(peer, pod(runtime).ips[family])).toBe(true);
        expect(isNodePort(peer)).toBe(true);
        expect(await proxy.flowFrom(at(pod(runtime).ips[family], dialled.localPort))).toMatchObject({
          direction: 'EGRESS',
          originalDst: at(REMOTE[family], PORT),
        });
        const fetch = ['fetch', REMOTE[family], String(PORT), String(BYTES)];
        expect(reply(await pod(runtime).app(fetch))).toMatchObject({ ok: true, bytes: BYTES });
      });

      it.each(FAMILIES)("IPv%i: the proxy may happen to take the client's own port", (family) =>
        sharesPort(runtime, family, 40_020),
      );
    });
  });
});
