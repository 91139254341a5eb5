/**
 * A node with more pods than the tables in the kernel have room for. The programs are ours, compiled for a node of three
 * pods and ten addresses: what has no room must be told, must not start, and must take nothing from those that have theirs.
 */

import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { Capture, flowOf, POD_TCP } from '../lab/capture.js';
import { createNetwork, type Network } from '../lab/cni.js';
import { waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { staticPod, TestAgent, TestProxy } from './agent.js';

/** Of the four rows of the table one is the agent's own. */
const ROOM = 3;

let lab: Lab;
let agent: TestAgent;
let proxy: TestProxy;
let plain: Network;
let uplink: Capture;
let late: PlainPod;
const pods: PlainPod[] = [];

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  plain = createNetwork(lab, 'ptp');
  agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' }, cni: {} },
    interception: { enrol: 'all' },
  });
  // The row of a pod that has gone is kept for that long.
  agent.writeConfig({ identity: { rememberSeconds: 1 } });
  agent.objects = join(import.meta.dirname, '../../build/bpf-small');
  for (let n = 0; n < ROOM; n++) {
    pods.push(await runPlainPod(lab, plain, `web-${n}`));
  }
  agent.writePods(pods.map((pod) => staticPod(pod)));
  await agent.start();
  proxy = new TestProxy(lab, agent);
  await proxy.start('--allow-unidentified');
  await agent.adopted(2);
  for (const { name } of pods) {
    await agent.reaches(name, 'INTERCEPTED');
  }
  uplink = await Capture.start(lab, lab.node, 'uplink', POD_TCP);
}, 120_000);

afterAll(async () => {
  await lab?.close();
});

async function expectIntercepted(pod: PlainPod): Promise<void> {
  const { localPort } = reply(await pod.app(['dial', REMOTE[4], '80']));
  expect(await proxy.flowFrom(`${pod.ips[4]}:${localPort}`)).toMatchObject({
    originalDst: `${REMOTE[4]}:80`,
  });
}

function describe(...all: readonly PlainPod[]): void {
  agent.writePods(all.map((pod) => staticPod(pod)));
}

const FULL = /^the kernel's table workloads is full: it has room for 4$/;

it('the pod that is one too many is told, with what is full; the others stay as they are', async () => {
  late = await runPlainPod(lab, plain, 'late');
  describe(...pods, late);
  const { interception } = await agent.reaches('late', 'PENDING');
  expect(interception).toMatchObject({
    desired: true,
    programmed: false,
    verified: false,
    reason: expect.stringMatching(FULL),
  });
  expect((await agent.cli('pods')).stdout).toMatch(/late .*PENDING .*table workloads is full/);
  expect((await agent.cli('status')).stdout).toMatch(/PENDING +1$/m);
  for (const pod of pods) {
    await expectIntercepted(pod);
  }
});

it('ADD fails with the same, so the pod does not start', async () => {
  const socket = join(agent.runDir, 'cni.sock');
  const chained = createNetwork(lab, 'ptp', { socket, timeoutMs: 1_000 }, '-chained');
  await expect(runPlainPod(lab, chained, 'added')).rejects.toThrow("the kernel's table workloads is full");
  // As a runtime does after it.
  await chained.detach(`nsl-${lab.id}-added`, `/run/netns/nsl-${lab.id}-added`);
});

it('a pod with more addresses than there is room for is told', async () => {
  const [first] = pods as [PlainPod];
  const more = ['10.66.16.201', '10.66.16.202', '10.66.16.203', '10.66.16.204', '10.66.16.205'];
  agent.writePods([
    ...pods.slice(1).map((pod) => staticPod(pod)),
    staticPod(first, { ips: [first.ips[4], first.ips[6], ...more] }),
  ]);
  const { interception } = await waitFor('it to be told', async () => {
    const found = await agent.workload(first.name);
    return found?.interception.reason.includes('full') ? found : undefined;
  });
  expect(interception).toMatchObject({
    state: 'DEGRADED',
    reason: "the kernel's table sources is full: it has room for 10",
  });
  describe(...pods);
  await agent.reaches(first.name, 'INTERCEPTED');
});

it('who waits gets the place of one that goes', async () => {
  const [first, ...rest] = pods as [PlainPod, ...PlainPod[]];
  describe(...rest, late);
  await first.stop();
  await agent.reaches('late', 'INTERCEPTED');
  await expectIntercepted(late);
});

it('none of their packets has left meanwhile', async () => {
  expect((await uplink.all()).map(flowOf)).toEqual([]);
});
