/**
 * A node in trouble that has nothing to do with us: a disk that is full or read-only, a bpffs that somebody unmounts.
 * Pods stay intercepted, and what cannot be done is told.
 */

import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { run, runIn, tryRun, waitFor } from '../lab/exec.js';
import { Load, Pauses } from '../lab/load.js';
import { NamespacePods } from '../lab/namespaces.js';
import { useScene } from './scene.js';

const CLI = join(import.meta.dirname, '../../bin/nodesentry');
const INTERCEPT = { 'nodesentry.io/intercept': 'enabled' };

describe('the run directory', () => {
  let pods: NamespacePods;
  let runDir: string;

  const scene = useScene({
    pods: [{ name: 'web' }],
    agent: { sources: { cni: {} } },
    prepare: async ({ lab }) => {
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
      pods = new NamespacePods(lab, { socket: join(runDir, 'cni.sock'), annotations: INTERCEPT });
    },
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
    const { agent } = scene;
    const logged = agent.log().length;
    const fresh = await scene.add({ name });
    await agent.reaches(name, 'INTERCEPTED');
    for (const pod of [scene.pod('web'), fresh]) {
      await scene.expectAtProxy(pod);
    }
    await expect(pods.add()).rejects.toThrow(errno);
    expect(agent.log().slice(logged)).toContain(errno);
    expect(agent.log().slice(logged).trim().split('\n').length).toBeLessThan(30);
    expect((await agent.client.status()).ready).toBe(true);
    await scene.expectNothingDirect();
  }

  it('full: the agent goes on and says what it could not write, and writes it when there is space again', async () => {
    const before = await pods.add();
    await tryRun('dd', ['if=/dev/zero', `of=${runDir}/filling`, 'bs=1k', 'count=128']);
    await expectGoesOn('while-full', 'ENOSPC');
    rmSync(join(runDir, 'filling'));
    const after = await pods.add();
    await scene.agent.reaches(after.name, 'INTERCEPTED');
    await scene.agent.stop();
    await scene.agent.start();
    for (const { name } of [before, after]) {
      await scene.agent.reaches(name, 'INTERCEPTED');
    }
  }, 30_000);

  it('read-only: the agent goes on, lets go of a pod that ends, and writes again when it can', async () => {
    const ending = await pods.add();
    await scene.agent.reaches(ending.name, 'INTERCEPTED');
    await makeReadOnly();
    await expectGoesOn('while-read-only', 'EROFS');
    await pods.remove(ending);
    await waitFor('the pod to be gone', async () => (await scene.agent.workload(ending.name)) === undefined);
    await makeWritable();
    const after = await pods.add();
    await scene.agent.reaches(after.name, 'INTERCEPTED');
  }, 30_000);

  it('read-only when the agent starts: one clear line, and exit code 1', async () => {
    await scene.agent.stop();
    await makeReadOnly();
    try {
      const { code, stderr } = await scene.agent.cli('agent');
      expect(code).toBe(1);
      expect(stderr).toMatch(new RegExp(`^nodesentry: .*run directory.*${runDir}.*read-only[^\n]*\n$`));
    } finally {
      await makeWritable();
    }
    await scene.agent.start();
    await scene.agent.reaches('web', 'INTERCEPTED');
  }, 30_000);
});

describe('the bpffs', () => {
  const scene = useScene({ pods: [{ name: 'web' }] });

  it('unmounted under a running agent, three times: no connection passes the proxy by, and all is pinned again', async () => {
    const { lab, agent } = scene;
    const before = (await agent.client.status()).repairs;
    const kinds = ['keepalive', 'connects'] as const;
    const load = await Load.start(
      lab,
      ([4, 6] as const).flatMap((family) =>
        kinds.map((kind) => ({ pod: scene.pod('web'), kind, family, everyMs: 5 })),
      ),
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
    await scene.expectNothingDirect();
    await scene.expectAtProxy(scene.pod('web'));
    const after = (await agent.client.status()).repairs;
    expect(after.pin).toBeGreaterThan(before.pin);
    expect(after.attachment).toBeGreaterThan(before.attachment);
    expect(agent.log()).toMatch(/"kind":"pin".*was missing.*"msg":"repaired"/);
    // The next agent finds all of it.
    await agent.stop();
    await agent.start();
    await agent.reaches('web', 'INTERCEPTED');
    await scene.expectAtProxy(scene.pod('web'));
    await scene.expectNothingDirect();
  }, 40_000);
});

describe('the bpffs of the node, for an agent in a container that must not mount one', () => {
  let mountPoint: string;

  const scene = useScene({
    pods: [{ name: 'web' }],
    prepare: async ({ lab }) => {
      mountPoint = join(lab.directory, 'bpffs');
      mkdirSync(mountPoint);
      await run('mount', ['-t', 'bpf', 'bpf', mountPoint]);
      lab.cleanup.add('the bpffs', () => tryRun('umount', ['-l', mountPoint]));
    },
    startAgent: async ({ lab, agent }) => {
      const bpffs = join(mountPoint, 'ns');
      const globals = ['--run-dir', agent.runDir, '--bpffs', bpffs, '--config', agent.configPath];
      const daemon = lab.daemon(lab.node, 'agent-contained', CLI, [...globals, 'agent', '--no-mount-bpffs']);
      await daemon.logged(/"msg":"agent running"/, 30_000);
    },
  });

  it('unmounted: told until it is mounted again, while traffic goes on to the proxy and rules are repaired', async () => {
    const { agent, lab } = scene;
    await run('umount', ['-l', mountPoint]);
    await agent.reaches('web', 'DEGRADED');
    const TOLD = /Ready: +NO: datapath: .* is not a bpffs any more: run "mount -t bpf/;
    await waitFor('it to be told', async () => TOLD.test((await agent.cli('status')).stdout));
    await runIn(lab.node, 'ip', ['rule', 'del', 'pref', '90']);
    await waitFor('the rule to be back', async () => /^90:/m.test(await runIn(lab.node, 'ip', ['rule'])));
    await scene.expectAtProxy(scene.pod('web'));
    await run('mount', ['-t', 'bpf', 'bpf', mountPoint]);
    await agent.reaches('web', 'INTERCEPTED');
    expect((await run('ls', [join(mountPoint, 'ns/v1/links')])).split('\n')).toContain('socket-lookup');
    await scene.expectAtProxy(scene.pod('web'));
    await scene.expectNothingDirect();
  }, 30_000);
});
