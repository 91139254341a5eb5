/**
 * What the API server and the runtime leave out while a pod's processes run on: it is deleted by force, or missing from
 * one answer. Its traffic goes to the proxy until its sandbox is gone.
 */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { createNetwork } from '../lab/cni.js';
import { Daemon, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { hostIndexOf, type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { CriStandIn, type Sandbox } from '../unit/cri-stand-in.js';
import { ApiServerStandIn, apiNamespace, apiPod } from '../unit/kubernetes-stand-in.js';
import { OUTBOUND, TestAgent } from './agent.js';

let lab: Lab;
let agent: TestAgent;
let server: ApiServerStandIn;
let runtime: CriStandIn;
let pod: PlainPod;
let ifindex: number;

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  pod = await runPlainPod(lab, createNetwork(lab, 'ptp'), 'web');
  ifindex = await hostIndexOf(pod.netnsName);
  runtime = new CriStandIn(join(lab.directory, 'cri.sock'));
  runtime.sandboxes = [sandbox()];
  await runtime.listen();
  lab.cleanup.add('the stand-in of the runtime', () => runtime.kill());
  server = new ApiServerStandIn();
  await server.listen();
  lab.cleanup.add('the stand-in of the API server', () => server.kill());
  const labels = { 'nodesentry.io/intercept': 'enabled' };
  server.put('namespaces', apiNamespace('default', { labels }));
  server.put('pods', apiPod('web', { metadata: { uid: pod.uid }, status: { podIPs: [{ ip: pod.ips[4] }] } }));
  const kubeconfig = join(lab.directory, 'kubeconfig');
  server.writeKubeconfig(kubeconfig, { server: relay() });
  proxy();
  agent = new TestAgent(lab, {
    sources: { cri: { endpoint: runtime.endpoint }, kubernetes: { kubeconfig } },
    instances: [{ name: 'default', outbound: OUTBOUND[0] }],
  });
  await agent.start();
  await agent.adopted(1);
  await agent.reaches('web', 'INTERCEPTED');
});

afterAll(async () => {
  await lab?.close();
});

/** What the runtime tells of the pod: nothing of its namespace's labels. */
function sandbox(): Sandbox {
  const namespaces = [{ type: 'network', path: pod.netns }];
  return {
    id: 'sandbox-of-web',
    metadata: { uid: pod.uid, name: 'web', namespace: 'default', attempt: 0 },
    network: { ip: pod.ips[4] },
    labels: { app: 'web' },
    info: { runtimeSpec: { linux: { namespaces } } },
  };
}

/** The API server listens in the test's own network namespace, the agent asks in the node's. */
function relay(): string {
  const socket = join(lab.directory, 'api.sock');
  const outside = new Daemon('api-outside', join(lab.directory, 'api-outside.log'), 'socat', [
    `UNIX-LISTEN:${socket},fork`,
    `TCP:${server.url.replace('http://', '')}`,
  ]);
  lab.cleanup.add('api-outside', () => outside.stop());
  lab.daemon(lab.node, 'api-inside', 'socat', [
    'TCP-LISTEN:8080,bind=127.0.0.1,fork,reuseaddr',
    `UNIX-CONNECT:${socket}`,
  ]);
  return 'http://127.0.0.1:8080';
}

function proxy(): void {
  const answer = join(lab.directory, 'answer');
  writeFileSync(answer, '{"peer":"the proxy"}\n');
  const listen = 'TCP-LISTEN:15001,bind=127.0.0.1,fork,reuseaddr';
  lab.daemon(lab.node, 'proxy', 'socat', [listen, `SYSTEM:read line; cat ${answer}`]);
}

/** Who answers a new connection of the pod: the remote would tell the address that it came from. */
async function answers(): Promise<unknown> {
  return reply(await pod.app(['dial', REMOTE[4], '80'])).server;
}

function tell(...sandboxes: Sandbox[]): void {
  runtime.sandboxes = sandboxes;
  runtime.event();
}

const PROXY = { peer: 'the proxy' };

it('the runtime leaves it out of an answer: held, under the same enrolment, and intercepted when it is named again', async () => {
  const { generation } = await agent.reaches('web', 'INTERCEPTED');
  tell();
  const { interception } = await agent.reaches('web', 'DEGRADED');
  expect(interception.reason).toMatch(/^held as it was: NETNS_UNKNOWN: /);
  expect(await answers()).toEqual(PROXY);
  tell(sandbox());
  expect((await agent.reaches('web', 'INTERCEPTED')).generation).toBe(generation);
});

it('both leave it out: it stays for a while all the same', async () => {
  const object = server.objects.pods.get('default/web') as Parameters<typeof server.put>[1];
  server.delete('pods', 'web', 'default');
  tell();
  await waitFor('the pod to be unknown', async () => (await agent.workload('web')) === undefined);
  await delay(2_500); // two rounds and more
  expect(await answers()).toEqual(PROXY);
  server.put('pods', object);
  tell(sandbox());
  await agent.reaches('web', 'INTERCEPTED');
});

it('it is deleted by force: intercepted as before, held by the next agent, and gone with its sandbox', async () => {
  server.delete('pods', 'web', 'default');
  await waitFor('the reason', async () =>
    (await agent.workload('web'))?.interception.reason?.startsWith('terminating: '),
  );
  expect((await agent.workload('web'))?.interception.state).toBe('INTERCEPTED');
  expect(await answers()).toEqual(PROXY);

  await agent.stop();
  await agent.start();
  const { interception } = await agent.reaches('web', 'DEGRADED');
  expect(interception.reason).toMatch(/^held as it was: UNCONFIRMED: /);
  expect(await answers()).toEqual(PROXY);

  expect(agent.endpoints()).toEqual([ifindex]);
  await pod.stop();
  await waitFor('its endpoint to go', () => agent.endpoints().length === 0, 3_000);
  tell();
  await waitFor('the pod to be unknown', async () => (await agent.workload('web')) === undefined);
});
