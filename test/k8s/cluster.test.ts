/** What the agent tells a real API server. */

import { mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { Cluster } from '../../src/agent/cluster.js';
import { parseConfig } from '../../src/config/load.js';
import { runChecks } from '../../src/doctor/check.js';
import { kubernetesChecks } from '../../src/doctor/kubernetes.js';
import type { PodUid } from '../../src/pods/pod.js';
import { PodStore } from '../../src/pods/pod-store.js';
import { KubernetesClient } from '../../src/pods/sources/kubernetes-client.js';
import { openApiServerAccess } from '../../src/pods/sources/kubernetes-config.js';
import type { EndpointState, EndpointStatus } from '../../src/reconcile/status.js';
import { createLogger } from '../../src/telemetry/log.js';
import { Cleanup } from '../lab/exec.js';
import { endpoint, pod as somePod } from '../unit/api-fixture.js';
import type { ControlPlane, KubeObject } from './control-plane.js';
import type { Relay } from './relay.js';
import { ACCOUNT, startRelayedPlane } from './relayed-plane.js';

const DEPLOY = join(import.meta.dirname, '../../deploy');
const TAINT = { key: 'nodesentry.io/agent-not-ready', effect: 'NoSchedule' };
const JSON_PATCH = 'application/json-patch+json';
const MERGE_PATCH = 'application/merge-patch+json';

const cleanup = new Cleanup();
let folder: string;
let plane: ControlPlane;
let relay: Relay;
let kubeconfig: string;
let namespace: string;
let node: string;
let runDir: string;
let count = 0;
let store: PodStore;
let statuses: Map<PodUid, EndpointStatus>;
let blockers: string[];
let abort: AbortController;
let cluster: Cluster;
let warnings: unknown[];

beforeAll(async () => {
  ({ folder, plane, relay, kubeconfig } = await startRelayedPlane(cleanup));
});
afterAll(() => cleanup.run());

beforeEach(async () => {
  count += 1;
  namespace = `test-${count}`;
  node = `node-${count}`;
  runDir = mkdtempSync(join(folder, 'run-'));
  await plane.createNamespace(namespace);
  await createNode([]);
  store = new PodStore();
  statuses = new Map();
  blockers = [];
  warnings = [];
});
afterEach(() => {
  abort.abort();
  relay.refuse(false);
});

async function createNode(taints: readonly object[], name = node): Promise<void> {
  await plane.call('POST', '/api/v1/nodes', { metadata: { name }, spec: { taints } });
}

async function start(path = kubeconfig, more = ''): Promise<void> {
  abort = new AbortController();
  const log = createLogger('silent');
  const own = Object.assign(log, {
    child: () => Object.assign(log, { warn: (fields: unknown) => warnings.push(fields) }),
  });
  cluster = new Cluster({
    config: parseConfig(
      `{node: ${node}, sources: {kubernetes: {kubeconfig: ${path}${more}}}}`,
      join(folder, 'config.yaml'),
    ),
    runDir,
    store,
    statuses: () => [...statuses.values()],
    blockers: () => blockers,
    version: '1.2.3',
    log: own,
  });
  await cluster.start(abort.signal);
}

/** A pod of the API server that the agent has found to be so. */
async function pod(name: string): Promise<PodUid> {
  const uid = (await plane.createPod(namespace, name, { spec: { nodeName: node } })) as PodUid;
  store.replaceSource('kubernetes', [
    ...store.list(),
    somePod(name, { uid, namespace, labels: {}, ips: [], sources: ['kubernetes'] }),
  ]);
  return uid;
}

function is(podUid: PodUid, state: EndpointState, reason?: string): void {
  statuses.set(podUid, endpoint(podUid, { state, reason, generation: 1, interfaces: [], inbound: true }));
}

/** As `kubectl describe pod` asks for them. */
async function eventsOf(uid: PodUid): Promise<KubeObject[]> {
  const list = await plane.call(
    'GET',
    `/api/v1/namespaces/${namespace}/events?fieldSelector=involvedObject.uid=${uid}`,
  );
  return list.items as KubeObject[];
}

const nodeNow = () => plane.call('GET', `/api/v1/nodes/${node}`);
const taintsNow = async () => ((await nodeNow()).spec as { taints?: object[] }).taints ?? [];
const statusNow = async () => {
  const { annotations } = (await nodeNow()).metadata as { annotations?: Record<string, string> };
  const text = annotations?.['nodesentry.io/status'];
  return text === undefined ? undefined : (JSON.parse(text) as unknown);
};
const eventually = (check: () => Promise<unknown> | unknown) =>
  vi.waitFor(check, { timeout: 60_000, interval: 100 });
const lasting = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

describe('events', () => {
  test('are on the pod as kubectl describe asks for them, once, also after the agent was started anew', async () => {
    const uid = await pod('web');
    is(uid, 'REFUSED', 'NO_INSTANCE: no instance is configured for app web');
    await start();
    await eventually(async () => expect(await eventsOf(uid)).toHaveLength(1));
    expect(await eventsOf(uid)).toMatchObject([
      {
        type: 'Warning',
        reason: 'NodeSentryRefused',
        message: expect.stringContaining('no instance is configured for app web. Its connections go past'),
        involvedObject: { kind: 'Pod', namespace, name: 'web', uid },
        reportingComponent: 'nodesentry.io/agent',
        reportingInstance: node,
      },
    ]);
    abort.abort();
    // Without what the agent before it had noted.
    runDir = mkdtempSync(join(folder, 'run-'));
    const other = await pod('api');
    is(other, 'DEGRADED', 'no canary');
    await start();
    await eventually(async () => expect(await eventsOf(other)).toHaveLength(1));
    expect(await eventsOf(uid)).toHaveLength(1);
    expect((await eventsOf(uid))[0]).not.toHaveProperty('series.count');
    expect(cluster.problem).toBeUndefined();
  });

  test('tell the end of it too, and trouble that comes back counts up the first one', async () => {
    const uid = await pod('web');
    is(uid, 'DEGRADED', 'no canary');
    await start();
    await eventually(async () => expect(await eventsOf(uid)).toHaveLength(1));
    is(uid, 'INTERCEPTED');
    await eventually(async () => expect(await eventsOf(uid)).toHaveLength(2));
    expect((await eventsOf(uid)).find(({ type }) => type === 'Normal')).toMatchObject({
      reason: 'NodeSentryIntercepted',
    });
    is(uid, 'DEGRADED', 'no canary');
    const first = async () => (await eventsOf(uid)).find(({ type }) => type === 'Warning');
    await vi.waitFor(async () => expect(await first()).toMatchObject({ series: { count: 2 } }), {
      timeout: 90_000,
      interval: 500,
    });
    expect(await eventsOf(uid)).toHaveLength(2);
  });

  test('that happen while the API server is away come when it is back, and nothing waits meanwhile', async () => {
    const uid = await pod('web');
    await start();
    relay.refuse(true);
    is(uid, 'REFUSED', 'NO_INSTANCE: none');
    await eventually(() => expect(cluster.problem).toContain('events on pods: '));
    const failed = Date.now();
    is(uid, 'INTERCEPTED');
    await lasting(7_000);
    relay.refuse(false);
    await eventually(async () => expect(await eventsOf(uid)).toHaveLength(2));
    const [refused] = (await eventsOf(uid)).filter(({ type }) => type === 'Warning');
    expect(Date.parse(String(refused?.eventTime))).toBeLessThanOrEqual(failed);
    await eventually(() => expect(cluster.problem).toBeUndefined());
  });

  test('on a pod of a namespace that is being deleted are let go', async () => {
    const uid = await pod('web');
    await plane.call('DELETE', `/api/v1/namespaces/${namespace}`);
    is(uid, 'REFUSED', 'NO_INSTANCE: none');
    namespace = `test-${count}-more`;
    await plane.createNamespace(namespace);
    const other = await pod('api');
    is(other, 'REFUSED', 'NO_INSTANCE: none');
    await start();
    await eventually(async () => expect(await eventsOf(other)).toHaveLength(1));
    expect(warnings).toEqual([]);
  });
});

describe('the startup taint', () => {
  test('goes when the agent is ready, whoever changes other taints meanwhile', async () => {
    node = `node-${count}-tainted`;
    await createNode([TAINT, { ...TAINT, effect: 'NoExecute' }, { key: 'dedicated', effect: 'NoSchedule' }]);
    blockers = ['source kubernetes has not synced'];
    await start();
    await lasting(3_000);
    expect(await taintsNow()).toHaveLength(3);
    let added = 0;
    const busy = (async () => {
      for (; added < 60; added++) {
        const taint = { key: `other-${added}`, effect: 'NoSchedule' };
        const patch = [{ op: 'add', path: '/spec/taints/-', value: taint }];
        await plane.call('PATCH', `/api/v1/nodes/${node}`, patch, JSON_PATCH);
        if (added === 5) {
          blockers = [];
        }
      }
    })();
    await busy;
    await eventually(async () => expect(await taintsNow()).toHaveLength(61));
    const keys = ((await taintsNow()) as { key: string }[]).map(({ key }) => key);
    expect(keys).toEqual(['dedicated', ...Array.from({ length: 60 }, (_, index) => `other-${index}`)]);
  });

  test('stays where it is told to', async () => {
    node = `node-${count}-tainted`;
    await createNode([TAINT]);
    await start(kubeconfig, ', removeStartupTaint: false');
    await eventually(async () => expect(await statusNow()).toBeDefined());
    expect(await taintsNow()).toEqual([TAINT]);
  });
});

test('the annotation of the node counts its pods, beside those of others', async () => {
  const other = { metadata: { annotations: { other: 'stays' } } };
  await plane.call('PATCH', `/api/v1/nodes/${node}`, other, MERGE_PATCH);
  is(await pod('web'), 'INTERCEPTED');
  await start();
  const rest = { outboundOnly: 0, degraded: 0, refused: 0, pending: 0 };
  await eventually(async () =>
    expect(await statusNow()).toEqual({ version: '1.2.3', ready: true, intercepted: 1, ...rest }),
  );
  expect((await nodeNow()).metadata.annotations).toMatchObject({ other: 'stays' });
  is(await pod('api'), 'REFUSED', 'NO_INSTANCE: none');
  await eventually(async () => expect(await statusNow()).toMatchObject({ intercepted: 1, refused: 1 }));
});

test('an account that may only read is told so once for each, by verb, in doctor too', async () => {
  await plane.createServiceAccount(namespace, 'reader');
  await plane.call('POST', '/apis/rbac.authorization.k8s.io/v1/clusterroles', {
    metadata: { name: namespace },
    rules: [{ apiGroups: [''], resources: ['pods', 'namespaces'], verbs: ['get', 'list', 'watch'] }],
  });
  await bind(namespace, namespace);
  const path = join(folder, `kubeconfig-${namespace}`);
  await plane.writeKubeconfig(path, { namespace, name: 'reader' });
  const uid = await pod('web');
  is(uid, 'REFUSED', 'NO_INSTANCE: none');
  await start(path);
  await eventually(() => expect(warnings).toHaveLength(3));
  await lasting(5_000);
  const told = warnings.map((fields) => String((fields as { err: Error }).err.message)).sort();
  expect(told).toEqual([
    expect.stringContaining('cannot create resource "events" in API group "events.k8s.io"'),
    expect.stringContaining('cannot get resource "nodes"'),
    expect.stringContaining('cannot patch resource "nodes"'),
  ]);
  expect(cluster.problem).toContain('HTTP 403');
  const config = parseConfig(
    `{node: ${node}, sources: {kubernetes: {kubeconfig: ${path}}}}`,
    join(folder, 'config.yaml'),
  );
  expect(await runChecks(kubernetesChecks(config))).toMatchObject([
    {
      status: 'warn',
      found: expect.stringContaining(
        'does not allow us to create events, patch events, get nodes, patch nodes',
      ),
    },
  ]);
  await bind(`${namespace}-more`, 'nodesentry');
  await eventually(async () => expect(await eventsOf(uid)).toHaveLength(1));
  await eventually(() => expect(cluster.problem).toBeUndefined());

  async function bind(name: string, role: string): Promise<void> {
    await plane.call('POST', '/apis/rbac.authorization.k8s.io/v1/clusterrolebindings', {
      metadata: { name },
      roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: role },
      subjects: [{ kind: 'ServiceAccount', name: 'reader', namespace }],
    });
  }
});

test('deploy/policy leaves an agent the taint and the annotation of its own node, and nothing else', async () => {
  await plane.createFrom(join(DEPLOY, 'policy/own-node.yaml'), ACCOUNT.namespace);
  node = `node-${count}-tainted`;
  await createNode([{ key: 'dedicated', effect: 'NoSchedule' }, TAINT]);
  const agent = await plane.createPod(ACCOUNT.namespace, node, {
    spec: { nodeName: node, serviceAccountName: ACCOUNT.name },
  });
  const bound = join(folder, `kubeconfig-${namespace}`);
  await plane.writeKubeconfig(bound, ACCOUNT, relay.port, { name: node, uid: agent });
  const client = new KubernetesClient(await openApiServerAccess(bound), 10_000);
  const patch = (of: string, json: object) =>
    client.write(
      { what: 'patch nodes', path: `/api/v1/nodes/${of}` },
      { kind: 'merge', patch: json },
      AbortSignal.timeout(10_000),
    );
  const annotate = (key: string) => ({ metadata: { annotations: { [key]: 'x' } } });
  // A policy counts a moment after it was made.
  await eventually(() =>
    expect(patch(`node-${count}`, annotate('nodesentry.io/status'))).rejects.toThrow('its own node only'),
  );
  await expect(patch(node, annotate('other'))).rejects.toThrow('the annotation nodesentry.io/status only');
  await expect(patch(node, { metadata: { labels: { other: 'x' } } })).rejects.toThrow('but a taint and an');
  await expect(patch(node, { spec: { unschedulable: true } })).rejects.toThrow('but a taint and an');
  await expect(patch(node, { spec: { taints: [TAINT] } })).rejects.toThrow('and changes no other');
  await start(bound);
  await eventually(async () => expect(await taintsNow()).toHaveLength(1));
  await eventually(async () => expect(await statusNow()).toMatchObject({ ready: true }));
  expect(warnings).toEqual([]);
  // Whoever else may write nodes is not concerned.
  await plane.call('PATCH', `/api/v1/nodes/${node}`, annotate('other'), MERGE_PATCH);
});
