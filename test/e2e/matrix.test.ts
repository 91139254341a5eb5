/**
 * {runc, runsc by containerd, microVM} x {ptp, bridge with br_netfilter 1, bridge with 0} x {IPv4, IPv6}: what the
 * proxy saw, who it was told it was, 256 MiB that arrive as they were sent, and that nothing of a pod leaves the node but
 * through the proxy.
 */

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Capture, POD_TCP } from '../lab/capture.js';
import { Containerd } from '../lab/containerd.js';
import { runIn, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { MicroVms } from '../lab/microvm.js';
import { type LabPod, type LabRuntime, reply, type Topology } from '../lab/pod.js';
import { RUNTIMES } from '../lab/runtimes.js';
import { enrolled, staticPod, TestAgent, TestProxy } from './agent.js';

const TRANSFER = 256 * 1024 * 1024;
/** Of no pod. */
const FORGED = { 4: '10.66.77.77', 6: 'fd00:66::77' } as const;
const TOPOLOGIES: readonly { topology: Topology; bridgeNetfilter: 0 | 1; current?: true }[] = [
  { topology: 'ptp', bridgeNetfilter: 1 },
  { topology: 'bridge', bridgeNetfilter: 1 },
  { topology: 'bridge', bridgeNetfilter: 0 },
  { topology: 'ptp', bridgeNetfilter: 1, current: true },
  { topology: 'bridge', bridgeNetfilter: 1, current: true },
];

describe.each(TOPOLOGIES)(
  '$topology pods with br_netfilter $bridgeNetfilter (containerd 2: $current)',
  ({ topology, bridgeNetfilter, current = false }) => {
    let lab: Lab;
    let agent: TestAgent;
    let proxy: TestProxy;
    /** Of the uplink: what pods sent past the proxy, and whatever is for a forged address, such as a proxy's answer. */
    let wire: Capture;
    const pods = new Map<LabRuntime, LabPod>();
    const pod = (runtime: LabRuntime): LabPod => {
      const found = pods.get(runtime);
      if (found === undefined) {
        throw new Error(`no ${runtime} pod was started`);
      }
      return found;
    };

    beforeAll(async () => {
      lab = await Lab.create({ bridgeNetfilter });
      await lab.serve();
      wire = await Capture.start(
        lab,
        lab.node,
        'uplink',
        `(${POD_TCP}) or (tcp and (dst host ${FORGED[4]} or dst host ${FORGED[6]}))`,
      );
      // As that of a pod on another node: an answer to it would leave by the uplink, and not die for want of a route.
      await runIn(lab.node, 'ip', ['route', 'add', `${FORGED[4]}/32`, 'via', '10.199.0.2']);
      await runIn(lab.node, 'ip', ['route', 'add', `${FORGED[6]}/128`, 'via', 'fd00:199::2']);
      const containerd = await Containerd.start(lab, topology, { current });
      const microvms = new MicroVms(lab, topology, containerd.network);
      agent = new TestAgent(lab, {
        sources: { cri: { endpoint: `unix://${containerd.socket}` }, static: { file: 'pods.yaml' } },
      });
      const started = await Promise.all(
        RUNTIMES.map((runtime) => {
          const name = `web-${runtime}`;
          return runtime === 'rund'
            ? microvms.runPod({ name })
            : containerd.runPod({ name, runtime, labels: enrolled(name) });
        }),
      );
      for (const pod of started) {
        pods.set(pod.runtime, pod);
      }
      agent.writePods(started.filter(({ runtime }) => runtime === 'rund').map((pod) => staticPod(pod)));
      await agent.start();
      proxy = new TestProxy(lab, agent);
      await proxy.start();
      await agent.adopted(2);
      await Promise.all(RUNTIMES.map((runtime) => agent.reaches(`web-${runtime}`, 'INTERCEPTED')));
    });

    afterAll(async () => {
      await lab?.close();
    });

    if (current) {
      it('pods are told by events of the runtime, which containerd has since 2', async () => {
        expect(agent.log()).toMatch(/"runtimeVersion":"v?2\.[^"]*"[^\n]*cri: connected/);
        expect(agent.log()).not.toContain('cri: no events');
      });
    }

    describe.each(RUNTIMES)('%s', (runtime) => {
      it.each([4, 6] as const)('IPv%i: the proxy sees both addresses and is told the pod', async (family) => {
        const { ips, uid, app, name } = pod(runtime);
        const dialled = reply(await app(['dial', REMOTE[family], '80']));
        expect(dialled).toMatchObject({ ok: true });
        const bracket = (ip: string) => (family === 6 ? `[${ip}]` : ip);
        const peer = `${bracket(ips[family])}:${dialled.localPort}`;
        const originalDst = `${bracket(REMOTE[family])}:80`;
        expect(await proxy.flowFrom(peer)).toMatchObject({ peer, originalDst });

        const resolution = await agent.client.resolve({
          proto: 'tcp',
          src: { ip: ips[family], port: Number(dialled.localPort) },
          dst: { ip: REMOTE[family], port: 80 },
        });
        expect(resolution).toMatchObject({
          assurance: 'DATAPATH_RECORDED',
          direction: 'EGRESS',
          instance: 'default',
          original: { src: peer, dst: originalDst },
          workload: {
            podName: name,
            podUid: uid,
            runtime,
            state: 'LIVE',
            spiffeId: `spiffe://cluster.local/ns/default/sa/${name}`,
          },
        });
        // The server saw the proxy, not the pod: the flow really went through it.
        expect(JSON.stringify(dialled.server)).not.toContain(ips[family]);
      });

      it.each([4, 6] as const)('IPv%i: 256 MiB arrive with the right checksum', async (family) => {
        const before = await agent.packets(pod(runtime).name);
        const fetched = reply(
          await pod(runtime).app(['fetch', REMOTE[family], '80', String(TRANSFER)], 110_000),
        );
        expect(fetched).toMatchObject({ ok: true, bytes: TRANSFER });
        const after = await agent.packets(pod(runtime).name);
        expect(after.FLOW_STARTED).toBe((before.FLOW_STARTED ?? 0) + 1);
      });

      it.each([4, 6] as const)(
        'IPv%i: a forged source reaches neither the proxy nor the wire, and is counted',
        async (family) => {
          const { name, app } = pod(runtime);
          const ip = FORGED[family];
          const before = await agent.packets(name);
          const link = (await agent.workload(name))?.interception.interface ?? '';
          const sent = await Capture.start(lab, lab.node, link, `tcp and src host ${ip}`);
          expect(reply(await app(['spoof', ip, REMOTE[family], '80', '3']))).toMatchObject({ sent: 3 });
          await waitFor('the forged packets to leave the pod', () => sent.frames().length >= 3);
          await sent.stop();
          const met = (await wire.flows()).filter((flow) =>
            flow.includes(family === 4 ? `${ip}:` : `[${ip}]:`),
          );
          expect(met, 'on the wire: past the proxy, or answered by it').toEqual([]);
          const open = await runIn(lab.node, 'ss', ['-Htan', 'dst', family === 6 ? `[${ip}]` : ip]);
          expect(open, 'connections of the proxy').toBe('');
          expect(proxy.flows().filter(({ peer }) => peer.includes(ip))).toEqual([]);
          const after = await agent.packets(name);
          expect((after.SPOOFED_SOURCE ?? 0) - (before.SPOOFED_SOURCE ?? 0)).toBeGreaterThanOrEqual(3);
        },
      );

      it('IPv4: 10 MiB of upload arrive with the right checksum', async () => {
        const pushed = reply(
          await pod(runtime).app(['push', REMOTE[4], '80', String(10 * 1024 * 1024)], 60_000),
        );
        expect(pushed).toMatchObject({ ok: true });
      });
    });

    it('nothing of a pod has left the node but through the proxy', async () => {
      expect(await wire.flows()).toEqual([]);
    });

    it('counts no packet that lost its socket on the way', async () => {
      expect(await agent.packets()).toMatchObject({ STEER_LOST: 0, ASSIGN_FAILED: 0, EVENT_LOST: 0 });
    });
  },
);
