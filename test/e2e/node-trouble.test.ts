/**
 * A node in trouble that has nothing to do with us: a disk that is full or read-only, a bpffs that somebody unmounts, a
 * clock that is set. Pods stay intercepted, and what cannot be done is told.
 */

import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Capture, flowOf, POD_TCP } from '../lab/capture.js';
import { createNetwork, type Network } from '../lab/cni.js';
import { run, runIn, tryRun, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { Load, longestAllowedMs } from '../lab/load.js';
import { NamespacePods } from '../lab/namespaces.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { staticPod, TestAgent, TestProxy } from './agent.js';

const CLI = join(import.meta.dirname, '../../bin/nodesentry');
const FAKETIME = '/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1';
const INTERCEPT = { 'nodesentry.io/intercept': 'enabled' };

/** A lab with an agent of static pods, a proxy and a capture of what passes it by. */
class Trouble {
  readonly lab: Lab;
  readonly agent: TestAgent;
  readonly proxy: TestProxy;
  readonly #network: Network;
  readonly #described = new Map<string, object>();
  #uplink: Capture | undefined;

  constructor(lab: Lab, sources: object = {}) {
    this.lab = lab;
    this.agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' }, ...sources } });
    this.proxy = new TestProxy(lab, this.agent);
    this.#network = createNetwork(lab, 'ptp');
    this.#write();
  }

  async start(startAgent: () => Promise<void> = () => this.agent.start()): Promise<PlainPod> {
    await this.lab.serve();
    const web = await this.pod('web');
    await startAgent();
    await this.proxy.start();
    await this.agent.adopted(2);
    await this.agent.reaches('web', 'INTERCEPTED');
    this.#uplink = await Capture.start(this.lab, this.lab.node, 'uplink', POD_TCP);
    return web;
  }

  async pod(name: string): Promise<PlainPod> {
    const pod = await runPlainPod(this.lab, this.#network, name);
    this.#described.set(pod.uid, staticPod(pod));
    this.#write();
    return pod;
  }

  drop(pod: PlainPod): void {
    this.#described.delete(pod.uid);
    this.#write();
  }

  /** A new connection, as the proxy sees it, with the name that the agent gave it. */
  async expectAtProxy(pod: PlainPod): Promise<void> {
    const { localPort } = reply(await pod.app(['dial', REMOTE[4], '80'], 10_000));
    expect(await this.proxy.flowFrom(`${pod.ips[4]}:${localPort}`)).toMatchObject({
      originalDst: `${REMOTE[4]}:80`,
      resolved: true,
      workload: `default/${pod.name}`,
    });
  }

  async expectNothingDirect(): Promise<void> {
    expect((await this.#uplink?.all())?.map(flowOf)).toEqual([]);
  }

  #write(): void {
    this.agent.writePods([...this.#described.values()]);
  }
}

describe('the run directory', () => {
  let trouble: Trouble;
  let pods: NamespacePods;
  let web: PlainPod;
  let runDir: string;

  beforeAll(async () => {
    const lab = await Lab.create();
    runDir = join(lab.directory, 'run');
    mkdirSync(runDir);
    await run('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', runDir]);
    lab.cleanup.add('the run directory', async () => {
      while ((await tryRun('umount', ['-l', runDir])).code === 0) {} // one over the other, after a failure
    });
    trouble = new Trouble(lab, { cni: {} });
    web = await trouble.start();
    pods = new NamespacePods(lab, { socket: join(runDir, 'cni.sock'), annotations: INTERCEPT });
  }, 60_000);

  afterAll(async () => {
    await trouble?.lab.close();
  });

  /** By a mount over it: while somebody has a file open for writing, as the agent has, a file system stays writable. */
  async function makeReadOnly(): Promise<void> {
    await run('mount', ['--bind', runDir, runDir]);
    await run('mount', ['-o', 'remount,bind,ro', runDir]);
  }

  async function makeWritable(): Promise<void> {
    await run('umount', ['-l', runDir]);
  }

  /** Pods go on, a new one is enrolled, and a pod that has to be written down is told why it cannot start. */
  async function expectGoesOn(name: string, errno: string): Promise<void> {
    const { agent } = trouble;
    const logged = agent.log().length;
    const fresh = await trouble.pod(name);
    await agent.reaches(name, 'INTERCEPTED');
    for (const pod of [web, fresh]) {
      await trouble.expectAtProxy(pod);
    }
    await expect(pods.add()).rejects.toThrow(errno);
    expect(agent.log().slice(logged)).toContain(errno);
    expect(agent.log().slice(logged).trim().split('\n').length).toBeLessThan(30);
    expect((await agent.client.status()).ready).toBe(true);
    await trouble.expectNothingDirect();
  }

  it('full: the agent goes on and says what it could not write, and writes it when there is space again', async () => {
    const before = await pods.add();
    await tryRun('dd', ['if=/dev/zero', `of=${runDir}/filling`, 'bs=1k', 'count=128']);
    await expectGoesOn('while-full', 'ENOSPC');
    rmSync(join(runDir, 'filling'));
    const after = await pods.add();
    await trouble.agent.reaches(after.name, 'INTERCEPTED');
    await trouble.agent.stop();
    await trouble.agent.start();
    for (const { name } of [before, after]) {
      await trouble.agent.reaches(name, 'INTERCEPTED');
    }
  }, 30_000);

  it('read-only: the agent goes on, lets go of a pod that ends, and writes again when it can', async () => {
    const ending = await pods.add();
    await trouble.agent.reaches(ending.name, 'INTERCEPTED');
    await makeReadOnly();
    await expectGoesOn('while-read-only', 'EROFS');
    await pods.remove(ending);
    await waitFor(
      'the pod to be gone',
      async () => (await trouble.agent.workload(ending.name)) === undefined,
    );
    await makeWritable();
    const after = await pods.add();
    await trouble.agent.reaches(after.name, 'INTERCEPTED');
  }, 30_000);

  it('read-only when the agent starts: one clear line, and exit code 1', async () => {
    await trouble.agent.stop();
    await makeReadOnly();
    try {
      const { code, stderr } = await trouble.agent.cli('agent');
      expect(code).toBe(1);
      expect(stderr).toMatch(new RegExp(`^nodesentry: .*run directory.*${runDir}.*read-only[^\n]*\n$`));
    } finally {
      await makeWritable();
    }
    await trouble.agent.start();
    await trouble.agent.reaches('web', 'INTERCEPTED');
  }, 30_000);
});

describe('the bpffs', () => {
  let trouble: Trouble;
  let web: PlainPod;

  beforeAll(async () => {
    trouble = new Trouble(await Lab.create());
    web = await trouble.start();
  }, 60_000);

  afterAll(async () => {
    await trouble?.lab.close();
  });

  it('unmounted under a running agent, three times: no connection passes the proxy by, and all is pinned again', async () => {
    const { lab, agent } = trouble;
    const before = (await agent.client.status()).repairs;
    const kinds = ['keepalive', 'connects'] as const;
    const load = await Load.start(
      lab,
      ([4, 6] as const).flatMap((family) => kinds.map((kind) => ({ pod: web, kind, family, everyMs: 5 }))),
    );
    await runIn(lab.node, 'sleep', ['1']);
    const undisturbedMs = Math.max(...(await load.told()).map(({ slowestMs }) => slowestMs));
    for (let times = 0; times < 3; times += 1) {
      await run('umount', ['-l', agent.bpffs]);
      await waitFor('the bpffs to be back', () =>
        tryRun('ls', [join(agent.bpffs, 'v1/links/socket-lookup')]).then(({ code }) => code === 0),
      );
      await waitFor('the pins of the pod to be back', async () => {
        const { stdout } = await tryRun('ls', [join(agent.bpffs, 'v1/links')]);
        return /egress-\d+/.test(stdout);
      });
    }
    for (const { failures, slowestMs } of await load.stop()) {
      expect(failures).toBe(0);
      expect(slowestMs).toBeLessThan(longestAllowedMs(undisturbedMs));
    }
    await agent.reaches('web', 'INTERCEPTED');
    await trouble.expectNothingDirect();
    await trouble.expectAtProxy(web);
    const after = (await agent.client.status()).repairs;
    expect(after.pin).toBeGreaterThan(before.pin);
    expect(after.attachment).toBeGreaterThan(before.attachment);
    expect(agent.log()).toMatch(/"kind":"pin".*was missing.*"msg":"repaired"/);
    // The next agent finds all of it.
    await agent.stop();
    await agent.start();
    await agent.reaches('web', 'INTERCEPTED');
    await trouble.expectAtProxy(web);
    await trouble.expectNothingDirect();
  }, 40_000);
});

describe('the bpffs of the node, for an agent in a container that must not mount one', () => {
  let trouble: Trouble;
  let web: PlainPod;
  let mountPoint: string;

  beforeAll(async () => {
    const lab = await Lab.create();
    trouble = new Trouble(lab);
    const { agent } = trouble;
    mountPoint = join(lab.directory, 'bpffs');
    mkdirSync(mountPoint);
    await run('mount', ['-t', 'bpf', 'bpf', mountPoint]);
    lab.cleanup.add('the bpffs', () => tryRun('umount', ['-l', mountPoint]));
    const globals = [
      '--run-dir',
      agent.runDir,
      '--bpffs',
      join(mountPoint, 'ns'),
      '--config',
      agent.configPath,
    ];
    web = await trouble.start(async () => {
      const daemon = lab.daemon(lab.node, 'agent-contained', CLI, [...globals, 'agent', '--no-mount-bpffs']);
      await daemon.logged(/"msg":"agent running"/, 30_000);
    });
  }, 60_000);

  afterAll(async () => {
    await trouble?.lab.close();
  });

  it('unmounted: told until it is mounted again, while traffic goes on to the proxy and rules are repaired', async () => {
    const { agent, lab } = trouble;
    await run('umount', ['-l', mountPoint]);
    await agent.reaches('web', 'DEGRADED');
    expect((await agent.cli('status')).stdout).toMatch(
      /Ready: +NO: datapath: .* is not a bpffs any more: run "mount -t bpf/,
    );
    await runIn(lab.node, 'ip', ['rule', 'del', 'pref', '90']);
    await waitFor('the rule to be back', async () => /^90:/m.test(await runIn(lab.node, 'ip', ['rule'])));
    await trouble.expectAtProxy(web);
    await run('mount', ['-t', 'bpf', 'bpf', mountPoint]);
    await agent.reaches('web', 'INTERCEPTED');
    expect((await run('ls', [join(mountPoint, 'ns/v1/links')])).split('\n')).toContain('socket-lookup');
    await trouble.expectAtProxy(web);
    await trouble.expectNothingDirect();
  }, 30_000);
});

describe('the clock', () => {
  let trouble: Trouble;
  let web: PlainPod;
  let offset: string;

  beforeAll(async () => {
    const lab = await Lab.create();
    trouble = new Trouble(lab);
    offset = join(lab.directory, 'offset');
    setClock('+0');
    web = await trouble.start(() => startUnderFakedClock());
  }, 60_000);

  afterAll(async () => {
    await trouble?.lab.close();
  });

  function setClock(to: string): void {
    writeFileSync(offset, `${to}\n`);
  }

  async function startUnderFakedClock(): Promise<void> {
    const { lab, agent } = trouble;
    const faked = [
      `LD_PRELOAD=${FAKETIME}`,
      `FAKETIME_TIMESTAMP_FILE=${offset}`,
      'FAKETIME_NO_CACHE=1',
      'DONT_FAKE_MONOTONIC=1',
    ];
    const globals = ['--run-dir', agent.runDir, '--bpffs', agent.bpffs, '--config', agent.configPath];
    const daemon = lab.daemon(lab.node, 'agent-faked', 'env', [...faked, CLI, ...globals, 'agent']);
    log = () => daemon.log();
    await daemon.logged(/"msg":"agent running"/, 30_000);
  }
  let log = () => '';

  /** Of the last line of the agent's log, which bears the clock that it sees. */
  function agentDay(): string | undefined {
    return /"time":"(\d{4}-\d\d-\d\d)T/.exec(log().trim().split('\n').at(-1) ?? '')?.[1];
  }

  async function expectCalm(from: Readonly<Record<string, number>>): Promise<void> {
    const { agent } = trouble;
    await runIn(trouble.lab.node, 'sleep', ['1.5']);
    await agent.reaches('web', 'INTERCEPTED');
    await trouble.expectAtProxy(web);
    const { repairs, ready } = await agent.client.status();
    expect({ repairs, ready }).toEqual({ repairs: from, ready: true });
    await trouble.expectNothingDirect();
  }

  /** Dialled, then dropped by its source: its flow is still answered for, for a minute of real time. */
  async function endedPod(name: string): Promise<{ resolves: () => Promise<string> }> {
    const { agent } = trouble;
    const pod = await trouble.pod(name);
    await agent.reaches(name, 'INTERCEPTED');
    const { localPort } = reply(await pod.app(['dial', REMOTE[4], '80'], 10_000));
    trouble.drop(pod);
    await waitFor(`${name} to be dropped`, async () => (await agent.workload(name)) === undefined);
    return {
      resolves: async () => {
        const { workload } = await agent.client.resolve({
          proto: 'tcp',
          src: { ip: pod.ips[4], port: Number(localPort) },
          dst: { ip: REMOTE[4], port: 80 },
        });
        return workload.state;
      },
    };
  }

  it('set one day ahead, then two days back: pods stay intercepted, ended ones are remembered for their minute', async () => {
    const { repairs } = await trouble.agent.client.status();
    const ended = await endedPod('ended-before');
    expect(await ended.resolves()).toBe('TERMINATING');
    const today = agentDay();
    setClock('+1d');
    await expectCalm(repairs);
    const next = await endedPod('ended-ahead');
    expect(agentDay()).not.toBe(today);
    expect(await ended.resolves()).toBe('TERMINATING');
    setClock('-1d');
    await expectCalm(repairs);
    expect(await ended.resolves()).toBe('TERMINATING');
    expect(await next.resolves()).toBe('TERMINATING');
    await endedPod('ended-back');
    expect(agentDay()).not.toBe(today);
    await expectCalm(repairs);
  }, 40_000);
});
