/**
 * A node with more pods than the tables in the kernel have room for. The programs are ours, compiled for a node of three
 * pods and ten addresses: what has no room must be told, must not start, and must take nothing from those that have theirs.
 */

import { join } from 'node:path';
import { expect, it } from 'vitest';
import { createNetwork } from '../lab/cni.js';
import { waitFor } from '../lab/exec.js';
import { runPlainPod } from '../lab/plain.js';
import { useScene } from './scene.js';

/** Of the four rows of the table one is the agent's own. */
const ROOM = 3;

const NAMES = Array.from({ length: ROOM }, (_, n) => `web-${n}`);

const scene = useScene({
  pods: NAMES.map((name) => ({ name })),
  agent: { sources: { cni: {} }, interception: { enrol: 'all' } },
  startAgent: async ({ agent }) => {
    // The row of a pod that has gone is kept for that long.
    agent.writeConfig({ identity: { rememberSeconds: 1 } });
    agent.objects = join(import.meta.dirname, '../../build/bpf-small');
    await agent.start();
  },
});

const FULL = /^the kernel's table workloads is full: it has room for 4$/;

it('the pod that is one too many is told, with what is full; the others stay as they are', async () => {
  await scene.add({ name: 'late' });
  // PENDING it is from the moment that it is known.
  const { interception } = await waitFor('the reason', async () => {
    const late = await scene.agent.workload('late');
    return late?.interception.reason === '' ? undefined : late;
  });
  expect(interception).toMatchObject({
    desired: true,
    programmed: false,
    verified: false,
    reason: expect.stringMatching(FULL),
  });
  expect((await scene.agent.cli('pods')).stdout).toMatch(/late .*PENDING .*table workloads is full/);
  expect((await scene.agent.cli('status')).stdout).toMatch(/PENDING +1$/m);
  for (const name of NAMES) {
    await scene.expectAtProxy(scene.pod(name));
  }
});

it('ADD fails with the same, so the pod does not start', async () => {
  const { lab, agent } = scene;
  const socket = join(agent.runDir, 'cni.sock');
  const chained = createNetwork(lab, 'ptp', { socket, timeoutMs: 1_000 }, '-chained');
  await expect(runPlainPod(lab, chained, 'added')).rejects.toThrow("the kernel's table workloads is full");
  // As a runtime does after it.
  await chained.detach(`nsl-${lab.id}-added`, `/run/netns/nsl-${lab.id}-added`);
});

it('a pod with more addresses than there is room for is told', async () => {
  const pod = scene.pod('web-0');
  const more = ['10.66.16.201', '10.66.16.202', '10.66.16.203', '10.66.16.204', '10.66.16.205'];
  scene.describe(pod, { ips: [pod.ips[4], pod.ips[6], ...more] });
  const { interception } = await waitFor('it to be told', async () => {
    const found = await scene.agent.workload(pod.name);
    return found?.interception.reason.includes('full') ? found : undefined;
  });
  expect(interception).toMatchObject({
    state: 'DEGRADED',
    reason: "the kernel's table sources is full: it has room for 10",
  });
  scene.describe(pod);
  await scene.agent.reaches(pod.name, 'INTERCEPTED');
});

it('who waits gets the place of one that goes', async () => {
  const pod = scene.pod('web-0');
  scene.drop(pod);
  await pod.stop();
  await scene.agent.reaches('late', 'INTERCEPTED');
  await scene.expectAtProxy(scene.pod('late'));
});

it('none of their packets has left meanwhile', async () => {
  await scene.expectNothingDirect();
});
