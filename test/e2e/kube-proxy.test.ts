/**
 * Services of Kubernetes beside kube-proxy, with the rules that the real one wrote in each of its modes: the proxy sees the
 * service that the pod dialled, and its own connection goes on by kube-proxy's rules; a pod that is not enrolled has its
 * services as before.
 */

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Capture, POD_TCP } from '../lab/capture.js';
import { script, waitFor } from '../lab/exec.js';
import { kubeProxyModes, loadKubeProxy } from '../lab/kube-proxy/load.js';
import { NODE_PORT, RECORDED } from '../lab/kube-proxy/placeholders.js';
import { type LabPod, reply } from '../lab/pod.js';
import { sized } from '../lab/size.js';
import { useScene } from './scene.js';

const CONNECTIONS = sized(200, 1_000);
const FEW = sized(20, 100);
/** Of all connections of a test. */
const LOAD_MS = 90_000;
const FAMILIES = [4, 6] as const;
type Family = (typeof FAMILIES)[number];

const MODES = kubeProxyModes();

it('runs in the modes that this kernel has, and in IPVS where that is asked for', () => {
  expect(MODES).toEqual(expect.arrayContaining(['iptables', 'nftables']));
  if (process.env.NODESENTRY_TEST_ALL_PARTS !== undefined) {
    expect(MODES).toContain('ipvs');
  }
});

/** As addresses and ports are written. */
const at = (ip: string, port: number) => (ip.includes(':') ? `[${ip}]:${port}` : `${ip}:${port}`);
const isFrom = (ip: string) => (text: string) => text.startsWith(ip.includes(':') ? `[${ip}]:` : `${ip}:`);

const backends = (family: Family) => [RECORDED.FIRST, RECORDED.SECOND].map((ip) => at(ip[family], 80));

interface Server {
  readonly peer: string;
  readonly local: string;
}

/** Both ends of a connection of the pod, as the server has them. */
async function dial(pod: LabPod, ip: string, port = 80): Promise<Server> {
  const dialled = reply(await pod.app(['dial', ip, String(port)]));
  expect(dialled).toMatchObject({ ok: true });
  return dialled.server as unknown as Server;
}

describe.each(MODES)('kube-proxy in its mode %s', (mode) => {
  const scene = useScene({
    pods: [{ name: 'web' }, { name: 'outsider', described: { labels: { app: 'outsider' } } }],
    prepare: async ({ lab }) => {
      // A second backend, and a way out for what is to be translated before it leaves.
      await script(
        lab.remote,
        `ip addr add ${RECORDED.SECOND[4]}/32 dev lo
         ip addr add ${RECORDED.SECOND[6]}/128 dev lo nodad`,
      );
      await script(
        lab.node,
        `ip route add default via 10.199.0.2
         ip route add default via fd00:199::2`,
      );
      await loadKubeProxy(lab, mode, RECORDED);
    },
  });
  /** At the backends: TCP under the address of a pod, and what is still for a service. */
  let wire: Capture;

  beforeAll(async () => {
    const services = `dst net ${RECORDED.SERVICES[4]} or dst net ${RECORDED.SERVICES[6]}`;
    wire = await Capture.start(
      scene.lab,
      scene.lab.remote,
      'eth0',
      `(${POD_TCP}) or (tcp and (${services}))`,
    );
  });

  afterAll(async () => {
    await wire?.stop();
  });

  /** Of what was captured, what the enrolled pod sent past the proxy, or what nobody translated: from whom to whom. */
  async function escaped(): Promise<string[]> {
    const { ips } = scene.pod('outsider');
    const flows = (await wire.flows()).filter((flow) =>
      FAMILIES.every((family) => !isFrom(ips[family])(flow)),
    );
    return [...new Set(flows.map((flow) => flow.replace(/:\d+ > /, ' > ')))];
  }

  /** So many connections of the enrolled pod are answered, and the proxy saw each with the address that was dialled. */
  async function expectAllAtProxy(family: Family, ip: string, port: number, count: number): Promise<void> {
    const web = scene.pod('web');
    const earlier = scene.proxy.flows().length;
    // Where nothing arrives, that is told by one connection and not by all of them.
    await dial(web, ip, port);
    const before = earlier + 1;
    await waitFor('the proxy to log the first', () => scene.proxy.flows().length >= before);
    const done = reply(await web.app(['connects', ip, String(port), String(count), '0'], LOAD_MS));
    process.stdout.write(
      `kube-proxy ${mode}, ${at(ip, port)}: ${count} connections in ${done.ms} ms, slowest dial ${done.slowestDialMs} ms\n`,
    );
    expect(done).toMatchObject({ ok: true, done: count, failures: 0 });
    await waitFor('the proxy to log them', () => scene.proxy.flows().length >= before + count);
    const seen = scene.proxy.flows().slice(before);
    expect(new Set(seen.map(({ originalDst }) => originalDst))).toEqual(new Set([at(ip, port)]));
    expect(seen.map(({ peer }) => peer).filter((peer) => !isFrom(web.ips[family])(peer))).toEqual([]);
    expect(seen).toHaveLength(count);
    expect(await escaped()).toEqual([]);
  }

  describe.each(FAMILIES)('IPv%i', (family) => {
    it(`${CONNECTIONS} connections to a ClusterIP arrive, each seen by the proxy under the service's address`, () =>
      expectAllAtProxy(family, RECORDED.WEB[family], 80, CONNECTIONS));

    it(`${FEW} connections to a NodePort arrive, each seen by the proxy under the node's address`, () =>
      expectAllAtProxy(family, RECORDED.NODE[family], NODE_PORT, FEW));

    it('the proxy is shared out over the endpoints of a service', async () => {
      const seen = new Set<string>();
      await waitFor('both endpoints to be met', async () => {
        const { peer, local } = await dial(scene.pod('web'), RECORDED.WEB[family]);
        expect(peer).toSatisfy(isFrom(RECORDED.NODE[family]));
        return seen.add(local).size === 2;
      });
      expect([...seen].sort()).toEqual(backends(family));
    });

    it('and stays at one where the service has sessionAffinity', async () => {
      const seen = new Set<string>();
      for (let n = 0; n < FEW; n++) {
        seen.add((await dial(scene.pod('web'), RECORDED.STICKY[family])).local);
      }
      expect(seen.size).toBe(1);
      expect(backends(family)).toContain([...seen][0]);
      expect(await escaped()).toEqual([]);
    });
  });

  describe.each(FAMILIES)('IPv%i of a pod that is not enrolled', (family) => {
    it('its services answer by kube-proxy alone, and see the pod', async () => {
      const outsider = scene.pod('outsider');
      const before = scene.proxy.flows().length;
      const seen = new Set<string>();
      await waitFor('both endpoints to be met', async () => {
        const { peer, local } = await dial(outsider, RECORDED.WEB[family]);
        expect(peer).toSatisfy(isFrom(outsider.ips[family]));
        return seen.add(local).size === 2;
      });
      expect([...seen].sort()).toEqual(backends(family));

      const sticky = new Set<string>();
      for (let n = 0; n < FEW; n++) {
        sticky.add((await dial(outsider, RECORDED.STICKY[family])).local);
      }
      expect(sticky.size).toBe(1);
      // From outside, by kube-proxy's masquerading.
      const { peer } = await dial(outsider, RECORDED.NODE[family], NODE_PORT);
      expect(peer).toSatisfy(isFrom(RECORDED.NODE[family]));
      expect(scene.proxy.flows()).toHaveLength(before);
      // And so the capture sees a pod that goes past the proxy.
      expect((await wire.flows()).filter(isFrom(outsider.ips[family]))).not.toEqual([]);
    });
  });
});
