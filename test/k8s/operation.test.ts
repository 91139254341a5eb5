/** The agent in a real cluster, as an operator lives with it. A capture on the node's uplink is the judge throughout. */

import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import type { Capture } from '../lab/capture.js';
import { waitFor } from '../lab/exec.js';
import { IMAGE } from '../lab/image.js';
import { REMOTE } from '../lab/lab.js';
import { Load } from '../lab/load.js';
import { patient } from '../lab/patience.js';
import { sized } from '../lab/size.js';
import { DIALS_FIRST, ENROLLED, Installation, ROOT, SYSTEM } from './installation.js';

const RUNTIMES = [
  ['runc', undefined],
  ['gVisor', 'gvisor'],
] as const;
const TIMES = sized(2, 10);
const API_AWAY_MS = sized(20_000, 300_000);

let site: Installation;
let uplink: Capture;
/** Of the node, before the agent came. */
let before: Record<string, string>;

/** What we put into the kernel and onto the disk shows in one of these. */
async function traces(): Promise<Record<string, string>> {
  const { node } = site.cluster;
  const said = async (command: string) => [command, await node.exec('sh', ['-c', command])] as const;
  return Object.fromEntries(
    await Promise.all(
      [
        'ip rule; ip -6 rule; ip route show table all | grep -v cache | grep -c 7340 || true',
        'nft list tables | grep -v kube-proxy || true',
        'ls /sys/fs/bpf',
        'cat /etc/cni/net.d/*; ls /etc/cni/net.d /opt/cni/bin',
      ].map(said),
    ),
  );
}

beforeAll(async () => {
  site = await Installation.prepare();
  before = await traces();
  // Whoever reads the capture must be able to see a pod that does escape.
  uplink = await site.escapes();
  await site.deploy('control', { command: DIALS_FIRST });
  expect(await uplink.flows()).not.toEqual([]);
  await site.cluster.kubectl(['delete', 'deployment', 'control', '--now']);
  await uplink.stop();
  await site.install();
  uplink = await site.escapes();
}, patient(300_000));

afterAll(async () => {
  await site?.close();
});

/** A load of new connections and of requests over one, from a pod that lives through the test. */
async function load(app: string): Promise<Load> {
  const pod = await site.networkOf(app);
  const each = { pod, family: 4, everyMs: 5 } as const;
  const flowing = await Load.start(site.lab, [
    { ...each, kind: 'handshakes' },
    { ...each, kind: 'keepalive' },
  ]);
  onTestFinished(() => flowing.end());
  return flowing;
}

async function expectNothingNoticed(flowing: Load): Promise<void> {
  const told = await flowing.stop();
  expect(told.filter(({ failures }) => failures > 0)).toEqual([]);
  expect(await uplink.flows()).toEqual([]);
}

test('what is installed by the docs intercepts the apps, and doctor finds nothing to mend', async () => {
  await site.reaches('web', 'INTERCEPTED', 2);
  const [client] = await site.reaches('client', 'INTERCEPTED', 1);
  expect(client).toMatchObject({ runtime: 'runsc', spiffeId: 'spiffe://cluster.local/ns/shop/sa/client' });
  const doctor = JSON.parse(await site.nodesentry('doctor', '--json')) as readonly {
    status: string;
  }[];
  expect(doctor.filter(({ status }) => status !== 'ok')).toEqual([]);
  const { items } = (await site.cluster.get('pods', '-n', 'shop', '-l', 'app=client')) as unknown as {
    items: { status: { podIP: string } }[];
  };
  const log = await site.cluster.kubectl(['-n', SYSTEM, 'logs', 'daemonset/proxy']);
  expect(log).toContain(`"peer":"${items[0]?.status.podIP}:`);
});

describe.each(RUNTIMES)('pods of %s', (runtime, runtimeClassName) => {
  const name = `first-${runtime.toLowerCase()}`;

  test(
    `whose first act is to dial never pass the proxy by: 0, 10, 0, ${TIMES} times`,
    async () => {
      const spec = {
        labels: ENROLLED,
        command: DIALS_FIRST,
        replicas: 0,
        ...(runtimeClassName && { runtimeClassName }),
      };
      await site.cluster.apply(site.deployment(name, spec));
      for (let time = 0; time < TIMES; time++) {
        await site.cluster.kubectl(['scale', `deployment/${name}`, '--replicas=10']);
        await site.rolledOut(`deployment/${name}`);
        expect(await site.restartsOf(name)).toEqual(Array(10).fill(0));
        await site.cluster.kubectl(['scale', `deployment/${name}`, '--replicas=0']);
        await waitFor('them to go', async () => (await site.podsOf(name)).length === 0, 30_000, 200);
      }
      expect(await uplink.flows()).toEqual([]);
    },
    patient(120_000 * TIMES),
  );

  test('are enrolled and let go by labels, of the pod and of its namespace', async () => {
    const app = `labels-${runtime.toLowerCase()}`;
    const kubectl = (...words: string[]) => site.cluster.kubectl(words);
    const own = await site.escapes();
    const passes = async () => {
      expect(await site.dial(app, REMOTE[4])).toMatchObject({ ok: true });
      return (await own.flows()).length > 0;
    };
    await site.deploy(app, { ...(runtimeClassName && { runtimeClassName }) });
    await site.reaches(app, 'NOT_ENROLLED');
    await kubectl('label', 'pod', '-l', `app=${app}`, 'nodesentry.io/intercept=enabled');
    await site.reaches(app, 'INTERCEPTED');
    expect(await passes()).toBe(false);
    await kubectl('label', 'pod', '-l', `app=${app}`, 'nodesentry.io/intercept-');
    await kubectl('label', 'namespace', 'default', 'nodesentry.io/intercept=enabled');
    await site.reaches(app, 'INTERCEPTED');
    expect(await passes()).toBe(false);
    await kubectl('label', 'namespace', 'default', 'nodesentry.io/intercept-');
    await site.reaches(app, 'NOT_ENROLLED');
    expect(await passes()).toBe(true);
    await own.stop();
    await kubectl('delete', 'deployment', app, '--now');
    // While it ends, the kernel of a pod that was let go may still end its connections, and rightly so.
    await waitFor('it to go', async () => (await site.podsOf(app)).length === 0, 60_000, 200);
    await uplink.stop();
    uplink = await site.escapes();
  });
});

describe('under load', () => {
  beforeAll(async () => {
    await site.deploy('steady', { labels: ENROLLED });
  });

  const image = (tag: string) =>
    site.cluster.kubectl([
      '-n',
      SYSTEM,
      'set',
      'image',
      'daemonset/nodesentry',
      `agent=localhost/nodesentry:${tag}`,
    ]);

  test('an upgrade of the agent and its rollback are not noticed', async () => {
    const flowing = await load('steady');
    await site.cluster.tag('localhost/nodesentry:0.1.0', 'localhost/nodesentry:next');
    await image('next');
    await site.rolledOut('daemonset/nodesentry', SYSTEM);
    await site.cluster.kubectl(['-n', SYSTEM, 'rollout', 'undo', 'daemonset/nodesentry']);
    await site.rolledOut('daemonset/nodesentry', SYSTEM);
    await expectNothingNoticed(flowing);
  });

  test('an image that is not there is not noticed either, until it is undone', async () => {
    const flowing = await load('steady');
    await image('not-there');
    await waitFor(
      'the kubelet to give up',
      async () =>
        (await site.cluster.kubectl(['-n', SYSTEM, 'get', 'pods'])).match(/ErrImage|ImagePullBackOff/) !==
        null,
      60_000,
      500,
    );
    await site.cluster.kubectl(['-n', SYSTEM, 'rollout', 'undo', 'daemonset/nodesentry']);
    await site.rolledOut('daemonset/nodesentry', SYSTEM);
    await expectNothingNoticed(flowing);
  });

  test('an agent that is evicted, and one that runs out of memory, come back unnoticed', async () => {
    const flowing = await load('steady');
    const agentPod = async () =>
      (
        await site.cluster.kubectl([
          '-n',
          SYSTEM,
          'get',
          'pods',
          '-l',
          'app.kubernetes.io/component=agent',
          '-o',
          'name',
        ])
      ).trim();
    const evicted = (await agentPod()).replace('pod/', '');
    await site.cluster.plane.call('POST', `/api/v1/namespaces/${SYSTEM}/pods/${evicted}/eviction`, {
      apiVersion: 'policy/v1',
      kind: 'Eviction',
      metadata: { name: evicted, namespace: SYSTEM },
    });
    await waitFor('another agent', async () => !(await agentPod()).includes(evicted), 60_000, 200);
    await site.rolledOut('daemonset/nodesentry', SYSTEM);
    const limit = (memory: string) =>
      site.cluster.kubectl([
        '-n',
        SYSTEM,
        'set',
        'resources',
        'daemonset/nodesentry',
        `--limits=memory=${memory}`,
        '--requests=memory=40Mi',
      ]);
    await limit('40Mi');
    await waitFor(
      'it to run out of memory',
      async () =>
        (await site.cluster.kubectl(['-n', SYSTEM, 'get', 'pods', '-o', 'yaml'])).includes(
          'reason: OOMKilled',
        ),
      60_000,
      500,
    );
    await limit('768Mi');
    await site.rolledOut('daemonset/nodesentry', SYSTEM);
    await expectNothingNoticed(flowing);
  });

  test(
    `an API server that is away for ${API_AWAY_MS / 1_000} s is not noticed, not even by an agent that is killed meanwhile`,
    async () => {
      const flowing = await load('steady');
      await site.cluster.plane.stopApiServer('SIGKILL');
      const deadline = Date.now() + API_AWAY_MS;
      await site.cluster.node.exec('pkill', ['-9', '-f', '--', '--no-mount-bpffs']);
      await waitFor('the time to pass', () => Date.now() > deadline, API_AWAY_MS + 10_000, 500);
      await site.cluster.plane.startApiServer();
      await site.rolledOut('daemonset/nodesentry', SYSTEM);
      await site.reaches('steady', 'INTERCEPTED');
      await site.deploy('newcomer', { labels: ENROLLED, command: DIALS_FIRST });
      await expectNothingNoticed(flowing);
    },
    patient(API_AWAY_MS + 120_000),
  );
});

test('a pod that is deleted by force, and will not end, does not get past the proxy', async () => {
  const script = `trap '' TERM; while :; do /bin/app dial ${REMOTE[4]} 80; done`;
  await site.cluster.apply({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'stubborn', labels: { app: 'stubborn', ...ENROLLED } },
    spec: { containers: [{ name: 'app', image: IMAGE, command: ['/bin/sh', '-c', script] }] },
  });
  await site.reaches('stubborn', 'INTERCEPTED');
  const isRunning = async () =>
    (await site.cluster.node.exec('ps', ['-eo', 'args'])).includes(`dial ${REMOTE[4]} 80; done`);
  expect(await isRunning()).toBe(true);
  await site.cluster.kubectl(['delete', 'pod', 'stubborn', '--force', '--grace-period=0']);
  await waitFor('its process to end', async () => !(await isRunning()), 60_000, 200);
  expect(await uplink.flows()).toEqual([]);
});

test('probes of the kubelet reach a pod that receives through the proxy, and no proxy sees them', async () => {
  const probe = { tcpSocket: { port: 80 }, periodSeconds: 1 };
  await site.deploy('probed', {
    labels: ENROLLED,
    container: { readinessProbe: probe, livenessProbe: probe },
  });
  const [pod] = await site.reaches('probed', 'INTERCEPTED');
  expect(await site.dialFromOutside(pod?.ips[0] ?? '', '80')).toMatchObject({ ok: true });
  const log = await site.cluster.kubectl(['-n', SYSTEM, 'logs', 'daemonset/proxy']);
  const inbound = log.split('\n').filter((line) => line.includes(`"originalDst":"${pod?.ips[0]}:80"`));
  expect(inbound.length).toBeGreaterThan(0);
  expect(inbound.filter((line) => !line.includes('"peer":"10.199.0.2:'))).toEqual([]);
});

test('uninstalled by the docs, nothing of it is left, and new pods start', async () => {
  const kubectl = (...words: string[]) => site.cluster.kubectl(words, { timeoutMs: 120_000 });
  await kubectl('delete', '-n', SYSTEM, 'daemonset', 'nodesentry', 'proxy');
  await kubectl('apply', '-k', join(ROOT, 'deploy/cleanup'));
  await site.rolledOut('daemonset/nodesentry-cleanup', SYSTEM);
  await kubectl('delete', '-k', join(ROOT, 'deploy/cleanup'));
  await kubectl('delete', '-k', join(ROOT, 'examples/cluster'), '--ignore-not-found');
  expect(await traces()).toEqual(before);
  await site.deploy('after', { labels: ENROLLED, command: DIALS_FIRST });
});
