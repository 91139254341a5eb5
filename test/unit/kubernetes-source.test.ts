import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { appOf, type Pod, type PodUid } from '../../src/pods/pod.js';
import { PodStore } from '../../src/pods/pod-store.js';
import { KubernetesSource, type KubernetesSourceOptions } from '../../src/pods/sources/kubernetes.js';
import { ApiServerStandIn, apiNamespace, apiPod, status } from './kubernetes-stand-in.js';

const log = { info: vi.fn(), warn: vi.fn(), error: vi.fn() };
const FAST = { backoffFirstMs: 2, backoffMaxMs: 40, deadlineMs: 5_000 };

let folder: string;
let kubeconfig: string;
let server: ApiServerStandIn;
let store: PodStore;
let abort: AbortController;

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-k8s-'));
  kubeconfig = join(folder, 'kubeconfig');
  server = new ApiServerStandIn();
  await server.listen();
  server.writeKubeconfig(kubeconfig);
  server.put('namespaces', apiNamespace('default'));
  store = new PodStore();
  abort = new AbortController();
  vi.clearAllMocks();
});
afterEach(async () => {
  abort.abort();
  await server.kill();
  rmSync(folder, { recursive: true, force: true });
});

async function start(options: Partial<KubernetesSourceOptions> = {}): Promise<KubernetesSource> {
  const source = new KubernetesSource({
    kubeconfig,
    node: 'node-a',
    handlers: {},
    store,
    log,
    ...FAST,
    ...options,
  });
  await source.start(abort.signal);
  return source;
}

/** Also waits until both watches are open. */
async function follow(options: Partial<KubernetesSourceOptions> = {}): Promise<KubernetesSource> {
  const source = await start(options);
  await eventually(() => expect([server.watches('pods'), server.watches('namespaces')]).toEqual([1, 1]));
  return source;
}

async function restart(): Promise<void> {
  await server.kill();
  await server.listen();
}

const eventually = (check: () => void) => vi.waitFor(check, { timeout: 15_000, interval: 5 });
const names = () => store.list().map(({ name }) => name);
const podNamed = (name: string) => store.list().find((pod) => pod.name === name);
const uidOf = (name: string) => `uid-${name}` as PodUid;
const errors = () => log.error.mock.calls.map(([fields]) => fields as { problem?: string; err?: Error });
const never = new AbortController().signal;

describe('a pod', () => {
  test('of this node appears with all that the API server tells', async () => {
    server.put(
      'pods',
      apiPod('web-0', {
        metadata: {
          annotations: { 'nodesentry.io/failure': 'open' },
          ownerReferences: [{ kind: 'StatefulSet', name: 'web', controller: true }],
        },
        spec: { runtimeClassName: 'gvisor' },
        status: { podIP: '10.66.0.3', podIPs: [{ ip: '10.66.0.3' }, { ip: 'FD00:66:0::3' }] },
      }),
    );
    await start();
    expect(store.list()).toEqual([
      {
        uid: 'uid-web-0',
        namespace: 'default',
        name: 'web-0',
        serviceAccount: 'web-0-sa',
        labels: { app: 'web-0' },
        annotations: { 'nodesentry.io/failure': 'open' },
        ips: ['10.66.0.3', 'fd00:66::3'],
        runtime: 'runsc',
        runtimeHandler: 'gvisor',
        sandboxId: '',
        hostNetwork: false,
        owner: { kind: 'StatefulSet', name: 'web' },
        sources: ['kubernetes'],
      },
    ]);
  });

  test('is asked for by node, and the token is sent', async () => {
    await start({ node: 'node=a,b' });
    const [list] = server.callsOf('list pods');
    expect(list?.searchParams.get('fieldSelector')).toBe('spec.nodeName=node\\=a\\,b');
    expect(server.calls[0]?.token).toBe('Bearer secret');
  });

  test('of another node is not published even where the API server sends it', async () => {
    server.put('pods', apiPod('other', { spec: { nodeName: 'node-b' } }));
    server.put('pods', apiPod('ours'));
    await start();
    expect(names()).toEqual(['ours']);
  });

  test('without an app label belongs to its Deployment, StatefulSet or Job', async () => {
    const owned = (name: string, kind: string, owner: string, labels: object = {}) =>
      server.put(
        'pods',
        apiPod(name, {
          metadata: { labels, ownerReferences: [{ kind, name: owner, controller: true }] },
        }),
      );
    owned('by-deployment', 'ReplicaSet', 'shop-5d9c7b', { 'pod-template-hash': '5d9c7b' });
    owned('by-replica-set', 'ReplicaSet', 'shop-own');
    owned('by-job', 'Job', 'nightly-2811');
    owned('labelled', 'Job', 'nightly-2812', { app: 'nightly' });
    server.put('pods', apiPod('alone', { metadata: { labels: {} } }));
    await start();
    const apps = Object.fromEntries(store.list().map((pod) => [pod.name, appOf(pod)]));
    expect(apps).toEqual({
      'by-deployment': 'shop',
      'by-replica-set': 'shop-own',
      'by-job': 'nightly-2811',
      labelled: 'nightly',
      alone: undefined,
    });
    expect(podNamed('by-deployment')?.owner).toEqual({ kind: 'Deployment', name: 'shop' });
  });

  test('with a runtime class that the table does not know leaves its kind to the CRI', async () => {
    server.put('pods', apiPod('a', { spec: { runtimeClassName: 'strange' } }));
    server.put('pods', apiPod('b', { spec: { runtimeClassName: 'mine' } }));
    await start({ handlers: { mine: 'rund' } });
    expect(podNamed('a')).toMatchObject({ runtime: 'unknown', runtimeHandler: '' });
    expect(podNamed('b')).toMatchObject({ runtime: 'rund', runtimeHandler: 'mine' });
  });

  test('that has ended is not published, one that is being deleted still is until it is gone', async () => {
    await follow();
    server.put('pods', apiPod('job'));
    server.put('pods', apiPod('web'));
    await eventually(() => expect(names()).toEqual(['job', 'web']));
    server.put('pods', apiPod('job', { status: { phase: 'Succeeded' } }));
    server.put('pods', apiPod('web', { metadata: { deletionTimestamp: '2026-01-01T00:00:00Z' } }));
    await eventually(() => expect(names()).toEqual(['web']));
    server.delete('pods', 'web', 'default');
    await eventually(() => expect(names()).toEqual([]));
  });

  test('on the host network is marked as such', async () => {
    server.put('pods', apiPod('agent', { spec: { hostNetwork: true } }));
    await start();
    expect(podNamed('agent')?.hostNetwork).toBe(true);
    expect(store.byIp('10.66.0.3')).toEqual([]);
  });
});

describe('a mirror pod', () => {
  const mirror = (name: string, of: string) =>
    apiPod(name, { metadata: { annotations: { 'kubernetes.io/config.mirror': of } } });

  test('has the UID that the container runtime knows', async () => {
    server.put('pods', mirror('etcd-node-a', '0cc175b9c0f1b6a831c399e269772661'));
    await start();
    expect(podNamed('etcd-node-a')?.uid).toBe('0cc175b9c0f1b6a831c399e269772661');
  });

  test('has no service account, as the API server refuses one; others have default where it says so', async () => {
    const { spec, ...rest } = mirror('etcd-node-a', 'static-1');
    const { serviceAccountName: _, ...bare } = spec as { serviceAccountName: string };
    server.put('pods', { ...rest, spec: bare });
    server.put('pods', apiPod('plain', { spec: { serviceAccountName: 'default' } }));
    await start();
    // What the runtime knows of it comes from its author.
    const fromCri = { uid: 'static-1' as PodUid, serviceAccount: 'admin', sources: ['cri' as const] };
    store.replaceSource('cri', [{ ...(podNamed('plain') as Pod), ...fromCri }]);
    expect(podNamed('etcd-node-a')).toMatchObject({ serviceAccount: '', sources: ['cri', 'kubernetes'] });
    expect(podNamed('plain')?.serviceAccount).toBe('default');
  });

  test('cannot take the UID of another pod', async () => {
    server.put('pods', apiPod('victim'));
    server.put('pods', mirror('thief', 'uid-victim'));
    await start();
    expect(store.list().map(({ uid, name }) => [uid, name])).toEqual([['uid-victim', 'victim']]);
    expect(errors()).toMatchObject([{ uid: 'uid-victim', pods: ['default/thief'] }]);
  });

  test('that two pods claim to be is neither, until one of them goes', async () => {
    server.put('pods', mirror('a', 'static-1'));
    server.put('pods', mirror('b', 'static-1'));
    await follow();
    expect(names()).toEqual([]);
    server.delete('pods', 'b', 'default');
    await eventually(() => expect(names()).toEqual(['a']));
  });
});

describe('a namespace', () => {
  test('is told with what it gives to pods, also without a pod on this node', async () => {
    const source = new KubernetesSource({ kubeconfig, node: 'node-a', handlers: {}, store, log, ...FAST });
    expect(source.namespaces).toBeUndefined();
    await source.start(abort.signal);
    server.put('namespaces', apiNamespace('shop', { labels: { 'nodesentry.io/intercept': 'enabled' } }));
    await eventually(() =>
      expect(source.namespaces).toEqual(
        new Map([
          ['default', {}],
          ['shop', { 'nodesentry.io/intercept': 'enabled' }],
        ]),
      ),
    );
  });

  test('gives its pods every interception key that they do not have themselves', async () => {
    server.put(
      'namespaces',
      apiNamespace('default', {
        labels: {
          'nodesentry.io/intercept': 'enabled',
          'nodesentry.io/failure': 'closed',
          'nodesentry.io/outbound': '80',
          'nodesentry.io/app': 'not-inherited',
          team: 'not-inherited',
        },
        annotations: {
          'nodesentry.io/outbound': '80,443',
          'nodesentry.io/exclude-outbound-cidrs': '10.0.0.0/8',
          'nodesentry.io/inbound': 'none',
        },
      }),
    );
    server.put(
      'pods',
      apiPod('web', {
        metadata: {
          labels: { 'nodesentry.io/inbound': 'all' },
          annotations: { 'nodesentry.io/failure': 'open' },
        },
      }),
    );
    await start();
    expect(podNamed('web')?.labels).toEqual({
      'nodesentry.io/inbound': 'all',
      'nodesentry.io/intercept': 'enabled',
      'nodesentry.io/outbound': '80,443',
      'nodesentry.io/exclude-outbound-cidrs': '10.0.0.0/8',
    });
    expect(podNamed('web')?.annotations).toEqual({ 'nodesentry.io/failure': 'open' });
  });

  test('has the addresses of further networks as Multus writes them, and none where that cannot be read', async () => {
    const status = (value: unknown) => ({
      metadata: {
        annotations: {
          'k8s.v1.cni.cncf.io/network-status': typeof value === 'string' ? value : JSON.stringify(value),
        },
      },
    });
    const networks = [
      { name: 'cbr0', interface: 'eth0', ips: ['10.66.0.3'], default: true, dns: {} },
      {
        name: 'default/storage',
        interface: 'net1',
        ips: ['10.77.0.3', 'FD00:77::3', 'nonsense'],
        mac: '02:00',
      },
      { name: 'default/layer2', interface: 'net2' },
    ];
    server.put('pods', apiPod('web', status(networks)));
    server.put('pods', apiPod('bad', status('{')));
    server.put('pods', apiPod('other', status({ interface: 'net1' })));
    await start();
    expect(podNamed('web')?.interfaceIps).toEqual({ net1: ['10.77.0.3', 'fd00:77::3'] });
    expect([podNamed('bad')?.interfaceIps, podNamed('other')?.interfaceIps]).toEqual([undefined, undefined]);
  });

  test('that changes changes its pods at once', async () => {
    server.put('pods', apiPod('web'));
    await follow();
    server.put('namespaces', apiNamespace('default', { labels: { 'nodesentry.io/intercept': 'enabled' } }));
    await eventually(() => expect(podNamed('web')?.labels['nodesentry.io/intercept']).toBe('enabled'));
    server.put('namespaces', apiNamespace('default'));
    await eventually(() => expect(podNamed('web')?.labels).toEqual({ app: 'web' }));
  });

  test('that has not been seen yet keeps its pods back', async () => {
    await follow();
    server.put('pods', apiPod('late', { metadata: { namespace: 'shop' } }));
    server.put('pods', apiPod('web'));
    await eventually(() => expect(names()).toEqual(['web']));
    server.put('namespaces', apiNamespace('shop', { labels: { 'nodesentry.io/intercept': 'enabled' } }));
    await eventually(() => expect(names()).toEqual(['web', 'late']));
    expect(podNamed('late')?.labels['nodesentry.io/intercept']).toBe('enabled');
  });

  test('whose end is told before that of its pods holds until they go', async () => {
    server.put('namespaces', apiNamespace('shop', { labels: { 'nodesentry.io/intercept': 'enabled' } }));
    server.put('pods', apiPod('web', { metadata: { namespace: 'shop' } }));
    await follow();
    server.delete('namespaces', 'shop');
    server.put('pods', apiPod('web', { metadata: { namespace: 'shop', deletionTimestamp: 'now' } }));
    server.put('pods', apiPod('after'));
    await eventually(() => expect(names()).toContain('after'));
    expect(podNamed('web')?.labels['nodesentry.io/intercept']).toBe('enabled');
  });

  test('that is away at the start keeps the whole snapshot back, and the store does not count as synced', async () => {
    server.put('pods', apiPod('web'));
    server.faults.set('list namespaces', { status: 503, body: 'warming up' });
    const source = await start();
    expect(source.lastError).toBe(`${server.url}: list namespaces: HTTP 503: warming up`);
    expect([...store.syncedSources()]).toEqual([]);
    server.faults.clear();
    await eventually(() => expect(names()).toEqual(['web']));
    await eventually(() => expect(source.lastError).toBeUndefined());
  });
});

describe('the watch', () => {
  test('brings what is made, changed and deleted', async () => {
    await follow();
    server.put('pods', apiPod('web', { status: { podIPs: [] } }));
    await eventually(() => expect(podNamed('web')?.ips).toEqual([]));
    server.put('pods', apiPod('web', { status: { podIPs: [{ ip: '10.66.0.9' }] } }));
    await eventually(() => expect(podNamed('web')?.ips).toEqual(['10.66.0.9']));
    server.delete('pods', 'web', 'default');
    await eventually(() => expect(names()).toEqual([]));
  });

  test('goes on from the last bookmark when the API server ends it, and lists nothing anew', async () => {
    const source = await follow();
    server.bookmark('pods');
    const bookmarked = String(server.version);
    server.put('namespaces', apiNamespace('other'));
    server.endWatches('pods');
    await eventually(() => expect(server.callsOf('watch pods')).toHaveLength(2));
    expect(server.callsOf('watch pods')[1]?.searchParams.get('resourceVersion')).toBe(bookmarked);
    expect(server.callsOf('list pods')).toHaveLength(1);
    expect(source.stats).toMatchObject({ relists: 0, watchRestarts: { ended: 1 } });
    expect(source.lastError).toBeUndefined();
  });

  test('misses nothing that happens while its connection is cut', async () => {
    server.put('pods', apiPod('old'));
    const source = await follow();
    server.cutWatches('pods');
    server.put('pods', apiPod('new'));
    server.delete('pods', 'old', 'default');
    await eventually(() => expect(names()).toEqual(['new']));
    expect(source.stats.watchRestarts).toMatchObject({ failed: 1 });
    expect(server.callsOf('list pods')).toHaveLength(1);
  });

  test('that the API server calls too old is answered by a list', async () => {
    server.put('pods', apiPod('old'));
    const source = await follow();
    server.compactedAt = server.version + 2;
    server.stallWatches('pods');
    server.put('pods', apiPod('new'));
    server.delete('pods', 'old', 'default');
    await restart();
    await eventually(() => expect(names()).toEqual(['new']));
    await eventually(() => expect(source.lastError).toBeUndefined());
    // Pods and namespaces.
    await eventually(() => expect(source.stats).toMatchObject({ relists: 2, watchRestarts: { expired: 2 } }));
  });

  test('that stalls is noticed, and what it did not tell is listed', async () => {
    server.put('pods', apiPod('old'));
    const source = await follow({ stallMs: 150 });
    server.stallWatches('pods');
    server.put('pods', apiPod('new'));
    server.delete('pods', 'old', 'default');
    await eventually(() => expect(names()).toEqual(['new']));
    expect(source.stats.watchRestarts).toMatchObject({ stalled: 1 });
    expect(source.stats.relists).toBeGreaterThan(0);
    expect(log.warn).toHaveBeenCalledTimes(1);
  });

  test('that is silent because nothing happens is no error', async () => {
    const source = await follow({ stallMs: 50 });
    await eventually(() => expect(source.stats.watchRestarts.silent).toBeGreaterThan(2));
    expect(source.stats.watchRestarts.stalled).toBeUndefined();
    expect([log.warn, log.error].map((entry) => entry.mock.calls)).toEqual([[], []]);
  });

  test('counts a bookmark as a sign of life', async () => {
    let nowMs = 1_000;
    const source = await follow({ nowMs: () => nowMs });
    expect(source.stats.lastEventAtMs).toBe(1_000);
    nowMs = 5_000;
    server.bookmark('pods');
    server.bookmark('namespaces');
    await eventually(() => expect(source.stats.lastEventAtMs).toBe(5_000));
  });

  test('is checked by a list now and then, which repairs what a watch never told', async () => {
    const source = await follow({ relistMs: 100 });
    server.objects.pods.set('default/untold', {
      ...apiPod('untold'),
      metadata: { ...apiPod('untold').metadata, uid: 'uid-untold', resourceVersion: '7' },
    });
    await eventually(() => expect(names()).toEqual(['untold']));
    await eventually(() => expect(source.stats.watchRestarts.relist).toBeGreaterThan(2));
    expect(log.error).not.toHaveBeenCalled();
  });

  test('is believed after etcd was restored from a backup, where versions are smaller', async () => {
    server.version = 5_000;
    server.put('pods', apiPod('lost'));
    server.put('pods', apiPod('web'));
    await follow({ relistMs: 150 });
    server.stallWatches('pods');
    server.version = 200;
    server.delete('pods', 'lost', 'default');
    server.put('pods', apiPod('web', { status: { podIPs: [{ ip: '10.66.0.77' }] } }));
    await eventually(() =>
      expect(store.list().map(({ name, ips }) => [name, ips])).toEqual([['web', ['10.66.0.77']]]),
    );
  });
});

describe('an API server that is away', () => {
  test('changes nothing in the store, and is caught up with when it is back', async () => {
    server.put('pods', apiPod('old'));
    const source = await follow();
    await server.kill();
    await eventually(() => expect(source.lastError).toContain('ECONNREFUSED'));
    expect(names()).toEqual(['old']);
    server.put('pods', apiPod('new'));
    server.delete('pods', 'old', 'default');
    expect(names()).toEqual(['old']);
    await server.listen();
    await eventually(() => expect(names()).toEqual(['new']));
    await eventually(() => expect(source.lastError).toBeUndefined());
  });

  test('at the start is waited for, and nothing is published meanwhile', async () => {
    await server.kill();
    const source = await start();
    expect(source.lastError).toContain('ECONNREFUSED');
    expect([...store.syncedSources()]).toEqual([]);
    server.put('pods', apiPod('web'));
    await server.listen();
    await eventually(() => expect(names()).toEqual(['web']));
  });

  test('that accepts and never answers runs into the time limit', async () => {
    server.faults.set('list pods', 'hang');
    const source = await start({ deadlineMs: 50 });
    expect(source.lastError).toBe(`${server.url}: list pods: no answer within 50 ms`);
  });

  test('that never answers a watch runs into the time limit too', async () => {
    server.faults.set('watch pods', 'hang');
    const source = await start({ deadlineMs: 50 });
    await eventually(() =>
      expect(source.lastError).toBe(`${server.url}: watch pods: no answer within 50 ms`),
    );
  });

  test('that refuses says which resource, which verb, and what to do, once', async () => {
    const told =
      'pods is forbidden: User "x" cannot list resource "pods" in API group "" at the cluster scope';
    server.faults.set('list pods', { status: 403, body: status(403, 'Forbidden', told) });
    const source = await start();
    expect(source.lastError).toBe(
      `${server.url}: list pods: HTTP 403: ${told}; deploy/base/rbac.yaml has what the agent needs`,
    );
    await eventually(() => expect(server.callsOf('list pods').length).toBeGreaterThan(5));
    expect(errors()).toHaveLength(1);
    server.faults.clear();
    await eventually(() => expect(source.lastError).toBeUndefined());
  });

  test('is not asked any more once the agent stops', async () => {
    await follow();
    abort.abort();
    await eventually(() => expect([server.watches('pods'), server.watches('namespaces')]).toEqual([0, 0]));
    const revision = store.revision;
    server.put('pods', apiPod('late'));
    expect(store.revision).toBe(revision);
  });
});

describe('a list of many pages', () => {
  test('is read to its end', async () => {
    server.pageSize = 2;
    for (let index = 0; index < 7; index += 1) {
      server.put('pods', apiPod(`p${index}`));
    }
    await start();
    expect(names()).toHaveLength(7);
    expect(server.callsOf('list pods')).toHaveLength(4);
  });

  test('that fails in the middle leaves what was in force', async () => {
    server.put('pods', apiPod('a'));
    server.put('pods', apiPod('b'));
    const source = await follow({ relistMs: 100 });
    server.pageSize = 1;
    server.beforeAnswer = async (what) => {
      const second = server.callsOf('list pods').at(-1)?.searchParams.has('continue') === true;
      if (what === 'list pods' && second) {
        server.faults.set('list pods', { status: 500, body: 'gone' });
      }
    };
    await eventually(() => expect(source.lastError).toContain('list pods: HTTP 500'));
    expect(names()).toEqual(['a', 'b']);
    server.beforeAnswer = undefined;
    server.faults.clear();
    await eventually(() => expect(source.lastError).toBeUndefined());
  });
});

describe('garbage', () => {
  test('in the stream costs one error and a list, and no pod', async () => {
    server.put('pods', apiPod('web'));
    const source = await follow();
    server.raw('pods', '<html>502 Bad Gateway</html>\n');
    await eventually(() => expect(source.stats.watchRestarts.invalid).toBe(1));
    await eventually(() => expect(server.watches('pods')).toBe(1));
    expect(names()).toEqual(['web']);
    expect(errors().map(({ err }) => err?.message)).toEqual([
      `${server.url}: watch pods: expected JSON, got "<html>502 Bad Gateway</html>"`,
    ]);
    server.put('pods', apiPod('after'));
    await eventually(() => expect(names()).toEqual(['web', 'after']));
  });

  test('of another event type names the field', async () => {
    await follow();
    server.raw('pods', '{"type":"RENAMED","object":{}}\n');
    await eventually(() => expect(errors()).toHaveLength(1));
    expect(errors()[0]?.err?.message).toMatch(/^watch pods: type: /);
  });

  test('in one object is logged once with its field; its last good form and all others stay', async () => {
    server.put('pods', apiPod('web'));
    const source = await follow({ relistMs: 100 });
    server.put('pods', apiPod('web', { spec: { hostNetwork: 'yes' } }));
    server.put('pods', apiPod('new', { spec: { nodeName: 7 } }));
    server.put('pods', apiPod('other'));
    await eventually(() => expect(names()).toEqual(['web', 'other']));
    await eventually(() => expect(source.stats.relists).toBeGreaterThan(4));
    expect(names()).toEqual(['web', 'other']);
    expect(errors()).toMatchObject([
      { resource: 'pods', object: 'default/web', problem: expect.stringMatching(/^spec\.hostNetwork: /) },
      { resource: 'pods', object: 'default/new', problem: expect.stringMatching(/^spec\.nodeName: /) },
    ]);
  });

  test('in one address leaves that address out', async () => {
    server.put('pods', apiPod('web', { status: { podIPs: [{ ip: '10.66.0.3' }, { ip: '10.66.0.300' }] } }));
    await start();
    expect(podNamed('web')?.ips).toEqual(['10.66.0.3']);
    expect(errors()).toMatchObject([
      { problem: 'status.podIPs[1].ip: expected an IP address, got "10.66.0.300"', taken: true },
    ]);
  });

  test('for a UID keeps that pod out', async () => {
    server.put('pods', apiPod('web', { metadata: { uid: 'a/b' } }));
    server.put('pods', apiPod('long', { metadata: { uid: 'x'.repeat(64) } }));
    server.put('pods', apiPod('ok'));
    await start();
    expect(names()).toEqual(['ok']);
    expect(errors()).toHaveLength(2);
  });

  test('without metadata is logged once and does no harm', async () => {
    await follow();
    server.raw('pods', '{"type":"ADDED","object":{"metadata":{"name":"x"}}}\n');
    server.raw('pods', '{"type":"ADDED","object":{}}\n{"type":"BOOKMARK","object":{}}\n');
    server.put('pods', apiPod('ok'));
    await eventually(() => expect(names()).toEqual(['ok']));
    expect(errors().map(({ problem }) => problem?.split(':')[0])).toEqual(['metadata.uid', 'metadata']);
  });

  test('that never ends its line is given up at a limit', async () => {
    const source = await follow();
    server.raw('pods', 'x'.repeat((8 << 20) + 1));
    await eventually(() => expect(source.stats.watchRestarts.invalid).toBe(1));
  });

  test('as a list is an error that names the field', async () => {
    server.faults.set('list pods', { status: 200, body: { metadata: {}, items: 'none' } });
    const source = await start();
    expect(source.lastError).toMatch(/^list pods: metadata\.resourceVersion: /);
  });
});

describe('a lookup', () => {
  test('finds a pod that the watch has not told of, and has it in the store', async () => {
    const source = await follow();
    server.stallWatches('pods');
    server.put('pods', apiPod('new', { status: { podIPs: [] } }));
    const pod = await source.lookup(uidOf('new'), 'default', 'new', never);
    expect(pod).toMatchObject({ name: 'new', serviceAccount: 'new-sa' });
    expect(store.get(uidOf('new'))).toEqual(pod);
  });

  test('asks for the namespace too where that is new', async () => {
    const source = await follow();
    server.stallWatches('pods');
    server.stallWatches('namespaces');
    server.put('namespaces', apiNamespace('shop', { labels: { 'nodesentry.io/intercept': 'enabled' } }));
    server.put('pods', apiPod('new', { metadata: { namespace: 'shop' } }));
    await source.lookup(uidOf('new'), 'shop', 'new', never);
    expect(podNamed('new')?.labels['nodesentry.io/intercept']).toBe('enabled');
  });

  test('of another UID, of another node, of an ended pod or of none finds nothing', async () => {
    const source = await follow();
    server.put('pods', apiPod('web'));
    server.put('pods', apiPod('elsewhere', { spec: { nodeName: 'node-b' } }));
    server.put('pods', apiPod('over', { status: { phase: 'Failed' } }));
    const find = (uid: string, name: string) => source.lookup(uid as PodUid, 'default', name, never);
    expect(await find('uid-before', 'web')).toBeUndefined();
    expect(await find('uid-elsewhere', 'elsewhere')).toBeUndefined();
    expect(await find('uid-over', 'over')).toBeUndefined();
    expect(await find('uid-none', 'none')).toBeUndefined();
    expect(await find('uid-web', 'web')).toMatchObject({ name: 'web' });
    expect(names()).toEqual(['web']);
  });

  test('finds a mirror pod by the UID that the runtime knows', async () => {
    const source = await follow();
    server.put(
      'pods',
      apiPod('m', { metadata: { annotations: { 'kubernetes.io/config.mirror': 'static-1' } } }),
    );
    expect(await source.lookup('static-1' as PodUid, 'default', 'm', never)).toMatchObject({ name: 'm' });
  });

  test('does not bring back a pod that went while it was under way', async () => {
    server.put('pods', apiPod('web'));
    const source = await follow();
    server.beforeAnswer = async (what) => {
      if (what === 'get pods') {
        server.beforeAnswer = undefined;
        // Answered from before, sent after.
        const stale = server.objects.pods.get('default/web');
        server.delete('pods', 'web', 'default');
        await eventually(() => expect(names()).toEqual([]));
        server.objects.pods.set('default/web', stale);
      }
    };
    expect(await source.lookup(uidOf('web'), 'default', 'web', never)).toBeUndefined();
    expect(names()).toEqual([]);
  });

  test('before the first list publishes nothing, since that would look like all', async () => {
    server.faults.set('list pods', { status: 503, body: '' });
    const source = await start();
    server.put('pods', apiPod('new'));
    expect(await source.lookup(uidOf('new'), 'default', 'new', never)).toMatchObject({ name: 'new' });
    expect([...store.syncedSources()]).toEqual([]);
    server.faults.clear();
    await eventually(() => expect(names()).toEqual(['new']));
  });

  test('fails in time where the API server does not answer, and at once where the caller gives up', async () => {
    const source = await follow({ deadlineMs: 100 });
    server.faults.set('get pods', 'hang');
    const ask = (signal: AbortSignal) => source.lookup(uidOf('web'), 'default', 'web', signal);
    await expect(ask(never)).rejects.toMatchObject({ code: 'TIMEOUT' });
    await expect(ask(AbortSignal.abort())).rejects.toMatchObject({ code: 'CANCELLED' });
    await server.kill();
    await expect(ask(never)).rejects.toMatchObject({ code: 'UNAVAILABLE' });
  });
});

describe('a kubeconfig', () => {
  const refusal = (): Promise<string> =>
    start().then(
      () => 'it started',
      (error: Error) => error.message,
    );
  const FIELD = 'sources.kubernetes.kubeconfig: ';

  test('that does not exist is one clear error', async () => {
    rmSync(kubeconfig);
    expect(await refusal()).toMatch(`${FIELD}${kubeconfig}: not a kubeconfig that can be used: ENOENT`);
  });

  test.each([
    ['is no YAML', '{{', /not a kubeconfig that can be used/],
    ['is empty', '', /not a kubeconfig that can be used/],
    ['is something else', 'pods: []', /current-context "" leads to no cluster/],
    ['has a cluster without a server', 'clusters: [{name: c, cluster: {}}]', /clusters\[0\]\.cluster/],
  ])('that %s is one clear error', async (_what, text, expected) => {
    writeFileSync(kubeconfig, text);
    const message = await refusal();
    expect(message).toMatch(expected);
    expect(message.startsWith(`${FIELD}${kubeconfig}: `)).toBe(true);
    expect(message).not.toContain('\n');
  });

  test('with a server that is no URL, or not https, is refused', async () => {
    server.writeKubeconfig(kubeconfig, { server: 'nowhere' });
    expect(await refusal()).toContain('expected an https URL, got "nowhere"');
    server.writeKubeconfig(kubeconfig, { cluster: { 'insecure-skip-tls-verify': false } });
    expect(await refusal()).toContain('is not https');
  });

  test('that names a certificate which is not there is refused', async () => {
    server.writeKubeconfig(kubeconfig, { user: { 'client-certificate': 'missing.pem' } });
    expect(await refusal()).toContain(`${join(folder, 'missing.pem')} cannot be read`);
  });

  test('left out needs a cluster around the agent', async () => {
    vi.stubEnv('KUBERNETES_SERVICE_HOST', '');
    try {
      const source = new KubernetesSource({ node: 'node-a', handlers: {}, store, log });
      await expect(source.start(abort.signal)).rejects.toThrow(/^sources\.kubernetes: not in a cluster/);
    } finally {
      vi.unstubAllEnvs();
    }
  });
});
