/**
 * {runc, runsc, microVM} x {ptp, bridge with br_netfilter 1, bridge with 0} x {another host, a plain local pod, an enrolled
 * local pod, a NodePort, a probe of the node} x {IPv4, IPv6}: which of the proxy's listeners saw a connection to the pod, and
 * whom the pod has at the other end.
 */

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Containerd } from '../lab/containerd.js';
import { inNetns, runIn, tryRun } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab } from '../lab/lab.js';
import { MicroVms } from '../lab/microvm.js';
import { patient } from '../lab/patience.js';
import { runPlainPod } from '../lab/plain.js';
import { type LabPod, type LabRuntime, reply, type Topology } from '../lab/pod.js';
import { RUNTIMES } from '../lab/runtimes.js';
import { sized } from '../lab/size.js';
import { enrolled, staticPod, TestAgent, TestProxy } from './agent.js';
import { BOTH_WAYS, INBOUND_WORDS } from './scene.js';

const TOPOLOGIES: readonly { topology: Topology; bridgeNetfilter: 0 | 1 }[] = [
  { topology: 'ptp', bridgeNetfilter: 1 },
  { topology: 'bridge', bridgeNetfilter: 1 },
  { topology: 'bridge', bridgeNetfilter: 0 },
];
const FAMILIES = [4, 6] as const;
type Family = (typeof FAMILIES)[number];
const NODE = { 4: '10.199.0.1', 6: 'fd00:199::1' } as const;
const FAR = { 4: '10.199.0.2', 6: 'fd00:199::2' } as const;
const PORT = 80;
const MIB = 1024 * 1024;
const CONNECTIONS = sized(300, 10_000);

const at = (ip: string, port: unknown) => (ip.includes(':') ? `[${ip}]:${port}` : `${ip}:${port}`);

describe.each(TOPOLOGIES)(
  '$topology pods with br_netfilter $bridgeNetfilter',
  ({ topology, bridgeNetfilter }) => {
    let lab: Lab;
    let agent: TestAgent;
    let proxy: TestProxy;
    const pods = new Map<string, LabPod>();
    const pod = (name: string): LabPod => {
      const found = pods.get(name);
      if (found === undefined) {
        throw new Error(`no pod ${name} was started`);
      }
      return found;
    };
    const nodePort = (runtime: LabRuntime) => 30_080 + RUNTIMES.indexOf(runtime);

    beforeAll(async () => {
      lab = await Lab.create({ bridgeNetfilter });
      const containerd = await Containerd.start(lab, topology);
      const microvms = new MicroVms(lab, topology, containerd.network);
      agent = new TestAgent(lab, {
        sources: { cri: { endpoint: `unix://${containerd.socket}` }, static: { file: 'pods.yaml' } },
        instances: [BOTH_WAYS],
      });
      const started = await Promise.all([
        ...RUNTIMES.map((runtime) =>
          runtime === 'rund'
            ? microvms.runPod({ name: runtime })
            : containerd.runPod({ name: runtime, runtime, labels: enrolled(runtime) }),
        ),
        runPlainPod(lab, containerd.network, 'plain'),
        runPlainPod(lab, containerd.network, 'enrolled'),
      ]);
      for (const one of started) {
        pods.set(one.name, one);
      }
      agent.writePods([
        ...started
          .filter(({ runtime, name }) => runtime === 'rund' || name === 'enrolled')
          .map((one) => staticPod(one)),
        staticPod(pod('plain'), { labels: { app: 'plain' } }),
      ]);
      await Promise.all(
        RUNTIMES.map(async (runtime) =>
          expect(reply(await pod(runtime).app(['server', String(PORT)]))).toMatchObject({ serving: true }),
        ),
      );
      await runIn(lab.node, 'nft', ['-f', '-'], {
        input: `table inet node-ports {
          chain prerouting {
            type nat hook prerouting priority dstnat
            ${RUNTIMES.flatMap((runtime) => [
              `ip daddr ${NODE[4]} tcp dport ${nodePort(runtime)} dnat ip to ${pod(runtime).ips[4]}:${PORT}`,
              `ip6 daddr ${NODE[6]} tcp dport ${nodePort(runtime)} dnat ip6 to [${pod(runtime).ips[6]}]:${PORT}`,
            ]).join('\n')}
          }
        }`,
      });
      await agent.start();
      proxy = new TestProxy(lab, agent);
      await proxy.start(...INBOUND_WORDS);
      await agent.adopted(4);
      await Promise.all([...RUNTIMES, 'enrolled'].map((name) => agent.reaches(name, 'INTERCEPTED')));
    });

    afterAll(async () => {
      await lab?.close();
    });

    const dialFrom = async (netns: string, ip: string, port: number) =>
      reply(await tryRun(...inNetns(netns, await buildApp(), ['dial', ip, String(port)])));
    const dialFromPod = async (client: LabPod, ip: string) =>
      reply(await client.app(['dial', ip, String(PORT)]));
    const started = async () => {
      const { packets, packetsReceived } = await agent.client.status();
      return { outbound: packets.FLOW_STARTED ?? 0, inbound: packetsReceived.FLOW_STARTED ?? 0 };
    };

    interface Client {
      readonly from: string;
      /** How often the flow passes each listener of the proxy. */
      readonly passes: { readonly outbound: number; readonly inbound: number };
      readonly address?: (family: Family) => string;
      readonly dial: (runtime: LabRuntime, family: Family) => Promise<Record<string, unknown>>;
    }
    const CLIENTS: readonly Client[] = [
      {
        from: 'another host',
        passes: { outbound: 0, inbound: 1 },
        address: (family) => FAR[family],
        dial: (runtime, family) => dialFrom(lab.remote, pod(runtime).ips[family], PORT),
      },
      {
        from: 'a plain local pod',
        passes: { outbound: 0, inbound: 1 },
        address: (family) => pod('plain').ips[family],
        dial: (runtime, family) => dialFromPod(pod('plain'), pod(runtime).ips[family]),
      },
      {
        from: 'an enrolled local pod of the same instance',
        passes: { outbound: 1, inbound: 0 },
        address: (family) => pod('enrolled').ips[family],
        dial: (runtime, family) => dialFromPod(pod('enrolled'), pod(runtime).ips[family]),
      },
      {
        from: 'another host by a port of the node',
        passes: { outbound: 0, inbound: 1 },
        address: (family) => FAR[family],
        dial: (runtime, family) => dialFrom(lab.remote, NODE[family], nodePort(runtime)),
      },
      {
        from: 'the node, as a probe',
        passes: { outbound: 0, inbound: 0 },
        dial: (runtime, family) => dialFrom(lab.node, pod(runtime).ips[family], PORT),
      },
    ];

    describe.each(RUNTIMES)('%s', (runtime) => {
      describe.each(CLIENTS)('from $from', ({ passes, address, dial }) => {
        it.each(FAMILIES)('IPv%i: passes each listener as often as it has to', async (family) => {
          const before = await started();
          const dialled = await dial(runtime, family);
          expect(dialled).toMatchObject({ ok: true });
          const after = await started();
          expect({
            outbound: after.outbound - before.outbound,
            inbound: after.inbound - before.inbound,
          }).toEqual(passes);
          // Through the proxy or not, the pod has somebody of the node at the other end.
          expect(dialled.server).toMatchObject({ local: at(pod(runtime).ips[family], PORT) });
          if (address === undefined) {
            return;
          }
          const [client, target] = [address(family), pod(runtime).ips[family]];
          const peer = at(client, dialled.localPort);
          expect(await proxy.flowFrom(peer)).toMatchObject({ peer, originalDst: at(target, PORT) });
          const resolution = await agent.client.resolve({
            proto: 'tcp',
            src: { ip: client, port: Number(dialled.localPort) },
            dst: { ip: target, port: PORT },
          });
          expect(resolution).toMatchObject({
            assurance: 'DATAPATH_RECORDED',
            direction: passes.inbound === 1 ? 'INGRESS' : 'EGRESS',
            original: { src: peer, dst: at(target, PORT) },
            workload: { podName: passes.inbound === 1 ? runtime : 'enrolled' },
          });
        });
      });
    });

    describe.each(RUNTIMES)('%s', (runtime) => {
      const bytes = String(runtime === 'rund' ? sized(32 * MIB, 256 * MIB) : sized(64 * MIB, 1024 * MIB));
      const runFar = async (...words: readonly string[]) =>
        reply(await tryRun(...inNetns(lab.remote, await buildApp(), words), { timeoutMs: patient(300_000) }));

      it(
        'many bytes each way at once arrive with the right checksums',
        async () => {
          const ip = pod(runtime).ips[4];
          const [fetched, pushed] = await Promise.all([
            runFar('fetch', ip, String(PORT), bytes),
            runFar('push', ip, String(PORT), bytes),
          ]);
          expect(fetched).toMatchObject({ ok: true, bytes: Number(bytes) });
          expect(pushed).toMatchObject({ ok: true });
        },
        patient(600_000),
      );

      it(
        `${CONNECTIONS} short connections, none of which fails`,
        async () => {
          const before = await started();
          const done = await runFar('connects', pod(runtime).ips[6], String(PORT), String(CONNECTIONS), '0');
          expect(done).toMatchObject({ ok: true, failures: 0 });
          expect((await started()).inbound - before.inbound).toBe(CONNECTIONS);
        },
        patient(600_000),
      );
    });

    it('counts no packet that lost its socket on the way', async () => {
      const { packets, packetsReceived } = await agent.client.status();
      expect(packets).toMatchObject({ STEER_LOST: 0, ASSIGN_FAILED: 0 });
      expect(packetsReceived).toMatchObject({ STEER_LOST: 0, ASSIGN_FAILED: 0 });
    });
  },
);
