/**
 * Pods of one node with different instances, each with a proxy in a cgroup of its own: what one's proxy dials on behalf of its
 * pod passes the other's inbound listener as well.
 */

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { inCgroup, makeCgroup } from '../lab/cgroups.js';
import { createNetwork } from '../lab/cni.js';
import { type Daemon, inNetns, tryRun } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab } from '../lab/lab.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { CLI, staticPod, TestAgent } from './agent.js';

const FAMILIES = [4, 6] as const;
const PORTS = { default: [15001, 15006], payments: [16001, 16006] } as const;
type Instance = keyof typeof PORTS;
const PODS = { web: 'default', shop: 'default', bank: 'payments' } as const;

let lab: Lab;
let agent: TestAgent;
const pods = new Map<string, PlainPod>();
const proxies = new Map<Instance, Daemon>();

const addresses = (port: number) => [`127.0.0.1:${port}`, `[::1]:${port}`];
const pod = (name: string) => pods.get(name) as PlainPod;

async function startProxy(instance: Instance, cgroup: string, ...more: string[]): Promise<void> {
  const [outbound, inbound] = PORTS[instance];
  const [o4 = '', o6 = ''] = addresses(outbound);
  const [i4 = '', i6 = ''] = addresses(inbound);
  const listen = ['--outbound', o4, '--outbound6', o6, '--inbound', i4, '--inbound6', i6];
  const command = [CLI, '--run-dir', agent.runDir, 'proxy', ...listen, ...more];
  const name = `proxy-${instance}-${more.length}-${cgroup.split('/').at(-1)}`;
  const proxy = lab.daemon(lab.node, name, 'sh', inCgroup(cgroup, command));
  proxies.set(instance, proxy);
  await proxy.logged(/proxy running/);
}

async function stopProxies(): Promise<void> {
  await Promise.all([...proxies.values()].map((proxy) => proxy.stop()));
  await agent.adopted(0);
}

/** How many connections to the pod were intercepted, and how many of the pod's own. */
async function started(name: string): Promise<number> {
  return (await agent.received(name)).FLOW_STARTED ?? 0;
}

async function outbound(): Promise<number> {
  return (await agent.client.status()).packets.FLOW_STARTED ?? 0;
}

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  const network = createNetwork(lab, 'ptp');
  for (const name of Object.keys(PODS)) {
    pods.set(name, await runPlainPod(lab, network, name));
    expect(reply(await pod(name).app(['server', '80']))).toMatchObject({ serving: true });
  }
  agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' } },
    instances: (['payments', 'default'] as const).map((name) => ({
      name,
      ...(name === 'payments' && { apps: ['bank'] }),
      outbound: addresses(PORTS[name][0]),
      inbound: addresses(PORTS[name][1]),
    })),
  });
  agent.writePods([...pods.values()].map((one) => staticPod(one)));
  await agent.start();
});

afterAll(async () => {
  await lab?.close();
});

const dial = async (from: string, to: string, family: 4 | 6) =>
  reply(await pod(from).app(['dial', pod(to).ips[family], '80']));

describe.each([
  ['as they come', []],
  ['that keep the source', ['--keep-source']],
] as const)('proxies %s, each in a cgroup of its own', (_how, words) => {
  beforeAll(async () => {
    for (const instance of ['default', 'payments'] as const) {
      await startProxy(instance, makeCgroup(lab, `${instance}-${words.length}`), ...words);
    }
    await agent.adopted(8);
    await Promise.all(Object.keys(PODS).map((name) => agent.reaches(name, 'INTERCEPTED')));
  });

  afterAll(stopProxies);

  it.each(
    FAMILIES.flatMap((family) =>
      [
        { from: 'web', to: 'bank', inbound: 1 },
        { from: 'bank', to: 'web', inbound: 1 },
        { from: 'web', to: 'shop', inbound: 0 },
      ].map((row) => ({ ...row, family })),
    ),
  )(
    'IPv$family from $from to $to: once outbound, inbound $inbound times',
    async ({ from, to, family, inbound }) => {
      const before = [await outbound(), await started(to)] as const;
      expect(await dial(from, to, family)).toMatchObject({ ok: true });
      expect([(await outbound()) - before[0], (await started(to)) - before[1]]).toEqual([1, inbound]);
    },
  );

  it('many bytes both ways arrive with the right checksums', async () => {
    const ip = pod('bank').ips[4];
    const bytes = String(8 << 20);
    expect(reply(await pod('web').app(['fetch', ip, '80', bytes], 60_000))).toMatchObject({ ok: true });
    expect(reply(await pod('web').app(['push', ip, '80', bytes], 60_000))).toMatchObject({ ok: true });
  });

  it('a probe of the node goes straight to the pod', async () => {
    const before = await started('bank');
    const words = ['dial', pod('bank').ips[4], '80'];
    expect(reply(await tryRun(...inNetns(lab.node, await buildApp(), words)))).toMatchObject({ ok: true });
    expect(await started('bank')).toBe(before);
  });
});

describe('proxies that share a cgroup', () => {
  beforeAll(async () => {
    const shared = makeCgroup(lab, 'shared');
    for (const instance of ['default', 'payments'] as const) {
      await startProxy(instance, shared);
    }
    await agent.adopted(8);
  });

  it('are not told apart: what either dials goes straight to the pod', async () => {
    const before = await started('bank');
    expect(await dial('web', 'bank', 4)).toMatchObject({ ok: true });
    expect(await started('bank')).toBe(before);
  });
});
