/**
 * Pods that are drained and resumed under load: no request fails, nothing new goes through the proxy meanwhile, all does
 * after. The judges are the load itself, a capture of the uplink and the log of the proxy.
 */

import { writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { Capture, POD_DIALS } from '../lab/capture.js';
import { type Daemon, inNetns, tryRun, waitFor } from '../lab/exec.js';
import { REMOTE } from '../lab/lab.js';
import { Load } from '../lab/load.js';
import type { LabPod } from '../lab/pod.js';
import { reply } from '../lab/pod.js';
import { BOTH_WAYS, useScene } from './scene.js';

/** Several requests of every stream. */
const WHILE_DRAINED_MS = 1_000;
let lives = 0;
const PODS = ['one', 'two'] as const;

const scene = useScene({ pods: PODS.map((name) => ({ name })), inbound: true });
let dials: Capture;

beforeAll(async () => {
  for (const name of PODS) {
    expect(reply(await scene.pod(name).app(['server', '80']))).toMatchObject({ serving: true });
  }
  dials = await Capture.start(scene.lab, scene.lab.node, 'uplink', POD_DIALS);
});

afterEach(async () => {
  await scene.agent.client.resume({ all: true });
  for (const name of PODS) {
    await scene.agent.reaches(name, 'INTERCEPTED');
  }
});

/** Both ways at once, over a connection each and over one that stays. */
async function loaded(pods: readonly LabPod[]): Promise<Load> {
  const each = { family: 4, everyMs: 10 } as const;
  const load = await Load.start(
    scene.lab,
    pods.flatMap((pod) => [
      { pod, ...each, kind: 'connects' as const },
      { pod, ...each, kind: 'keepalive' as const },
      { pod, ...each, kind: 'connects' as const, inbound: true as const },
      { pod, ...each, kind: 'keepalive' as const, inbound: true as const },
    ]),
  );
  onTestFinished(() => load.end());
  return load;
}

async function expectNoFailure(load: Load): Promise<void> {
  const told = await load.told();
  expect(told.filter(({ failures }) => failures > 0)).toEqual([]);
  expect(told.filter(({ done }) => done === 0)).toEqual([]);
}

/** How many flows of a pod the proxy was given since, sent and received. */
function sinceNow(): (pod: LabPod) => readonly [sent: number, received: number] {
  const before = scene.proxy.flows().length;
  return (pod) => {
    const flows = scene.proxy.flows().slice(before);
    const own = (end: string) => end.startsWith(`${pod.ips[4]}:`);
    return [
      flows.filter(({ peer }) => own(peer)).length,
      flows.filter(({ originalDst }) => own(originalDst)).length,
    ];
  };
}

/** Until every drained pod has so many of the connections that it had when it was drained. */
async function onlyOpen(count: number): Promise<void> {
  await waitFor(`${count} open connections for each drained pod`, async () => {
    const { drains } = await scene.agent.client.drains();
    const pods = drains.flatMap(({ pods }) => pods);
    return pods.length > 0 && pods.every(({ openFlows }) => openFlows === count);
  });
}

/** A new connection of the pod that the remote sees under the pod's own address. */
async function goesPast(pod: LabPod): Promise<void> {
  const { localPort } = reply(await pod.app(['dial', REMOTE[4], '80']));
  const own = `${pod.ips[4]}:${localPort} > `;
  expect((await dials.flows()).some((flow) => flow.startsWith(own))).toBe(true);
}

const TARGETS = [
  ['a pod', ['one'], { pod: 'one' }],
  ['an app', ['one'], { app: 'one' }],
  ['the node', PODS, { all: true }],
] as const;

/** A connection of the pod's to the remote, which answers each line; it has answered one. */
async function longLived(pod: LabPod): Promise<Daemon> {
  const { lab } = scene;
  lives += 1;
  const port = 7000 + lives;
  lab.daemon(lab.remote, `echo-${port}`, 'socat', [`TCP-LISTEN:${port},fork,reuseaddr`, 'EXEC:cat']);
  const lines = '<(while sleep 0.1; do date +%s.%N; done)';
  const dial = `socat - TCP:${REMOTE[4]}:${port},retry=20,interval=0.1`;
  const words = ['-c', `exec ${dial} < ${lines}`];
  const daemon = lab.daemon(basename(pod.netns), `long-${port}`, 'bash', words);
  onTestFinished(() => daemon.stop());
  await answers(daemon);
  return daemon;
}

async function answers(daemon: Daemon): Promise<void> {
  const before = daemon.log().length;
  await waitFor(`${daemon.name} to be answered`, () => daemon.log().length > before);
}

describe('what is open', () => {
  it('survives the drain and the resuming, over an agent that is killed, and is told', async () => {
    const { agent } = scene;
    const pod = scene.pod('one');
    const connection = await longLived(pod);
    await agent.client.drain({ pod: pod.uid });
    await agent.stop('SIGKILL');
    await goesPast(pod);
    await answers(connection);
    await agent.start();
    await agent.reaches('one', 'DRAINED');
    await goesPast(pod);
    await answers(connection);
    await onlyOpen(1);
    const { stdout } = await agent.cli('pods');
    expect(stdout).toMatch(/ one +.* DRAINED .*drained since 20.*; 1 still open/);
    await agent.client.resume({ pod: pod.uid });
    await agent.reaches('one', 'INTERCEPTED');
    await scene.expectAtProxy(pod);
    await answers(connection);
  });

  it('and was there when the agent died before it could act on the drain, too', async () => {
    const { agent } = scene;
    const pod = scene.pod('one');
    const connection = await longLived(pod);
    await agent.stop('SIGKILL');
    const drains = [{ scope: { app: 'one' }, sinceMs: Date.now() }];
    writeFileSync(join(agent.runDir, 'drains.json'), JSON.stringify({ version: 1, drains }));
    await agent.start();
    await agent.reaches('one', 'DRAINED');
    await goesPast(pod);
    await onlyOpen(1);
    await delay(WHILE_DRAINED_MS);
    await answers(connection);
    // The stack's early demultiplexing may keep it going for a while without us.
    expect(agent.endpoints()).toHaveLength(PODS.length);
  });

  it('is ended when the deadline is over, and what another pod has is not', async () => {
    const { agent } = scene;
    const [one, two] = PODS.map((name) => scene.pod(name)) as [LabPod, LabPod];
    const connection = await longLived(one);
    const other = await longLived(two);
    const ended = agent.cli('drain', 'one', '--deadline', '2s', '--wait');
    await agent.reaches('one', 'DRAINED');
    await answers(connection);
    const { code, stdout } = await ended;
    expect([code, stdout]).toEqual([
      0,
      'default/one drained\n1 connection still open\nnothing open any more\n',
    ]);
    await waitFor('the pod to have noticed', () => !connection.running);
    await waitFor('the endpoint to have gone', () => agent.endpoints().length === 1);
    await answers(other);
    await goesPast(one);
  });
});

describe.each(TARGETS)('%s', (_, names, target) => {
  it('drained and resumed under load: none fails, none of the new goes to the proxy, all do after', async () => {
    const drained = names.map((name) => scene.pod(name));
    const load = await loaded(PODS.map((name) => scene.pod(name)));
    const { agent } = scene;
    const order = await agent.client.drain(target);
    expect(order.pods.map(({ podName, state }) => [podName, state])).toEqual(
      names.map((name) => [name, 'DRAINED']),
    );
    await onlyOpen(2); // the two that stay
    const count = sinceNow();
    await load.told();
    await delay(WHILE_DRAINED_MS);
    for (const pod of drained) {
      await goesPast(pod);
    }
    await expectNoFailure(load);
    expect(drained.map(count)).toEqual(names.map(() => [0, 0]));
    for (const name of PODS.filter((candidate) => !(names as readonly string[]).includes(candidate))) {
      expect(Math.min(...count(scene.pod(name)))).toBeGreaterThan(0);
    }
    await onlyOpen(2);
    await agent.client.resume(target);
    for (const name of names) {
      await agent.reaches(name, 'INTERCEPTED');
    }
    for (const pod of drained) {
      await scene.expectAtProxy(pod);
    }
    const before = (await dials.flows()).length;
    const resumed = sinceNow();
    await delay(WHILE_DRAINED_MS);
    await expectNoFailure(load);
    expect((await dials.flows()).slice(before)).toEqual([]);
    for (const pod of drained) {
      expect(Math.min(...resumed(pod))).toBeGreaterThan(0);
    }
    await load.stop();
  });
});

describe('to another instance', () => {
  const OTHER = { name: 'other', apps: ['nobody'], outbound: '127.0.0.1:16001', inbound: '127.0.0.1:16002' };

  it('new ones go there, open ones stay, and the deadline ends these alone', async () => {
    const { agent, lab } = scene;
    agent.writeConfig({ instances: [OTHER, BOTH_WAYS] });
    for (const port of [16001, 16002]) {
      const listen = `TCP-LISTEN:${port},bind=127.0.0.1,fork,reuseaddr,ip-transparent`;
      lab.daemon(lab.node, `other-${port}`, 'socat', [listen, 'SYSTEM:echo other; cat']);
    }
    await agent.adopted(6);
    const pod = scene.pod('one');
    const connection = await longLived(pod);
    const order = await agent.cli('drain', '--app', 'one', '--to', 'other');
    expect([order.code, order.stdout]).toEqual([
      0,
      'default/one drained to other\n1 connection still open\n',
    ]);
    expect((await agent.workload('one'))?.interception).toMatchObject({ instance: 'other', openFlows: 1 });
    const words = ['-c', `exec socat -u TCP:${REMOTE[4]}:80 -`];
    const there = lab.daemon(basename(pod.netns), 'there', 'bash', words);
    onTestFinished(() => there.stop());
    await waitFor('the other instance to answer', () => there.log().includes('other'));
    await answers(connection);
    await agent.client.drain({ app: 'one', to: 'other', deadlineSeconds: 0 });
    await waitFor('the pod to have noticed', () => !connection.running);
    await onlyOpen(0);
    await delay(WHILE_DRAINED_MS);
    expect(there.running).toBe(true);
  });

  it('one that goes: the pod is its own instance’s again, and says so', async () => {
    const { agent } = scene;
    await agent.client.drain({ pod: 'one', to: 'other' });
    expect((await agent.workload('one'))?.interception.instance).toBe('other');
    agent.writeConfig({ instances: [BOTH_WAYS] });
    await waitFor('its own instance to serve it', async () => {
      const { interception } = (await agent.workload('one')) ?? {};
      return (
        interception?.instance === 'default' && interception.reason.includes('drained to other, which is not')
      );
    });
    await scene.expectAtProxy(scene.pod('one'));
  });
});

it('--wait draws a bar on a terminal', async () => {
  const { agent, lab } = scene;
  const connection = await longLived(scene.pod('one'));
  const command = ['--run-dir', agent.runDir, 'drain', 'one', '--deadline', '1s', '--wait'];
  const words = ['-qec', [agent.binary, ...command].join(' '), '/dev/null'];
  const { code, stdout } = await tryRun(...inNetns(lab.node, 'script', words));
  expect(code).toBe(0);
  expect(stdout).toMatch(/\.{10,} 0\/1 1 connection still open/);
  expect(stdout).toMatch(/#{10,} 1\/1 nothing open any more/);
  await waitFor('the pod to have noticed', () => !connection.running);
});
