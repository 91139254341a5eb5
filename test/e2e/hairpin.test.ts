/** Pods of one node that dial each other, themselves and the node: which of the proxy's listeners sees it, and how often. */

import { beforeAll, describe, expect, it } from 'vitest';
import { runIn } from '../lab/exec.js';
import type { PlainPod } from '../lab/plain.js';
import type { Topology } from '../lab/pod.js';
import { reply } from '../lab/pod.js';
import { useScene } from './scene.js';

const PORT = 80;
const NODE = { 4: '10.199.0.1', 6: 'fd00:199::1' } as const;
const FAMILIES = [4, 6] as const;
type Family = (typeof FAMILIES)[number];

/** Addresses that nobody has. */
const SERVICE = { 4: '10.96.0.10', 6: 'fd00:96::10' } as const;
const NODE_PORT = 30_080;
const PLAIN = { described: { labels: { app: 'plain' } } };

describe.each(['ptp', 'bridge'] satisfies Topology[])('%s pods', (topology) => {
  const scene = useScene({
    pods: [
      { name: 'enrolled', topology },
      { name: 'another', topology },
      { name: 'plain', topology, ...PLAIN },
      { name: 'another-plain', topology, ...PLAIN },
    ],
    inbound: true,
  });
  const ip = (name: string, family: Family) => scene.pod(name).ips[family];

  beforeAll(async () => {
    for (const name of ['enrolled', 'another', 'plain', 'another-plain']) {
      await runIn((scene.pod(name) as PlainPod).netnsName, 'ip', ['link', 'set', 'lo', 'up']);
      expect(reply(await scene.pod(name).app(['server', String(PORT)]))).toMatchObject({ serving: true });
    }
    // As kube-proxy does it: what is for the service or the port goes to `enrolled`, from whoever it comes, itself included.
    const translated = FAMILIES.flatMap((family) => {
      const [protocol, to] = family === 4 ? ['ip', ip('enrolled', 4)] : ['ip6', `[${ip('enrolled', 6)}]`];
      return [
        `${protocol} daddr ${SERVICE[family]} tcp dport ${PORT} dnat ${protocol} to ${to}:${PORT}`,
        `${protocol} daddr ${NODE[family]} tcp dport ${NODE_PORT} dnat ${protocol} to ${to}:${PORT}`,
      ];
    }).join('\n');
    await runIn(scene.lab.node, 'nft', ['-f', '-'], {
      input: `table inet services {
        chain prerouting {
          type nat hook prerouting priority dstnat
          ${translated}
        }
        chain output {
          type nat hook output priority -100
          ${translated}
        }
      }`,
    });
    await runIn(scene.lab.node, 'ip', ['route', 'add', `${SERVICE[4]}/32`, 'dev', 'uplink']);
    await runIn(scene.lab.node, 'ip', ['route', 'add', `${SERVICE[6]}/128`, 'dev', 'uplink']);
  });

  const started = async () => {
    const { packets, packetsReceived } = await scene.agent.client.status();
    return { outbound: packets.FLOW_STARTED ?? 0, inbound: packetsReceived.FLOW_STARTED ?? 0 };
  };

  interface Row {
    readonly from: string;
    readonly to: string;
    readonly address: (family: Family) => string;
    readonly port?: number;
    readonly outbound: number;
    readonly inbound: number;
  }
  const pod = (name: string) => (family: Family) => ip(name, family);
  const service = (family: Family) => SERVICE[family];
  const node = (family: Family) => NODE[family];
  const ROWS: readonly Row[] = [
    { from: 'enrolled', to: 'another', address: pod('another'), outbound: 1, inbound: 0 },
    { from: 'enrolled', to: 'plain', address: pod('plain'), outbound: 1, inbound: 0 },
    { from: 'plain', to: 'enrolled', address: pod('enrolled'), outbound: 0, inbound: 1 },
    { from: 'plain', to: 'another-plain', address: pod('another-plain'), outbound: 0, inbound: 0 },
    { from: 'another', to: 'enrolled by a service', address: service, outbound: 1, inbound: 0 },
    { from: 'plain', to: 'enrolled by a service', address: service, outbound: 0, inbound: 1 },
    { from: 'enrolled', to: 'itself by a service', address: service, outbound: 1, inbound: 0 },
    { from: 'enrolled', to: 'itself', address: pod('enrolled'), outbound: 0, inbound: 0 },
    { from: 'another', to: 'a port of its node', address: node, port: NODE_PORT, outbound: 1, inbound: 0 },
    { from: 'plain', to: 'a port of its node', address: node, port: NODE_PORT, outbound: 0, inbound: 1 },
    {
      from: 'enrolled',
      to: 'itself by a port of its node',
      address: node,
      port: NODE_PORT,
      outbound: 1,
      inbound: 0,
    },
  ];

  describe.each(ROWS)('$from to $to', ({ from, address, port = PORT, outbound, inbound }) => {
    it.each(FAMILIES)(`IPv%i: ${outbound} outbound, ${inbound} inbound`, async (family) => {
      const before = await started();
      const dialled = reply(await scene.pod(from).app(['dial', address(family), String(port)]));
      expect(dialled).toMatchObject({ ok: true });
      const after = await started();
      expect({
        outbound: after.outbound - before.outbound,
        inbound: after.inbound - before.inbound,
      }).toEqual({ outbound, inbound });
    });
  });
});
