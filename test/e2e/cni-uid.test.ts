/** A runtime that leaves out K8S_POD_UID: the pod is intercepted at once, and under its own UID once that is known. */

import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { createNetwork } from '../lab/cni.js';
import { waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { callPlugin } from '../unit/cni-plugin-lab.js';
import { staticPod, TestAgent, TestProxy } from './agent.js';

let lab: Lab;
let agent: TestAgent;
let pod: PlainPod;

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  agent = new TestAgent(lab, { sources: { cni: {}, static: { file: 'pods.yaml' } } });
  agent.writePods([]);
  await agent.start();
  await new TestProxy(lab, agent).start();
  await agent.adopted(2);
  pod = await runPlainPod(lab, createNetwork(lab, 'ptp'), 'web');
}, 120_000);

afterAll(async () => {
  await lab?.close();
});

function add() {
  const configuration = {
    cniVersion: '1.0.0',
    name: 'pods',
    type: 'nodesentry-cni',
    socket: join(agent.runDir, 'cni.sock'),
    failure: 'closed',
    timeoutMs: 20_000,
    runtimeConfig: { 'io.kubernetes.cri.pod-annotations': { 'nodesentry.io/intercept': 'enabled' } },
    prevResult: {
      cniVersion: '1.0.0',
      interfaces: [{ name: 'eth0', sandbox: pod.netns }],
      ips: [
        { address: `${pod.ips[4]}/24`, interface: 0 },
        { address: `${pod.ips[6]}/64`, interface: 0 },
      ],
    },
  };
  const env = {
    CNI_COMMAND: 'ADD',
    CNI_CONTAINERID: 'c1b2',
    CNI_NETNS: pod.netns,
    CNI_IFNAME: 'eth0',
    CNI_PATH: '/opt/cni/bin',
    CNI_ARGS: `K8S_POD_NAMESPACE=${pod.namespace};K8S_POD_NAME=${pod.name}`,
  };
  return callPlugin(env, JSON.stringify(configuration));
}

it('is one pod, intercepted under its own UID, from the moment that another source names its namespace', async () => {
  expect(await add()).toMatchObject({ code: 0, stderr: '' });
  expect(await agent.reaches('web', 'INTERCEPTED')).toMatchObject({ uid: 'c1b2', spiffeId: '' });
  agent.writePods([staticPod(pod)]);
  await waitFor('the pod to be known by its UID', async () => (await agent.workload('web'))?.uid === pod.uid);
  await agent.reaches('web', 'INTERCEPTED');
  expect((await agent.client.workloads()).workloads.map(({ uid }) => uid)).toEqual([pod.uid]);
  const dialled = reply(await pod.app(['dial', REMOTE[4], '80']));
  expect(dialled).toMatchObject({ ok: true });
  const src = { ip: pod.ips[4], port: Number(dialled.localPort) };
  expect(await agent.client.resolve({ proto: 'tcp', src, dst: { ip: REMOTE[4], port: 80 } })).toMatchObject({
    workload: { podUid: pod.uid },
    assurance: 'DATAPATH_RECORDED',
  });
  // The ADD is repeated, as after a restart of the runtime: still the same pod.
  expect(await add()).toMatchObject({ code: 0, stderr: '' });
  expect((await agent.client.workloads()).workloads.map(({ uid }) => uid)).toEqual([pod.uid]);
}, 60_000);
