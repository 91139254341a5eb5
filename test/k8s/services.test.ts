/** Services by the real kube-proxy, outbound and inbound: what the proxy sees is the service, what arrives is right. */

import { existsSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { ProxyMode } from '../cluster/cluster.js';
import type { Capture } from '../lab/capture.js';
import { waitFor } from '../lab/exec.js';
import { patient } from '../lab/patience.js';
import type { KubeObject } from './control-plane.js';
import { ENROLLED, Installation, SYSTEM } from './installation.js';

const MODES: readonly ProxyMode[] = [
  'iptables',
  'nftables',
  ...(existsSync('/proc/net/ip_vs') ? (['ipvs'] as const) : []),
];
const NODE_PORT = 30_080;
/** Of a service that keeps the client's address. */
const LOCAL_PORT = 30_081;
const NODE = '10.199.0.1';
const OUTSIDE = '10.199.0.2';
const TRIES = 12;

interface Flow {
  readonly peer: string;
  readonly originalDst: string;
  readonly direction: string;
  readonly spiffeId: string;
}

describe.each(MODES)('kube-proxy in %s mode', (mode) => {
  let site: Installation;
  let uplink: Capture;
  let client: string;

  beforeAll(async () => {
    site = await Installation.prepare({ proxyMode: mode });
    await site.install();
    await site.deploy('server', { labels: ENROLLED, replicas: 2 });
    await site.deploy('caller', { labels: ENROLLED });
    await site.reaches('server', 'INTERCEPTED', 2);
    const [caller] = await site.reaches('caller', 'INTERCEPTED');
    client = caller?.ips[0] ?? '';
    await site.cluster.apply(
      service('plain'),
      service('outside', { type: 'NodePort', ports: [{ port: 80, nodePort: NODE_PORT }] }),
      service('local', {
        type: 'NodePort',
        externalTrafficPolicy: 'Local',
        ports: [{ port: 80, nodePort: LOCAL_PORT }],
      }),
      service('headless', { clusterIP: 'None' }),
      service('sticky', { sessionAffinity: 'ClientIP' }),
    );
    uplink = await site.escapes();
  }, patient(300_000));

  afterAll(async () => {
    await site?.close();
  });

  function service(name: string, spec: object = {}): KubeObject {
    return {
      apiVersion: 'v1',
      kind: 'Service',
      metadata: { name, namespace: 'default' },
      spec: {
        selector: { app: 'server' },
        ports: [{ port: 80 }],
        ipFamilyPolicy: 'PreferDualStack',
        ...spec,
      },
    };
  }

  async function addressesOf(name: string): Promise<readonly string[]> {
    const { spec } = (await site.cluster.get('service', name)) as unknown as {
      spec: { clusterIPs: string[] };
    };
    return spec.clusterIPs;
  }

  async function servers(): Promise<readonly string[]> {
    return (await site.podsOf('server')).map((pod) => (pod.status as { podIP: string }).podIP);
  }

  /** Of the reference proxy, from this address and port. */
  async function flowFrom(peer: string): Promise<Flow> {
    return waitFor(`the proxy to log ${peer}`, async () => {
      const log = await site.cluster.kubectl(['-n', SYSTEM, 'logs', 'daemonset/proxy', '--tail=200']);
      const line = log.split('\n').find((candidate) => candidate.includes(`"peer":"${peer}"`));
      return line === undefined ? undefined : (JSON.parse(line) as Flow);
    });
  }

  async function inbound(): Promise<readonly Flow[]> {
    const log = await site.cluster.kubectl(['-n', SYSTEM, 'logs', 'daemonset/proxy']);
    const lines = log.split('\n').filter((line) => line.includes('"direction":"INGRESS"'));
    return lines.map((line) => JSON.parse(line) as Flow);
  }

  /** Once kube-proxy has written its rules; which servers answered. */
  async function answered(ip: string, port = '80'): Promise<Set<string>> {
    await waitFor(`${ip} to answer`, async () => (await site.dial('caller', ip, port)).ok, 20_000, 200);
    const found = new Set<string>();
    for (let n = 0; n < TRIES; n++) {
      const { ok, server } = (await site.dial('caller', ip, port)) as unknown as {
        ok: boolean;
        server: { local: string };
      };
      expect(ok).toBe(true);
      found.add(server.local.slice(0, server.local.lastIndexOf(':')));
    }
    return found;
  }

  test('a ClusterIP is what the proxy sees, in both families, and the pods behind it answer', async () => {
    for (const ip of await addressesOf('plain')) {
      const found = await answered(ip);
      expect(found.size).toBe(2);
      const { localPort } = await site.dial('caller', ip);
      const [caller] = await site.reaches('caller', 'INTERCEPTED');
      const [own, text] = ip.includes(':') ? [`[${caller?.ips[1]}]`, `[${ip}]`] : [client, ip];
      expect(await flowFrom(`${own}:${localPort}`)).toMatchObject({
        direction: 'EGRESS',
        originalDst: `${text}:80`,
        spiffeId: 'spiffe://cluster.local/ns/default/sa/default',
      });
    }
    expect(await uplink.flows()).toEqual([]);
  });

  test('a node port that a pod dials is what the proxy sees', async () => {
    await answered(NODE, String(NODE_PORT));
    const { localPort } = await site.dial('caller', NODE, String(NODE_PORT));
    expect(await flowFrom(`${client}:${localPort}`)).toMatchObject({ originalDst: `${NODE}:${NODE_PORT}` });
  });

  test('what comes by a node port from outside goes through the proxy of the pod that it is for', async () => {
    const pods = (await servers()).map((ip) => `${ip}:80`);
    const dial = (port: number) => site.dialFromOutside(NODE, String(port));
    for (const port of [NODE_PORT, LOCAL_PORT]) {
      await waitFor(`${port} to answer`, async () => (await dial(port)).ok, 20_000, 200);
    }
    // Masqueraded by kube-proxy, for its pod may be on another node: the client is the node then.
    const before = (await inbound()).length;
    expect(await dial(NODE_PORT)).toMatchObject({ ok: true });
    await waitFor('the proxy to log it', async () => (await inbound()).length > before);
    const { localPort } = await dial(LOCAL_PORT);
    const flow = await flowFrom(`${OUTSIDE}:${localPort}`);
    expect(flow).toMatchObject({ direction: 'INGRESS' });
    for (const { originalDst } of await inbound()) {
      expect(pods).toContain(originalDst);
    }
  });

  test('a headless service is its pods', async () => {
    for (const ip of await servers()) {
      expect([...(await answered(ip))]).toEqual([ip]);
    }
    expect(await uplink.flows()).toEqual([]);
  });

  test('session affinity is by the address that dials, which is the proxy’s', async () => {
    const [ip = ''] = await addressesOf('sticky');
    expect((await answered(ip)).size).toBe(1);
  });
});
