import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { parseConfig } from '../../src/config/load.js';
import { runChecks } from '../../src/doctor/check.js';
import { kubernetesChecks } from '../../src/doctor/kubernetes.js';
import type { PodUid } from '../../src/pods/pod.js';
import { PodStore } from '../../src/pods/pod-store.js';
import { KubernetesSource, type KubernetesSourceOptions } from '../../src/pods/sources/kubernetes.js';
import { Cleanup } from '../lab/exec.js';
import type { ControlPlane } from './control-plane.js';
import type { Relay } from './relay.js';
import { ACCOUNT, startRelayedPlane } from './relayed-plane.js';

const cleanup = new Cleanup();
const log = { info: vi.fn(), warn: vi.fn(), error: vi.fn() };
let folder: string;
let plane: ControlPlane;
let relay: Relay;
let kubeconfig: string;
let store: PodStore;
let abort: AbortController;
let source: KubernetesSource;
let namespace: string;
let count = 0;

beforeAll(async () => {
  ({ folder, plane, relay, kubeconfig } = await startRelayedPlane(cleanup));
});
afterAll(() => cleanup.run());

beforeEach(async () => {
  count += 1;
  namespace = `test-${count}`;
  await plane.createNamespace(namespace);
  store = new PodStore();
  abort = new AbortController();
  vi.clearAllMocks();
});
afterEach(async () => {
  abort.abort();
  relay.refuse(false);
});

async function follow(options: Partial<KubernetesSourceOptions> = {}): Promise<void> {
  source = new KubernetesSource({ kubeconfig, node: 'node-a', handlers: {}, store, log, ...options });
  await source.start(abort.signal);
  await eventually(() => expect(source.lastError).toBeUndefined());
}

const eventually = (check: () => void) => vi.waitFor(check, { timeout: 60_000, interval: 20 });
const here = () => store.list().filter((pod) => pod.namespace === namespace);
const names = () =>
  here()
    .map(({ name }) => name)
    .sort();

test('doctor tells which permission an account lacks, and is content with deploy/base/rbac.yaml', async () => {
  const look = async (path: string, node: string) => {
    const text = `{node: ${node}, sources: {kubernetes: {kubeconfig: ${path}}}}`;
    return (await runChecks(kubernetesChecks(parseConfig(text, join(folder, 'config.yaml')))))[0];
  };
  await plane.createPod(namespace, 'web');
  expect(await look(kubeconfig, 'node-a')).toMatchObject({ status: 'ok' });
  expect(await look(kubeconfig, 'elsewhere')).toMatchObject({
    status: 'warn',
    found: expect.stringContaining('knows no pod of the node "elsewhere"'),
  });
  const poor = join(folder, 'kubeconfig-poor');
  await plane.createServiceAccount(namespace, 'poor');
  await plane.writeKubeconfig(poor, { namespace, name: 'poor' });
  const rights = { apiGroups: [''], resources: ['pods', 'namespaces'] };
  await plane.call('POST', '/apis/rbac.authorization.k8s.io/v1/clusterroles', {
    metadata: { name: `poor-${namespace}` },
    rules: [
      { ...rights, verbs: ['list'] },
      { ...rights, resources: ['pods'], verbs: ['get', 'watch'] },
    ],
  });
  await plane.call('POST', '/apis/rbac.authorization.k8s.io/v1/clusterrolebindings', {
    metadata: { name: `poor-${namespace}` },
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: `poor-${namespace}` },
    subjects: [{ kind: 'ServiceAccount', name: 'poor', namespace }],
  });
  await vi.waitFor(
    async () =>
      expect(await look(poor, 'node-a')).toMatchObject({
        status: 'fail',
        found: expect.stringMatching(/does not allow us to get namespaces, watch namespaces$/),
      }),
    { timeout: 60_000, interval: 100 },
  );
});

describe('pods and namespaces of a real API server', () => {
  test('have the service account default where they name none, and mirror pods have none at all', async () => {
    const metadata = { annotations: { 'kubernetes.io/config.mirror': `static-${namespace}` } };
    // NodeRestriction and the kubelet aside: an object of this form is what the kubelet sends.
    await plane.createPod(namespace, 'etcd-node-a', { metadata });
    await plane.createPod(namespace, 'plain');
    await expect(
      plane.createPod(namespace, 'wish', { metadata, spec: { serviceAccountName: 'default' } }),
    ).rejects.toThrow('a mirror pod may not reference service accounts');
    await follow();
    await eventually(() => expect(names()).toEqual(['etcd-node-a', 'plain']));
    const accounts = Object.fromEntries(here().map((pod) => [pod.name, pod.serviceAccount]));
    expect(accounts).toEqual({ 'etcd-node-a': '', plain: 'default' });
  });

  test('appear with the right fields', async () => {
    await plane.call(
      'PATCH',
      `/api/v1/namespaces/${namespace}`,
      {
        metadata: {
          labels: { 'nodesentry.io/intercept': 'enabled' },
          annotations: { 'nodesentry.io/outbound': '80' },
        },
      },
      'application/merge-patch+json',
    );
    await plane.createServiceAccount(namespace, 'web');
    await plane.call('POST', '/apis/node.k8s.io/v1/runtimeclasses', {
      metadata: { name: 'gvisor' },
      handler: 'runsc',
    });
    await follow();
    const uid = await plane.createPod(namespace, 'web-0', {
      ips: ['10.66.0.3', 'fd00:66::3'],
      metadata: {
        labels: { 'pod-template-hash': 'abc12' },
        annotations: { 'nodesentry.io/failure': 'open' },
        ownerReferences: [
          { apiVersion: 'apps/v1', kind: 'ReplicaSet', name: 'web-abc12', uid: 'u', controller: true },
        ],
      },
      spec: { serviceAccountName: 'web', runtimeClassName: 'gvisor' },
    });
    await plane.createPod(namespace, 'elsewhere', { spec: { nodeName: 'node-b' } });
    await plane.createPod(namespace, 'on-host', { spec: { hostNetwork: true }, ips: ['192.0.2.1'] });
    await eventually(() => expect(here().filter(({ ips }) => ips.length > 0)).toHaveLength(2));
    expect(store.get(uid as PodUid)).toEqual({
      uid,
      namespace,
      name: 'web-0',
      serviceAccount: 'web',
      labels: {
        'pod-template-hash': 'abc12',
        'nodesentry.io/intercept': 'enabled',
        'nodesentry.io/outbound': '80',
      },
      annotations: { 'nodesentry.io/failure': 'open' },
      ips: ['10.66.0.3', 'fd00:66::3'],
      runtime: 'runsc',
      runtimeHandler: 'gvisor',
      sandboxId: '',
      hostNetwork: false,
      owner: { kind: 'Deployment', name: 'web' },
      sources: ['kubernetes'],
    });
    expect(here().find(({ name }) => name === 'on-host')).toMatchObject({
      hostNetwork: true,
      serviceAccount: 'default',
    });
    expect(log.error).not.toHaveBeenCalled();
  });

  test('a label on the namespace enrols its pods, and its removal takes that back', async () => {
    await plane.createPod(namespace, 'web');
    await follow();
    const key = 'nodesentry.io/intercept';
    expect(here()[0]?.labels[key]).toBeUndefined();
    await plane.label(`/api/v1/namespaces/${namespace}`, { [key]: 'enabled' });
    await eventually(() => expect(here()[0]?.labels[key]).toBe('enabled'));
    await plane.label(`/api/v1/namespaces/${namespace}`, { [key]: null });
    await eventually(() => expect(here()[0]?.labels[key]).toBeUndefined());
  });

  test('a pod stays while it is being deleted, goes when it is gone or has ended', async () => {
    await plane.createPod(namespace, 'graceful');
    await plane.createPod(namespace, 'job');
    await plane.createPod(namespace, 'web');
    await follow();
    await plane.call('DELETE', `/api/v1/namespaces/${namespace}/pods/graceful?gracePeriodSeconds=600`);
    await plane.setStatus(namespace, 'job', { phase: 'Succeeded' });
    await plane.deletePod(namespace, 'web');
    await eventually(() => expect(names()).toEqual(['graceful']));
    await plane.deletePod(namespace, 'graceful');
    await eventually(() => expect(names()).toEqual([]));
  });

  test('a pod that is made anew under its old name and address is another one', async () => {
    const before = await plane.createPod(namespace, 'db-0');
    await follow();
    await plane.deletePod(namespace, 'db-0');
    const after = await plane.createPod(namespace, 'db-0');
    await eventually(() =>
      expect(here().map(({ uid, ips }) => [uid, ips])).toEqual([[after, ['10.66.0.3']]]),
    );
    expect(store.removed(before as PodUid)?.pod.name).toBe('db-0');
  });

  test('700 pods come in pages, all of them', async () => {
    const many = Array.from({ length: 700 }, (_, index) => `p${index}`);
    for (let from = 0; from < many.length; from += 50) {
      await Promise.all(
        many.slice(from, from + 50).map((name) =>
          plane.call('POST', `/api/v1/namespaces/${namespace}/pods`, {
            metadata: { name },
            spec: { nodeName: 'node-a', containers: [{ name: 'app', image: 'localhost/app:1' }] },
          }),
        ),
      );
    }
    await follow();
    expect(here()).toHaveLength(700);
  });

  test('a lookup answers before the watch, and only for the right UID', async () => {
    await follow();
    relay.stall();
    const uid = (await plane.createPod(namespace, 'new')) as PodUid;
    const signal = AbortSignal.timeout(10_000);
    expect(await source.lookup('another' as PodUid, namespace, 'new', signal)).toBeUndefined();
    expect(await source.lookup(uid, namespace, 'new', signal)).toMatchObject({ name: 'new', namespace });
    expect(store.get(uid)).toMatchObject({ name: 'new' });
  });
});

describe('an API server in trouble', () => {
  test('killed and started again: nothing is removed meanwhile, and all is caught up with after', async () => {
    await plane.createPod(namespace, 'old');
    await plane.createPod(namespace, 'stays');
    await follow();
    const revision = store.revision;
    await plane.stopApiServer('SIGKILL');
    await eventually(() => expect(source.lastError).toBeDefined());
    expect(names()).toEqual(['old', 'stays']);
    expect(store.revision).toBe(revision);
    await plane.startApiServer();
    await plane.deletePod(namespace, 'old');
    await plane.createPod(namespace, 'new');
    await eventually(() => expect(names()).toEqual(['new', 'stays']));
    await eventually(() => expect(source.lastError).toBeUndefined());
  });

  test('whose history was compacted meanwhile answers 410, and everything is listed anew', async () => {
    await plane.createPod(namespace, 'old');
    await follow();
    relay.refuse(true);
    await eventually(() => expect(source.lastError).toBeDefined());
    await plane.deletePod(namespace, 'old');
    await plane.createPod(namespace, 'new');
    await plane.compactEtcd();
    await plane.stopApiServer('SIGKILL');
    await plane.startApiServer();
    expect(names()).toEqual(['old']);
    relay.refuse(false);
    await eventually(() => expect(names()).toEqual(['new']));
    await eventually(() => expect(source.lastError).toBeUndefined());
    expect(source.stats.watchRestarts.expired).toBeGreaterThan(0);
    expect(source.stats.relists).toBeGreaterThan(0);
  });

  test('whose connections stall without a word is noticed, and what was missed is repaired', async () => {
    await plane.createPod(namespace, 'old');
    await follow({ stallMs: 3_000 });
    relay.stall();
    const stalled = relay.connections;
    await plane.deletePod(namespace, 'old');
    await plane.createPod(namespace, 'new');
    expect(stalled).toBeGreaterThan(0);
    expect(names()).toEqual(['old']);
    await eventually(() => expect(names()).toEqual(['new']));
    await eventually(() => expect(source.stats.watchRestarts.stalled).toBe(1));
    await plane.createPod(namespace, 'later');
    await eventually(() => expect(names()).toEqual(['later', 'new']));
  });

  test('that stops serving the watch in order is followed on', async () => {
    await plane.createPod(namespace, 'web');
    await follow();
    await plane.stopApiServer('SIGTERM');
    await plane.startApiServer();
    await plane.createPod(namespace, 'after');
    await eventually(() => expect(names()).toEqual(['after', 'web']));
  });
});

describe('permissions', () => {
  test('that are missing give one clear error with resource and verb, and suffice once granted', async () => {
    await plane.createServiceAccount(namespace, 'agent');
    await plane.createPod(namespace, 'web');
    const path = join(folder, `kubeconfig-${namespace}`);
    await plane.writeKubeconfig(path, { namespace, name: 'agent' });
    source = new KubernetesSource({ kubeconfig: path, node: 'node-a', handlers: {}, store, log });
    await source.start(abort.signal);
    await eventually(() => expect(source.lastError).toContain('list pods'));
    expect(source.lastError).toContain('cannot list resource "pods"');
    expect(source.lastError).toContain('deploy/base/rbac.yaml');
    expect([...store.syncedSources()]).toEqual([]);
    await plane.call('POST', '/apis/rbac.authorization.k8s.io/v1/clusterrolebindings', {
      metadata: { name: namespace },
      roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: 'nodesentry' },
      subjects: [{ kind: 'ServiceAccount', name: 'agent', namespace }],
    });
    await eventually(() => expect(names()).toEqual(['web']));
    await eventually(() => expect(source.lastError).toBeUndefined());
  });

  test.each([
    ['pods/exec', 'create', 'pods/exec'],
    ['secrets', 'list', 'secrets'],
    ['pods', 'delete', 'pods'],
    ['namespaces', 'patch', 'namespaces'],
    ['the status of nodes', 'patch', 'nodes/status'],
    ['nodes', 'delete', 'nodes'],
    ['nodes', 'list', 'nodes'],
  ])('of deploy/base/rbac.yaml do not reach to %s: %s', async (_what, verb, resource) => {
    const [name, subresource] = resource.split('/');
    const review = await plane.call('POST', '/apis/authorization.k8s.io/v1/subjectaccessreviews', {
      apiVersion: 'authorization.k8s.io/v1',
      kind: 'SubjectAccessReview',
      spec: {
        user: `system:serviceaccount:${ACCOUNT.namespace}:${ACCOUNT.name}`,
        resourceAttributes: { verb, resource: name, ...(subresource === undefined ? {} : { subresource }) },
      },
    });
    expect(review.status).toMatchObject({ allowed: false });
  });

  test('with a token that is not accepted say so', async () => {
    const path = join(folder, `kubeconfig-${namespace}`);
    await plane.writeKubeconfig(path, { namespace, name: 'default' });
    await plane.call('DELETE', `/api/v1/namespaces/${namespace}/serviceaccounts/default`);
    source = new KubernetesSource({ kubeconfig: path, node: 'node-a', handlers: {}, store, log });
    await source.start(abort.signal);
    await eventually(() => expect(source.lastError).toContain('HTTP 401'));
  });
});
