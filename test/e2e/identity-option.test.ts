/**
 * Proxies ask by getsockopt(2) who is at the ends of a connection that they have accepted (include/nodesentry.h): all
 * options in both directions and families, by a proxy of the lab that tells them to its client; and the examples.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { inCgroup, makeCgroup } from '../lab/cgroups.js';
import { createNetwork } from '../lab/cni.js';
import { type Daemon, inNetns, run, runIn, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { patient } from '../lab/patience.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { sized } from '../lab/size.js';
import { staticPod, TestAgent } from './agent.js';
import { BOTH_WAYS } from './scene.js';

const ID = (account: string) => `spiffe://cluster.local/ns/default/sa/${account}`;
const LISTENERS = ['127.0.0.1', '15001', '::1', '15001', '127.0.0.1', '15006', '::1', '15006'] as const;
const EXPLICIT_PORT = '3128';
const NODE = { 4: '10.199.0.1', 6: 'fd00:199::1' } as const;
/** Where pods dial it by themselves. */
const EXPLICIT = [NODE[4], EXPLICIT_PORT, NODE[6], EXPLICIT_PORT];
const FAMILIES = [4, 6] as const;
const FUZZED = sized(50_000, 500_000);
const EGRESS = 0;
const INGRESS = 1;
const IP_AND_IFACE = 1;
const DATAPATH_RECORDED = 2;
const END_BYTES = 784;

let lab: Lab;
let agent: TestAgent;
let web: PlainPod;
let db: PlainPod;
let proxy: Daemon;

/** In a cgroup of its own, where one is given. */
async function startProxy(command: readonly string[], cgroup?: string): Promise<void> {
  const name = `proxy-${cgroup === undefined ? 'root' : 'own'}-${command.length}`;
  const words = cgroup === undefined ? ['-c', 'exec "$@"', 'sh', ...command] : inCgroup(cgroup, command);
  proxy = lab.daemon(lab.node, name, 'sh', words);
}

const asked = async (from: string, ip: string, port = '80') =>
  reply(await tryRun(...inNetns(from, await buildApp(), ['dial', ip, port])));
const told = async (from: string, ip: string, port = '80') =>
  (await asked(from, ip, port)).server as Record<string, unknown>;

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  const network = createNetwork(lab, 'ptp');
  web = await runPlainPod(lab, network, 'web');
  db = await runPlainPod(lab, network, 'db');
  agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' } },
    instances: [{ ...BOTH_WAYS, explicit: [`0.0.0.0:${EXPLICIT_PORT}`, `[::]:${EXPLICIT_PORT}`] }],
  });
  agent.writePods([staticPod(web), staticPod(db)]);
  await agent.start();
  await startProxy([await buildApp(), 'options', ...LISTENERS, ...EXPLICIT]);
  await agent.adopted(4);
  await Promise.all(['web', 'db'].map((name) => agent.reaches(name, 'INTERCEPTED')));
});

afterAll(async () => {
  await lab?.close();
});

const end = (pod: PlainPod, more: object) => ({
  version: 1,
  size: END_BYTES,
  length: END_BYTES,
  runtime: 1,
  generation: 1,
  uid: pod.uid,
  namespace: 'default',
  name: pod.name,
  serviceAccount: pod.name,
  app: pod.name,
  instance: 'default',
  ...more,
});

describe.each(FAMILIES)('IPv%i', (family) => {
  it('outbound: the pod, and the address that it dialled; the other end is of another machine', async () => {
    expect(await told(web.netnsName, REMOTE[family])).toMatchObject({
      peerIdAtOnce: ID('web'),
      peerId: ID('web'),
      peer: end(web, { direction: EGRESS, assurance: DATAPATH_RECORDED }),
      targetId: 'ENXIO',
      target: 'ENXIO',
      [`dialled${family}`]: family === 4 ? `${REMOTE[4]} 80 16` : `${REMOTE[6]} 80 28`,
    });
  });

  it('outbound, to another pod of the node: both', async () => {
    expect(await told(web.netnsName, db.ips[family])).toMatchObject({
      peerId: ID('web'),
      targetId: ID('db'),
      target: end(db, { direction: EGRESS, assurance: IP_AND_IFACE }),
    });
  });

  it('dialled by the pod itself: the pod, as of a connection that is intercepted', async () => {
    const intercepted = await told(web.netnsName, REMOTE[family]);
    const explicit = await told(web.netnsName, NODE[family], EXPLICIT_PORT);
    expect(explicit).toMatchObject({ peerId: ID('web'), targetId: 'ENXIO' });
    expect(explicit.peer).toEqual(intercepted.peer);
  });

  it('inbound: the pod as the other end; the peer is of another machine', async () => {
    expect(await told(lab.remote, db.ips[family])).toMatchObject({
      peerIdAtOnce: 'ENXIO',
      peerId: 'ENXIO',
      peer: 'ENXIO',
      targetId: ID('db'),
      target: end(db, { direction: INGRESS, assurance: DATAPATH_RECORDED }),
      [`dialled${family}`]: family === 4 ? `${db.ips[4]} 80 16` : `${db.ips[6]} 80 28`,
    });
  });

  it('a connection that nobody has intercepted is none of ours', async () => {
    expect(await told(lab.node, family === 4 ? '127.0.0.1' : '::1', '15001')).toMatchObject({
      peerId: 'ENOENT',
      peer: 'ENOENT',
      targetId: 'ENOENT',
      // What connection tracking has to say is left as it is.
      [`dialled${family}`]: expect.stringMatching(/ 15001 /),
      [`dialled${family === 4 ? 6 : 4}`]: expect.stringMatching(/^E/),
    });
  });
});

it('a buffer that is too short, and an option that there is not', async () => {
  expect(await told(web.netnsName, REMOTE[4])).toMatchObject({
    peerIdInSmall: 'ERANGE',
    peerIdInNone: 'ERANGE',
    peerInSmall: 'ERANGE',
    unknown: expect.stringMatching(/^(ENOPROTOOPT|EOPNOTSUPP)$/),
    dialledInSmall: expect.stringMatching(/^E/),
  });
});

it(
  `${FUZZED} random options and lengths: nothing is written behind a buffer, and the answers stand`,
  async () => {
    // -t: its input ends at once, and the answer is awaited all the same.
    const words = ['-c', `echo 'fuzz ${FUZZED}' | socat -t60 -T60 - TCP:${REMOTE[4]}:80,connect-timeout=5`];
    const fuzzed = JSON.parse(await runIn(web.netnsName, 'sh', words)) as { answered: number };
    expect(fuzzed.answered).toBeGreaterThan(FUZZED / 100);
    expect(await told(web.netnsName, REMOTE[4])).toMatchObject({ peerId: ID('web') });
  },
  patient(120_000),
);

it('goes on while the agent is down, from what is pinned', async () => {
  await agent.stop('SIGKILL');
  expect(await told(web.netnsName, REMOTE[4])).toMatchObject({ peerId: ID('web') });
  expect(await told(lab.remote, db.ips[6])).toMatchObject({ targetId: ID('db') });
  await agent.start();
});

it('a changed identity is told from the next connection on', async () => {
  agent.writePods([staticPod(web, { serviceAccount: 'other' }), staticPod(db)]);
  await expect.poll(() => told(web.netnsName, REMOTE[4])).toMatchObject({ peerId: ID('other') });
  agent.writePods([staticPod(web), staticPod(db)]);
  await expect.poll(() => told(web.netnsName, REMOTE[4])).toMatchObject({ peerId: ID('web') });
});

it('an address that two pods claim leads to neither', async () => {
  const claim = staticPod(web, { name: 'claim', uid: 'claim', ips: [db.ips[4]], labels: {} });
  expect(await told(web.netnsName, db.ips[4])).toMatchObject({ targetId: ID('db') });
  agent.writePods([staticPod(web), staticPod(db), { ...claim, ips: [db.ips[4]] }]);
  const soon = { timeout: patient(10_000) };
  await expect.poll(() => told(web.netnsName, db.ips[4]), soon).toMatchObject({ targetId: 'ENXIO' });
  agent.writePods([staticPod(web), staticPod(db)]);
  await expect.poll(() => told(web.netnsName, db.ips[4]), soon).toMatchObject({ targetId: ID('db') });
});

describe('a proxy in a cgroup of its own', () => {
  beforeAll(async () => {
    await proxy.stop();
    await startProxy([await buildApp(), 'options', ...LISTENERS], makeCgroup(lab, 'proxy'));
  });

  it('is told the same', async () => {
    await expect.poll(() => told(web.netnsName, REMOTE[4])).toMatchObject({ peerId: ID('web') });
  });
});

describe('the example', () => {
  const said = async () => {
    const words = ['-c', `socat -u -T2 TCP:${REMOTE[4]}:80,connect-timeout=5 - 2>/dev/null || true`];
    return (await runIn(web.netnsName, 'sh', words)).trim();
  };

  const says = `${ID('web')} pod=default/web generation=1 to=${REMOTE[4]}:80`;
  /** As the first lines of the source say. */
  const flagsIn = (source: string) =>
    /cc (.*) -I \S+ -o who who\.c/.exec(readFileSync(source, 'utf8'))?.[1]?.split(' ') ?? [];

  it('in C is compiled as it says, and says who it is', async () => {
    const source = 'examples/getsockopt/c/who.c';
    const who = join(lab.directory, 'who-c');
    await run('cc', [...flagsIn(source), '-I', 'include', '-o', who, source]);
    await proxy.stop();
    await startProxy([who, '127.0.0.1', '15001']);
    await waitFor('its answer', async () => (await said()) === says);
  });

  it('in Go is compiled without cgo, and says who it is', async () => {
    const who = join(lab.directory, 'who-go');
    const go = (await run('scripts/find-go', [])).trim();
    await run('env', ['CGO_ENABLED=0', go, 'build', '-o', who, 'examples/getsockopt/go/who.go']);
    await proxy.stop();
    await startProxy([who, '127.0.0.1:15001']);
    await waitFor('its answer', async () => (await said()) === says);
  });

  it('in TypeScript says who it is', async () => {
    await proxy.stop();
    await startProxy(['npx', '--no-install', 'tsx', 'examples/getsockopt/ts/who.ts', '127.0.0.1', '15001']);
    await waitFor('its answer', async () => (await said()) === says, 30_000);
  });
});
