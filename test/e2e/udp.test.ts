/** Datagrams to ports that are named, of pods with a routed interface and at a bridge. */

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { tcxSupported } from '../../src/native/bpf.js';
import { createNetwork } from '../lab/cni.js';
import { type Daemon, inNetns, runIn, script, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { PATIENCE } from '../lab/patience.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply, type Topology } from '../lab/pod.js';
import { INBOUND, OUTBOUND, staticPod, TestAgent, TestProxy } from './agent.js';

const FAMILIES = [4, 6] as const;
const TOPOLOGIES: readonly Topology[] = ['ptp', 'bridge'];
const NODE = { 4: '10.199.0.1', 6: 'fd00:199::1' } as const;
const FAR = { 4: '10.199.0.2', 6: 'fd00:199::2' } as const;
const NAMED = '53';
const NOT_NAMED = '54';
const SERVED = '5300';
const OUTBOUND_UDP = ['127.0.0.1:15053', '[::1]:15053'];
const INBOUND_UDP = ['127.0.0.1:15054', '[::1]:15054'];
/** Of QUIC (RFC 9000, 14.1). */
const QUIC_BYTES = '1200';
/** The reference proxy is no fast one, and an emulated machine is slow. */
const MANY = PATIENCE === 1 ? 10_000 : 500;
const INTERVAL_US = String(400 * PATIENCE ** 2);

let lab: Lab;
let agent: TestAgent;
let proxy: TestProxy;
const pods = new Map<Topology, PlainPod>();
const said = new Map<Topology, object>();
const pod = (topology: Topology) => pods.get(topology) as PlainPod;
const bracket = (ip: string) => (ip.includes(':') ? `[${ip}]` : ip);
const both = (addresses: Readonly<Record<4 | 6, string>>, ...ports: string[]) =>
  ports.flatMap((port) => [addresses[4], port, addresses[6], port]);

const PROXY_WORDS = [
  '--inbound',
  INBOUND[0],
  '--inbound6',
  INBOUND[1],
  ...[...OUTBOUND_UDP, ...INBOUND_UDP].flatMap((address) => ['--listen-udp', address]),
];

function say(topology: Topology, annotations: Record<string, string>): void {
  said.set(topology, staticPod(pod(topology), { annotations }));
  agent.writePods([...said.values()]);
}

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  const server = lab.daemon(lab.remote, 'datagrams', await buildApp(), [
    'serve-datagrams',
    ...both(REMOTE, NAMED, NOT_NAMED),
  ]);
  await server.logged(/"serving":true/);
  agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' } },
    interception: { outboundUdp: NAMED, inboundUdp: SERVED },
    instances: [
      {
        name: 'default',
        outbound: [...OUTBOUND],
        inbound: [...INBOUND],
        outboundUdp: OUTBOUND_UDP,
        inboundUdp: INBOUND_UDP,
      },
    ],
  });
  for (const topology of TOPOLOGIES) {
    const one = await runPlainPod(lab, createNetwork(lab, topology), topology);
    pods.set(topology, one);
    said.set(topology, staticPod(one));
  }
  agent.writePods([...said.values()]);
  await agent.start();
  proxy = new TestProxy(lab, agent);
  await proxy.start(...PROXY_WORDS);
  await agent.adopted(8);
  await Promise.all(TOPOLOGIES.map((topology) => agent.reaches(topology, 'INTERCEPTED')));
});

afterAll(() => lab?.close());

interface Asked {
  readonly ok: boolean;
  readonly localPort: number;
  readonly peer?: string;
  readonly error?: string;
}

async function ask(topology: Topology, ip: string, port: string): Promise<Asked> {
  return reply(await pod(topology).app(['ask-datagram', ip, port])) as unknown as Asked;
}

async function sent(topology: Topology, ip: string, port: string): Promise<'direct' | 'intercepted'> {
  const asked = await ask(topology, ip, port);
  expect(asked).toMatchObject({ ok: true });
  const own = `${bracket(pod(topology).ips[ip.includes(':') ? 6 : 4])}:${asked.localPort}`;
  return asked.peer === own ? 'direct' : 'intercepted';
}

describe.each(TOPOLOGIES)('%s', (topology) => {
  describe.each(FAMILIES)('IPv%i', (family) => {
    const dst = REMOTE[family];

    it('a datagram to a named port goes through the proxy, which knows whose it is', async () => {
      const { localPort, peer } = await ask(topology, dst, NAMED);
      // A connected socket: the answer bore the address that was asked.
      expect(peer).toContain(`${bracket(NODE[family])}:`);
      const src = `${bracket(pod(topology).ips[family])}:${localPort}`;
      expect(await proxy.flowFrom(src)).toMatchObject({
        protocol: 'udp',
        originalDst: `${bracket(dst)}:${NAMED}`,
        workload: `default/${topology}`,
        direction: 'EGRESS',
        assurance: 'DATAPATH_RECORDED',
      });
      const resolved = await agent.client.resolve({
        proto: 'udp',
        src: { ip: pod(topology).ips[family], port: localPort },
        dst: { ip: dst, port: Number(NAMED) },
      });
      expect(resolved).toMatchObject({
        workload: { podName: topology, uid: pod(topology).uid },
        direction: 'EGRESS',
        instance: 'default',
        assurance: 'DATAPATH_RECORDED',
      });
      expect(await agent.client.flows(100)).toContainEqual(
        expect.objectContaining({ protocol: 'udp', src, podName: topology, verdict: 'FLOW_STARTED' }),
      );
    });

    it('a datagram to another port does not', async () => {
      expect(await sent(topology, dst, NOT_NAMED)).toBe('direct');
    });

    it(`${MANY} of the size of QUIC come and go, less than one in a thousand lost`, async () => {
      const words = ['datagrams', dst, NAMED, String(MANY), QUIC_BYTES, INTERVAL_US];
      const all = reply(await pod(topology).app(words, 60_000));
      expect(all).toMatchObject({ ok: true, sent: MANY, wrong: 0, refused: 0 });
      expect(all.received).toBeGreaterThan(MANY * 0.999);
    });

    it('those that one call sends together come and go, each by itself', async () => {
      const words = ['datagrams', dst, NAMED, '800', QUIC_BYTES, INTERVAL_US, 'segmented'];
      expect(reply(await pod(topology).app(words))).toMatchObject({ ok: true, sent: 800, received: 800 });
    });

    it('one in fragments is dropped, for the port is not in each of them', async () => {
      const before = await counted(topology, 'FRAGMENT');
      const words = ['datagrams', dst, NAMED, '2', '3000', '1000'];
      expect(reply(await pod(topology).app(words))).toMatchObject({ sent: 2, received: 0 });
      expect(await counted(topology, 'FRAGMENT')).toBeGreaterThanOrEqual(before + 4);
    });

    it('one to a port of the proxy itself is refused', async () => {
      expect(await ask(topology, NODE[family], '15053')).toMatchObject({ ok: false, error: 'ECONNREFUSED' });
    });

    it('one to a named port of the pod goes through the proxy', async () => {
      const own = pod(topology).ips[family];
      const server = lab.daemon(pod(topology).netnsName, 'served', await buildApp(), [
        'serve-datagrams',
        own,
        SERVED,
      ]);
      await server.logged(/"serving":true/);
      const asked = await askFromAfar(own, SERVED);
      // The server saw the node; the client, by its connected socket, the pod.
      expect(asked).toMatchObject({ ok: true });
      expect(asked.peer).not.toContain(bracket(FAR[family]));
      const resolved = await agent.client.resolve({
        proto: 'udp',
        src: { ip: FAR[family], port: asked.localPort },
        dst: { ip: own, port: Number(SERVED) },
      });
      expect(resolved).toMatchObject({ workload: { podName: topology }, direction: 'INGRESS' });
      await server.stop();
    });
  });

  it('follows its pod’s annotation', async () => {
    say(topology, { 'nodesentry.io/outbound-udp': 'none' });
    await waitFor('it to be left alone', async () => (await sent(topology, REMOTE[4], NAMED)) === 'direct');
    say(topology, {});
    await waitFor('it to be caught', async () => (await sent(topology, REMOTE[4], NAMED)) === 'intercepted');
  });
});

describe('a service before a named port of a pod', () => {
  const SERVICE = '10.96.0.10';
  const SERVICE_PORT = '5353';
  const own = () => pod('bridge').ips[4];
  let server: Daemon;

  beforeAll(async () => {
    server = lab.daemon(pod('bridge').netnsName, 'served', await buildApp(), [
      'serve-datagrams',
      own(),
      SERVED,
    ]);
    await server.logged(/"serving":true/);
    // As kube-proxy has it, for clients of other nodes and for pods of this one.
    await script(
      lab.node,
      `iptables -w -t nat -A PREROUTING -d ${SERVICE} -p udp --dport ${SERVICE_PORT} -j DNAT --to-destination ${own()}:${SERVED}`,
    );
    await script(lab.remote, `ip route add ${SERVICE}/32 via ${NODE[4]}`);
  });

  afterAll(async () => {
    await server.stop();
    await script(lab.node, 'iptables -w -t nat -F PREROUTING');
  });

  it('its client, from afar, is answered by the service', async () => {
    const asked = await askFromAfar(SERVICE, SERVICE_PORT);
    expect(asked).toMatchObject({ ok: true });
    expect(asked.peer).not.toContain(FAR[4]);
  });

  it('so is a pod of this node, whose own datagrams to that port are left alone', async () => {
    const asked = await ask('ptp', SERVICE, SERVICE_PORT);
    expect(asked).toMatchObject({ ok: true });
    const resolved = await agent.client.resolve({
      proto: 'udp',
      src: { ip: pod('ptp').ips[4], port: asked.localPort },
      dst: { ip: own(), port: Number(SERVED) },
    });
    expect(resolved).toMatchObject({ workload: { podName: 'bridge' }, direction: 'INGRESS' });
  });
});

it('a pod that is only observed is told of, and nothing of it is intercepted', async () => {
  say('ptp', { 'nodesentry.io/mode': 'observe' });
  await agent.reaches('ptp', 'OBSERVED');
  const told: { dst: string; verdict: string; protocol: string }[] = [];
  const stop = new AbortController();
  let opened = false;
  const following = (async () => {
    for await (const line of agent.client.followFlows(stop.signal, () => {
      opened = true;
    })) {
      if ('verdict' in line && line.podName === 'ptp') {
        told.push(line);
      }
    }
  })();
  await waitFor('the stream', () => opened);
  for (let n = 0; n < 3; n++) {
    expect(await sent('ptp', REMOTE[4], NAMED)).toBe('direct');
  }
  const named = () => told.filter(({ dst }) => dst === `${REMOTE[4]}:${NAMED}`);
  await waitFor('all of them to be told', () => named().length === 3);
  expect(named()[0]).toMatchObject({ protocol: 'udp', verdict: 'WOULD_INTERCEPT' });
  stop.abort();
  await following;
  say('ptp', {});
  await agent.reaches('ptp', 'INTERCEPTED');
  expect(await sent('ptp', REMOTE[4], NAMED)).toBe('intercepted');
});

it('what would become of a datagram is told', async () => {
  const explained = (port: number) =>
    agent.client.explain('ptp', { dst: { ip: REMOTE[4], port }, protocol: 'udp' });
  expect(await explained(53)).toMatchObject({
    protocol: 'udp',
    outcome: 'INTERCEPTED',
    instance: 'default',
    inForce: true,
  });
  expect(await explained(54)).toMatchObject({
    outcome: 'EXCLUDED',
    rule: 'interception.outboundUdp 53 does not have port 54',
  });
  const { outcome } = await agent.client.explain('ptp', {
    dst: { ip: NODE[4], port: 15_053 },
    protocol: 'udp',
  });
  expect(outcome).toBe('RESET');
  const { stdout } = await agent.cli('explain', 'ptp', '--udp', '--src', `${FAR[4]}:${SERVED}`);
  expect(stdout).toMatch(/Outcome: +INTERCEPTED/);
});

// Before Linux 6.6 such a pod is DEGRADED: test/e2e/bandwidth.test.ts.
if (tcxSupported()) {
  describe('behind a queue that limits the pod’s rate', () => {
    beforeAll(async () => {
      const host = (await agent.workload('ptp'))?.interception.interface;
      await script(
        lab.node,
        `ip link add limit type ifb
       ip link set limit up
       tc qdisc add dev limit root tbf rate 100mbit burst 100kb latency 100ms
       tc qdisc add dev ${host} ingress
       tc filter add dev ${host} parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev limit`,
      );
      await waitFor('the limit to be known', async () => {
        const { localPort } = await ask('ptp', REMOTE[4], NAMED);
        return localPort > 0 && (await limited()) > 0;
      });
    });

    it.each(FAMILIES)('IPv%i: its datagrams go through that queue to the proxy', async (family) => {
      const before = await limited();
      const { localPort, peer } = await ask('ptp', REMOTE[family], NAMED);
      expect(peer).toContain(`${bracket(NODE[family])}:`);
      expect(await limited()).toBeGreaterThan(before);
      const src = `${bracket(pod('ptp').ips[family])}:${localPort}`;
      expect(await proxy.flowFrom(src)).toMatchObject({ workload: 'default/ptp' });
    });
  });
}

describe('without a listener', () => {
  beforeAll(() => proxy.stop());

  it.each(TOPOLOGIES)('%s: a datagram is answered "port unreachable"', async (topology) => {
    for (const family of FAMILIES) {
      expect(await ask(topology, REMOTE[family], NAMED)).toMatchObject({
        ok: false,
        error: 'ECONNREFUSED',
      });
    }
  });

  it.each(TOPOLOGIES)('%s: one to the pod is, too', async (topology) => {
    for (const family of FAMILIES) {
      expect(await askFromAfar(pod(topology).ips[family], SERVED)).toMatchObject({
        ok: false,
        error: 'ECONNREFUSED',
      });
    }
  });

  it.each(TOPOLOGIES)('%s: or goes on, where the failure policy is open', async (topology) => {
    say(topology, { 'nodesentry.io/failure': 'open' });
    for (const family of FAMILIES) {
      await waitFor('the policy to hold', async () => (await ask(topology, REMOTE[family], NAMED)).ok);
      expect(await sent(topology, REMOTE[family], NAMED)).toBe('direct');
    }
    say(topology, {});
  });

  it('and the next proxy takes them', async () => {
    await proxy.start(...PROXY_WORDS);
    await agent.adopted(8);
    for (const topology of TOPOLOGIES) {
      await waitFor(
        'the policy to hold',
        async () => (await sent(topology, REMOTE[4], NAMED)) === 'intercepted',
      );
    }
  });
});

async function askFromAfar(ip: string, port: string): Promise<Asked> {
  const words = inNetns(lab.remote, await buildApp(), ['ask-datagram', ip, port]);
  return reply(await tryRun(...words)) as unknown as Asked;
}

async function counted(topology: Topology, verdict: string): Promise<number> {
  return (await agent.packets(topology))[verdict] ?? 0;
}

/** Packets that have gone through the queue. */
async function limited(): Promise<number> {
  const [link] = JSON.parse(await runIn(lab.node, 'ip', ['-j', '-s', 'link', 'show', 'dev', 'limit'])) as {
    stats64: { tx: { packets: number } };
  }[];
  return link?.stats64.tx.packets ?? 0;
}
