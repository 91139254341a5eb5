/**
 * A node in trouble that has nothing to do with us: a disk that is full or read-only, a bpffs that somebody unmounts.
 * Pods stay intercepted, and what cannot be done is told.
 */

import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run, runIn, tryRun, waitFor } from '../lab/exec.js';
import { Lab } from '../lab/lab.js';
import { Load, Pauses } from '../lab/load.js';
import { NamespacePods } from '../lab/namespaces.js';
import type { PlainPod } from '../lab/plain.js';
import { Trouble } from './trouble.js';

const CLI = join(import.meta.dirname, '../../bin/nodesentry');
const INTERCEPT = { 'nodesentry.io/intercept': 'enabled' };

describe('the run directory', () => {
  let trouble: Trouble;
  let pods: NamespacePods;
  let web: PlainPod;
  let runDir: string;

  beforeAll(async () => {
    const lab = await Lab.create();
    lab.cleanup.add('namespaces of pods that were refused', async () => {
      for (const { name } of JSON.parse(await run('ip', ['-j', 'netns'])) as { name: string }[]) {
        if (name.startsWith(`nsl-${lab.id}-pod-`)) {
          await run('ip', ['netns', 'del', name]);
        }
      }
    });
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
    const pauses = await Pauses.undisturbed(load, () => runIn(lab.node, 'sleep', ['1']));
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
    pauses.check('three times without a bpffs', await load.stop());
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
