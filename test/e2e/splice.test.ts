/**
 * The splice, by what applications notice of it: nothing. Each command of test/lab/app/streams.c is run in a pod that has
 * it and in one that has not, and says the same in both, but for the three things that this kernel gets wrong.
 */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { StatusMessage } from '../../src/api/messages.js';
import { trySplice } from '../../src/datapath/splice-flaws.js';
import { inCgroup, makeCgroup } from '../lab/cgroups.js';
import { createNetwork, type Network } from '../lab/cni.js';
import { type Daemon, inNetns, tryRun, waitFor } from '../lab/exec.js';
import { buildStreams } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { staticPod, TestAgent, TestProxy } from './agent.js';
import { BOTH_WAYS, INBOUND_WORDS } from './scene.js';

const ROOT = join(import.meta.dirname, '../..');
const OBJECTS = join(ROOT, 'build/bpf');
const PORT = 7000;
const SAME = [
  'both',
  'tiny',
  'talk',
  'half-close',
  'hang-up',
  'is-reset',
  'resets',
  'closes-with-bytes-unread',
  'peeks',
  'sendfile',
  'splices-out',
  'reads-late',
  'writes-to-slow',
  'never-blocks',
  'kTLS',
] as const;
/** By the word of src/datapath/splice-flaws.ts that names it. */
const FLAWED = {
  'waits-for-all': 'MSG_WAITALL',
  'splices-in': 'splice(2)',
  urgent: 'MSG_OOB',
  'blocking-both': 'recv(2)',
  'blocking-is-reset': 'recv(2)',
} as const;
const WITH = { annotations: { 'nodesentry.io/splice': 'enabled' } };
const WITHOUT = { annotations: { 'nodesentry.io/splice': 'disabled' } };

class Scene {
  readonly pods = new Map<string, PlainPod>();
  readonly #described = new Map<string, object>();
  #begun = 0;

  private constructor(
    readonly lab: Lab,
    readonly network: Network,
    readonly agent: TestAgent,
    readonly streams: string,
  ) {}

  static async open(inbound = false): Promise<Scene> {
    const lab = await Lab.create();
    const streams = await buildStreams();
    const sources = { static: { file: 'pods.yaml' } };
    const agent = new TestAgent(lab, { sources, ...(inbound && { instances: [BOTH_WAYS] }) });
    const scene = new Scene(lab, createNetwork(lab, 'ptp'), agent, streams);
    await scene.serve(lab.remote);
    await lab.serve();
    for (const [name, described] of [
      ['with', WITH],
      ['without', WITHOUT],
    ] as const) {
      scene.pods.set(name, await runPlainPod(lab, scene.network, name));
      scene.describe(name, described);
    }
    await agent.start();
    return scene;
  }

  async serve(netns: string): Promise<void> {
    const server = this.lab.daemon(netns, `streams-${netns}`, this.streams, ['serve', String(PORT)]);
    await server.logged(/serving/);
  }

  pod(name: string): PlainPod {
    return this.pods.get(name) as PlainPod;
  }

  describe(name: string, described: object): void {
    this.#described.set(name, staticPod(this.pod(name), described));
    this.agent.writePods([...this.#described.values()]);
  }

  async stream(name: string, command: string, ip: string, ...more: readonly string[]): Promise<object> {
    const words = [command, ip, String(PORT), ...more];
    return reply(await tryRun(...inNetns(this.pod(name).netnsName, this.streams, words)));
  }

  /** Runs on; what it says in the end is the last line of its log. */
  async begin(name: string, command: string, ip: string, ...more: readonly string[]): Promise<Daemon> {
    const { netnsName } = this.pod(name);
    const words = [command, ip, String(PORT), ...more];
    const daemon = this.lab.daemon(netnsName, `${command}-${name}-${this.#begun++}`, this.streams, words);
    return daemon;
  }

  async splice(): Promise<StatusMessage['splice']> {
    return (await this.agent.client.status()).splice;
  }

  /** Waits until this pod is spliced, or is not. */
  async isSpliced(name: string, used: boolean): Promise<void> {
    await this.agent.reaches(name, 'INTERCEPTED');
    const now = async () => (await this.agent.workload(name))?.interception.splice;
    await waitFor(`${name} to be spliced: ${used}`, async () => (await now())?.used === used).catch(
      async (error: unknown) => {
        throw new Error(`${String(error)}; it is ${JSON.stringify(await now())}\n${this.agent.log()}`);
      },
    );
  }
}

async function saidBy(daemon: Daemon): Promise<object> {
  const last = () => daemon.log().trim().split('\n').at(-1) ?? '';
  await waitFor(`${daemon.name} to say how it was`, () => last().startsWith('{'), 20_000);
  return JSON.parse(last());
}

const PROXIES = ['the reference proxy', 'HAProxy'] as const;

async function startProxy(scene: Scene, name: (typeof PROXIES)[number]): Promise<{ stop(): Promise<void> }> {
  const proxy = new TestProxy(scene.lab, scene.agent);
  let daemon: Daemon | undefined;
  if (name === 'HAProxy') {
    daemon = scene.lab.daemon(scene.lab.node, 'haproxy', 'haproxy', [
      '-f',
      join(ROOT, 'examples/haproxy.cfg'),
    ]);
  } else {
    await proxy.start();
  }
  await scene.agent.adopted(2);
  return daemon ?? proxy;
}

describe.each(PROXIES)('%s', (name) => {
  let scene: Scene;
  let proxy: { stop(): Promise<void> };

  beforeAll(async () => {
    scene = await Scene.open();
    proxy = await startProxy(scene, name);
    await scene.isSpliced('with', true);
    await scene.isSpliced('without', false);
  });

  afterAll(async () => {
    await proxy?.stop();
    await scene?.lab.close();
  });

  it.each(SAME)('%s: the same with the splice and without', async (command) => {
    const without = await scene.stream('without', command, REMOTE[4]);
    const before = await scene.splice();
    const spliced = await scene.stream('with', command, REMOTE[4]);
    const after = await scene.splice();
    expect(spliced).toEqual(without);
    expect(after.messages).toBeGreaterThan(before.messages);
    expect(after.ends - before.ends).toBeGreaterThanOrEqual(2);
  });

  it('by IPv6 as well', async () => {
    const before = await scene.splice();
    expect(await scene.stream('with', 'both', REMOTE[6])).toEqual(
      await scene.stream('without', 'both', REMOTE[6]),
    );
    expect((await scene.splice()).ends - before.ends).toBe(2);
  });

  it.each(Object.entries(FLAWED))(
    '%s: the same, or this kernel is said to get it wrong',
    async (command, flaw) => {
      const { flaws } = trySplice(OBJECTS);
      const spliced = await scene.stream('with', command, REMOTE[4]);
      const without = await scene.stream('without', command, REMOTE[4]);
      if (flaws.some((text) => text.includes(flaw))) {
        expect((await scene.splice()).flaws).toEqual(flaws);
      } else {
        expect(spliced).toEqual(without);
      }
    },
  );

  it('what the pod without it sends is none of its', async () => {
    const before = await scene.splice();
    await scene.stream('without', 'both', REMOTE[4]);
    expect(await scene.splice()).toEqual(before);
  });
});

describe('what comes between', () => {
  let scene: Scene;
  let proxy: TestProxy;

  beforeAll(async () => {
    scene = await Scene.open(true);
    proxy = new TestProxy(scene.lab, scene.agent);
    await proxy.start(...INBOUND_WORDS);
    await scene.agent.adopted(4);
    scene.pods.set('server', await runPlainPod(scene.lab, scene.network, 'server'));
    scene.describe('server', WITH);
    await scene.serve(scene.pod('server').netnsName);
    await scene.isSpliced('with', true);
    await scene.isSpliced('server', true);
  });

  afterAll(async () => {
    await scene?.lab.close();
  });

  it.each([4, 6] as const)('IPv%i: both legs of a flow between two pods of the node', async (family) => {
    const { ips } = scene.pod('server');
    const before = await scene.splice();
    expect(await scene.stream('with', 'both', ips[family])).toMatchObject({ right: true, end: 'EOF' });
    expect((await scene.splice()).ends - before.ends).toBe(4);
    const between = await scene.splice();
    expect(await scene.stream('without', 'both', ips[family])).toMatchObject({ right: true, end: 'EOF' });
    expect((await scene.splice()).ends - between.ends).toBe(2);
  });

  it('an application in a cgroup of its own', async () => {
    const cgroup = makeCgroup(scene.lab, 'app');
    const before = await scene.splice();
    const words = inCgroup(cgroup, [scene.streams, 'talk', REMOTE[4], String(PORT)]);
    const said = reply(await tryRun(...inNetns(scene.pod('with').netnsName, '/bin/sh', words)));
    expect(said).toMatchObject({ right: true, end: 'EOF' });
    const after = await scene.splice();
    expect([after.ends - before.ends, after.leftToTcp - before.leftToTcp < 100]).toEqual([2, true]);
  });

  it('the proxy is killed: both are told alike, and nothing wrong was read', async () => {
    const running = await Promise.all(
      ['with', 'without'].map((name) => scene.begin(name, 'last', REMOTE[4], '60000')),
    );
    await Promise.all(running.map((daemon) => daemon.logged(/running/)));
    await delay(500);
    await proxy.stop('SIGKILL');
    expect(await Promise.all(running.map(saidBy))).toEqual([
      { right: true, end: 'broken', some: true },
      { right: true, end: 'broken', some: true },
    ]);
    await proxy.start(...INBOUND_WORDS);
    await scene.agent.adopted(4);
  });

  it('the agent is killed: connections go on, spliced, and so do new ones', async () => {
    const running = await scene.begin('with', 'last', REMOTE[4], '3000');
    await running.logged(/running/);
    await scene.agent.stop('SIGKILL');
    expect(await scene.stream('with', 'both', REMOTE[6])).toMatchObject({ right: true, end: 'EOF' });
    expect(await saidBy(running)).toEqual({ right: true, end: 'done', some: true });
    await scene.agent.start();
    await scene.isSpliced('with', true);
    expect((await scene.splice()).messages).toBeGreaterThan(100);
  });

  it('it is turned off: connections go on, by TCP', async () => {
    const running = await scene.begin('with', 'last', REMOTE[4], '4000');
    await running.logged(/running/);
    scene.describe('server', WITHOUT);
    scene.describe('with', WITHOUT);
    await scene.isSpliced('with', false);
    await scene.isSpliced('server', false);
    await waitFor('nobody to be spliced', async () => (await scene.splice()).pods === 0);
    expect(await saidBy(running)).toEqual({ right: true, end: 'done', some: true });
    await waitFor('the splice to be taken out', () => !existsSync(join(scene.agent.bpffs, 'splice-v1')));
    scene.describe('with', WITH);
    await scene.isSpliced('with', true);
  });

  it('cleanup: who has not read in time is reset, the others go on', async () => {
    const [running, late] = await Promise.all([
      scene.begin('with', 'last', REMOTE[4], '9000'),
      scene.begin('with', 'reads-late', REMOTE[4], '9000'),
    ]);
    await running.logged(/running/);
    await delay(500);
    await scene.agent.stop();
    const { code, stdout } = await scene.agent.cli('cleanup');
    expect([code, stdout]).toEqual([0, expect.stringContaining('1 connections whose bytes nobody had read')]);
    expect(await saidBy(late)).toMatchObject({ right: true, end: 'ECONNRESET' });
    expect(await saidBy(running)).toMatchObject({ right: true });
    expect(existsSync(join(scene.agent.bpffs, 'splice-v1'))).toBe(false);
  });
});
