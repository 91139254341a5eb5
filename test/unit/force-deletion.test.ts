/**
 * `kubectl delete --force --grace-period=0`: the API object goes, and with it what its namespace gave it; the containers
 * run on. The API server is a stand-in over real HTTP; kernel, links and canaries are made of plain values.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { Pod, PodUid } from '../../src/pods/pod.js';
import { PodStore } from '../../src/pods/pod-store.js';
import { KubernetesSource } from '../../src/pods/sources/kubernetes.js';
import { Proofs } from '../../src/reconcile/proofs.js';
import { Reconciler } from '../../src/reconcile/reconciler.js';
import { StartingPods } from '../../src/reconcile/starting-pods.js';
import { ApiServerStandIn, apiNamespace, apiPod } from './kubernetes-stand-in.js';
import {
  CanariesStandIn,
  identityOf,
  KernelStandIn,
  LinksStandIn,
  NO_SHAPERS,
  PROGRAMS,
  podNumber,
  recordingLog,
} from './reconcile-fixture.js';

const ENROLLED = { 'nodesentry.io/intercept': 'enabled', 'nodesentry.io/failure': 'closed' };
const uid = 'uid-web' as PodUid;
/** As the runtime knows it: its namespace's labels are not among what the kubelet told. */
const SANDBOX: Pod = { ...podNumber(0), uid, name: 'web', labels: { app: 'web' }, sources: ['cri'] };

let folder: string;
let server: ApiServerStandIn;
let kernel: KernelStandIn;
let links: LinksStandIn;
let nowMs: number;
const stop: AbortController[] = [];

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-force-'));
  server = new ApiServerStandIn();
  await server.listen();
  server.writeKubeconfig(join(folder, 'kubeconfig'));
  const namespace = apiNamespace('default');
  server.put('namespaces', { ...namespace, metadata: { ...namespace.metadata, labels: ENROLLED } });
  server.put('pods', apiPod('web'));
  kernel = new KernelStandIn();
  links = new LinksStandIn(1);
  nowMs = 1_700_000_000_000;
});

afterEach(async () => {
  for (const agent of stop.splice(0)) {
    agent.abort();
  }
  await server.kill();
  rmSync(folder, { recursive: true, force: true });
});

/** On what an agent before it left in the kernel. */
async function startAgent() {
  const log = recordingLog();
  const store = new PodStore({ nowMs: () => nowMs });
  const kubeconfig = join(folder, 'kubeconfig');
  const source = new KubernetesSource({ kubeconfig, node: 'node-a', handlers: {}, store, log });
  const reconciler = new Reconciler({
    ...kernel,
    store,
    links: links.asPodLinks(),
    ...NO_SHAPERS,
    bridges: { renew: async () => undefined },
    defaults: { enrol: 'labelled', failure: 'open', other: 'pass' },
    instanceFor: () => ({ name: 'default', number: 0, inbound: false }),
    identityOf,
    claimants: () => 1,
    instanceName: () => 'default',
    instanceNamed: () => undefined,
    drainOf: () => undefined,
    authorities: [source],
    repairs: kernel,
    proofs: new Proofs(new CanariesStandIn(), () => nowMs),
    programs: { programs: PROGRAMS, removeStalePrograms: () => [] },
    node: {
      problem: () => undefined,
      familiesOff: () => [],
      ensure: async () => undefined,
      addresses: async () => undefined,
    },
    synced: () => true,
    starting: new StartingPods(),
    nowMs: () => nowMs,
    log,
  });
  const abort = new AbortController();
  stop.push(abort);
  store.replaceSource('cri', [SANDBOX]);
  await source.start(abort.signal);
  const state = async () => {
    await reconciler.reconcile();
    return reconciler.statusOf(uid);
  };
  return { store, state, abort };
}

const sources = (agent: { store: PodStore }) => agent.store.get(uid)?.sources;
const isInKernel = () => [kernel.endpoints.get(100)?.plan.failureOpen, kernel.attached.has('egress 100')];
const CLOSED = [false, true];

test('the pod stays intercepted, by the policy of its namespace, until its sandbox is gone', async () => {
  const agent = await startAgent();
  await vi.waitFor(async () => expect((await agent.state())?.state).toBe('INTERCEPTED'));
  server.delete('pods', 'web', 'default');
  await vi.waitFor(() => expect(sources(agent)).toEqual(['cri']));
  for (const laterMs of [0, 30_000, 600_000]) {
    nowMs += laterMs;
    expect(await agent.state()).toMatchObject({
      state: 'INTERCEPTED',
      failure: 'closed',
      reason: expect.stringMatching('^terminating: '),
    });
    expect(isInKernel()).toEqual(CLOSED);
  }
  agent.store.replaceSource('cri', []);
  links.host.delete(100);
  expect(await agent.state()).toBeUndefined();
  expect(isInKernel()).toEqual([undefined, false]);
});

test('an agent that starts meanwhile holds what it finds', async () => {
  const first = await startAgent();
  await vi.waitFor(async () => expect((await first.state())?.state).toBe('INTERCEPTED'));
  first.abort.abort();
  server.delete('pods', 'web', 'default');
  const next = await startAgent();
  expect(sources(next)).toEqual(['cri']);
  expect(await next.state()).toMatchObject({
    state: 'DEGRADED',
    failure: 'closed',
    reason: expect.stringMatching('^held as it was: UNCONFIRMED: '),
  });
  expect(isInKernel()).toEqual(CLOSED);
  links.host.delete(100);
  await next.state();
  expect(isInKernel()).toEqual([undefined, false]);
});

test('a namespace that is not enrolled any more lets its pods go, and what is deleted by force stays let go', async () => {
  const agent = await startAgent();
  await vi.waitFor(async () => expect((await agent.state())?.state).toBe('INTERCEPTED'));
  server.put('namespaces', apiNamespace('default'));
  await vi.waitFor(async () => expect((await agent.state())?.state).toBe('NOT_ENROLLED'));
  expect(isInKernel()).toEqual([undefined, false]);
  server.delete('pods', 'web', 'default');
  await vi.waitFor(() => expect(sources(agent)).toEqual(['cri']));
  expect((await agent.state())?.state).toBe('NOT_ENROLLED');
});
