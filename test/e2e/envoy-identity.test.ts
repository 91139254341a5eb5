/**
 * Envoy with several workers, run with examples/envoy-identity.yaml, asks the agent by ext_authz: the server is told the pod's
 * SPIFFE ID and nothing that the app has made up, and who has no identity gets nowhere.
 */

import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Containerd } from '../lab/containerd.js';
import { type Daemon, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { MicroVms } from '../lab/microvm.js';
import { type LabPod, reply } from '../lab/pod.js';
import { RUNTIMES } from '../lab/runtimes.js';
import { staticPod, TestAgent } from './agent.js';
import { echo, echoed, exampleFor, get, HTTP_PORT, spiffeId } from './http-app.js';

const ENVOY = join(import.meta.dirname, '../../.cache/bin/envoy');
const FAMILIES = [4, 6] as const;
const FORGED = ['x-spiffe-id:spiffe://cluster.local/ns/kube-system/sa/admin', 'X-Spiffe-Id:another'];
/** So many that every worker has some. */
const REQUESTS = 12;

let lab: Lab;
let agent: TestAgent;
let envoy: Daemon;
let nameless: LabPod;
const pods = new Map<string, LabPod>();
const pod = (name: string) => pods.get(name) as LabPod;
const at = (ip: string, port: unknown) => (ip.includes(':') ? `[${ip}]:${port}` : `${ip}:${port}`);

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  await echo(lab, HTTP_PORT);
  const containerd = await Containerd.start(lab, 'ptp');
  const microvms = new MicroVms(lab, 'ptp', containerd.network);
  agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' }, cri: { endpoint: `unix://${containerd.socket}` } },
  });
  const started = RUNTIMES.map((runtime) =>
    runtime === 'rund' ? microvms.runPod({ name: runtime }) : containerd.runPod({ name: runtime, runtime }),
  );
  for (const one of await Promise.all(started)) {
    pods.set(one.name, one);
  }
  // Of whose service account nobody tells.
  const labels = { app: 'nameless', 'nodesentry.io/intercept': 'enabled' };
  nameless = await containerd.runPod({ name: 'nameless', runtime: 'runc', labels });
  agent.writePods([...pods.values()].map((one) => staticPod(one)));
  await agent.start();
  envoy = lab.daemon(lab.node, 'envoy', ENVOY, [
    ...['-c', exampleFor(lab, agent, 'envoy-identity.yaml'), '--concurrency', '4'],
    // Which would be shared with the Envoys of other namespaces.
    '--disable-hot-restart',
    ...['--file-flush-interval-msec', '50'],
  ]);
  await agent.adopted(2);
  await Promise.all([...RUNTIMES, 'nameless'].map((name) => agent.reaches(name, 'INTERCEPTED')));
});

afterAll(async () => {
  await lab?.close();
});

const logged = (line: string) =>
  waitFor(`"${line}" in the access log`, () => envoy.log().split('\n').includes(line));

describe.each(RUNTIMES)('%s', (name) => {
  it.each(FAMILIES)(
    'HTTP over IPv%i: the server is told the pod, and nothing that the app says',
    async (family) => {
      for (let count = 0; count < REQUESTS; count += 1) {
        const answer = await get(pod(name), REMOTE[family], count % 2 === 0 ? FORGED : []);
        expect(answer).toMatchObject({ status: 200 });
        expect(echoed(answer)['x-spiffe-id']).toEqual([spiffeId(name)]);
      }
    },
  );

  it.each(FAMILIES)('HTTP over IPv%i: no address that the app claims decides', async (family) => {
    const claims = ['x-forwarded-for:10.66.0.99', 'x-real-ip:10.66.0.99', ...FORGED];
    const answer = await get(pod(name), REMOTE[family], claims);
    expect(echoed(answer)['x-spiffe-id']).toEqual([spiffeId(name)]);
    await logged(
      `http status=200 spiffe=${spiffeId(name)} pod=default/${name} account=${name} ` +
        `peer=${at(pod(name).ips[family], answer.localPort)} dialled=${at(REMOTE[family], HTTP_PORT)}`,
    );
  });

  it.each(FAMILIES)('TCP over IPv%i: the access log has the identity from the metadata', async (family) => {
    const dialled = reply(await pod(name).app(['dial', REMOTE[family], '80']));
    expect(dialled).toMatchObject({ ok: true });
    await logged(
      `tcp spiffe=${spiffeId(name)} pod=default/${name} account=${name} ` +
        `peer=${at(pod(name).ips[family], dialled.localPort)} dialled=${at(REMOTE[family], 80)}`,
    );
  });
});

describe('a pod without an identity', () => {
  it('gets 403 with the reason, whatever it claims', async () => {
    const answer = await get(nameless, REMOTE[4], FORGED);
    expect(answer).toMatchObject({ status: 403 });
    expect(answer.head).toMatch(/^x-nodesentry-reason: WORKLOAD_UNCONFIRMED\r?$/m);
    expect(answer.head).toMatch(/^content-type: application\/problem\+json\r?$/m);
    expect(JSON.parse(answer.body)).toMatchObject({ status: 403, reason: 'WORKLOAD_UNCONFIRMED' });
  });

  it('is cut off where it speaks anything else', async () => {
    expect(reply(await nameless.app(['dial', REMOTE[4], '80']))).toMatchObject({ ok: false });
  });
});

it('while the agent is down nobody gets anywhere, and afterwards everybody', async () => {
  const [name = ''] = RUNTIMES;
  await agent.stop('SIGKILL');
  expect(await get(pod(name), REMOTE[4], FORGED)).toMatchObject({ status: 503 });
  expect(reply(await pod(name).app(['dial', REMOTE[4], '80']))).toMatchObject({ ok: false });
  await agent.start();
  await waitFor('an answer', async () => (await get(pod(name), REMOTE[4], FORGED)).status === 200);
});
