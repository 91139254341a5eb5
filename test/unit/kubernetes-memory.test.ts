/** What an agent that is started anew knows of pods before the API server answers. */

import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { Pod, PodUid, SourceName } from '../../src/pods/pod.js';
import { PodStore } from '../../src/pods/pod-store.js';
import { KubernetesSource } from '../../src/pods/sources/kubernetes.js';
import { KubernetesMemory } from '../../src/pods/sources/kubernetes-memory.js';
import { ApiServerStandIn, apiNamespace, apiPod } from './kubernetes-stand-in.js';

const ENROLLED = { 'nodesentry.io/intercept': 'enabled' };

function pod(uid: string, fields: Partial<Pod> = {}, source: SourceName = 'kubernetes'): Pod {
  return {
    uid: uid as PodUid,
    namespace: 'shop',
    name: uid,
    serviceAccount: '',
    labels: {},
    annotations: {},
    ips: [],
    runtime: 'unknown',
    runtimeHandler: '',
    sandboxId: '',
    hostNetwork: false,
    sources: [source],
    ...fields,
  };
}

const log = { info: vi.fn(), warn: vi.fn(), error: vi.fn() };
const web = pod('web', {
  serviceAccount: 'web-sa',
  labels: ENROLLED,
  annotations: { 'nodesentry.io/failure': 'open' },
  ips: ['10.66.0.3', 'fd00:66::3'],
  runtime: 'runsc',
  runtimeHandler: 'gvisor',
  owner: { kind: 'Deployment', name: 'web' },
});
const running = pod(
  'web',
  { ips: ['10.66.0.9'], sandboxId: 's1', netns: '/run/netns/web', labels: { app: 'web' } },
  'cri',
);

let folder: string;
let path: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-memory-'));
  path = join(folder, 'kubernetes.json');
  vi.clearAllMocks();
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

const uid = (text: string) => text as PodUid;
const eventually = (check: () => void) => vi.waitFor(check, { timeout: 15_000, interval: 5 });
const written = () => (JSON.parse(readFileSync(path, 'utf8')) as { pods: Pod[] }).pods;

describe('what a source told before', () => {
  test('completes a pod that the runtime names, until the source delivers', () => {
    const store = new PodStore();
    store.rememberSource('kubernetes', [web]);
    store.replaceSource('cri', [running]);
    expect(store.get(uid('web'))).toMatchObject({
      serviceAccount: 'web-sa',
      labels: ENROLLED,
      sandboxId: 's1',
      sources: ['cri', 'kubernetes'],
    });
    expect([...store.syncedSources()]).toEqual(['cri']);
    store.replaceSource('kubernetes', [pod('web', { serviceAccount: 'web-sa' })]);
    expect(store.get(uid('web'))?.labels).toEqual({});
  });

  test('names no pod by itself: not by UID, not by address, not in the list', () => {
    const store = new PodStore();
    const seen = vi.fn();
    store.subscribe(seen);
    store.rememberSource('kubernetes', [web]);
    expect([store.get(uid('web')), store.list(), store.byIp('10.66.0.3')]).toEqual([undefined, [], []]);
    expect([store.revision, seen.mock.calls.length]).toEqual([0, 0]);
    store.replaceSource('cri', [running]);
    store.replaceSource('cri', []);
    expect([store.get(uid('web')), store.list(), store.byIp('10.66.0.9')]).toEqual([undefined, [], []]);
    expect(store.removed(uid('web'))?.pod.serviceAccount).toBe('web-sa');
  });

  test('gives no address: the sandbox may be a new one', () => {
    const store = new PodStore();
    store.replaceSource('cri', [running]);
    store.rememberSource('kubernetes', [web]);
    expect(store.get(uid('web'))?.ips).toEqual(['10.66.0.9']);
    expect(store.byIp('10.66.0.3')).toEqual([]);
  });

  test('is forgotten with the first snapshot, also of pods that are not in it', () => {
    const store = new PodStore();
    store.rememberSource('kubernetes', [web]);
    store.replaceSource('cni', [{ ...running, sources: ['cni'] }]);
    store.replaceSource('kubernetes', []);
    expect(store.get(uid('web'))).toMatchObject({ labels: { app: 'web' }, sources: ['cni'] });
    // As for a pod that goes while the agent runs: its flows are those of a pod that ends.
    expect(store.departed(uid('web'))?.pod.serviceAccount).toBe('web-sa');
    store.rememberSource('kubernetes', [web]);
    expect(store.get(uid('web'))?.sources).toEqual(['cni']);
  });

  test('is forgotten with the first change that the source tells, too', () => {
    const store = new PodStore();
    store.rememberSource('kubernetes', [web]);
    store.replaceSource('cri', [running]);
    store.updateSource('kubernetes', { upsert: [pod('other')] });
    expect(store.get(uid('web'))?.sources).toEqual(['cri']);
  });
});

describe('the file', () => {
  test('gives back what was noted, and only root may read it', () => {
    new KubernetesMemory({ path, log }).note([web, pod('bare')]);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(readdirSync(folder)).toEqual(['kubernetes.json']);
    expect(new KubernetesMemory({ path, log }).recall()).toEqual([web, pod('bare')]);
    expect(log.warn).not.toHaveBeenCalled();
  });

  test('is written once for many changes, and at the end', async () => {
    const memory = new KubernetesMemory({ path, log, everyMs: 60_000 });
    memory.note([]);
    for (let count = 1; count <= 50; count++) {
      memory.note(Array.from({ length: count }, (_, index) => pod(`p${index}`)));
    }
    expect(written()).toEqual([]);
    memory.close();
    expect(written()).toHaveLength(50);
  });

  test('has the last change without another one coming', async () => {
    const memory = new KubernetesMemory({ path, log, everyMs: 20 });
    memory.note([pod('a')]);
    memory.note([pod('b')]);
    await eventually(() => expect(written().map(({ uid: of }) => of)).toEqual(['b']));
    memory.close();
  });

  test('is not touched where nothing has changed', () => {
    const memory = new KubernetesMemory({ path, log, everyMs: 60_000 });
    memory.note([web]);
    const { ino } = statSync(path);
    memory.note([{ ...web }]);
    memory.close();
    expect(statSync(path).ino).toBe(ino);
  });

  test('replaces one that was left half written, whatever its mode', () => {
    writeFileSync(`${path}.new`, '{"ver');
    chmodSync(`${path}.new`, 0o666);
    new KubernetesMemory({ path, log }).note([web]);
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });

  test('that is not there yet is no reason to warn', () => {
    expect(new KubernetesMemory({ path, log }).recall()).toEqual([]);
    expect(log.warn).not.toHaveBeenCalled();
  });

  const file = (...pods: object[]) => JSON.stringify({ version: 1, pods });
  test.each([
    ['', /JSON/],
    ['{"version":1,"pods":[{"uid"', /JSON/],
    ['[]', /expected object/],
    ['{"version":2,"pods":[]}', /^version: /],
    ['{"version":1}', /^pods: /],
    [file({ ...web, uid: 'a/b' }), /^pods\[0\]\.uid: expected a pod UID/],
    [file({ ...web, ips: ['10.66.0.300'] }), /^pods\[0\]\.ips\[0\]: expected an IP address/],
    [file(pod('a'), { ...web, labels: { a: 1 } }), /^pods\[1\]\.labels\.a: /],
    [file({ ...web, sources: ['static'] }), /^pods\[0\]\.sources/],
    [file({ ...web, more: true }), /more/],
    [file(web, web), /one UID twice/],
  ])('%j is ignored with one warning', (content, problem) => {
    writeFileSync(path, content);
    expect(new KubernetesMemory({ path, log }).recall()).toEqual([]);
    expect(log.warn).toHaveBeenCalledTimes(1);
    const [told] = log.warn.mock.calls.map(([fields]) => fields as { err: Error });
    expect(told?.err.message).toMatch(problem);
  });

  test('that cannot be written is told once, and written when it can be', () => {
    const inTheWay = join(folder, 'later');
    writeFileSync(inTheWay, '');
    const memory = new KubernetesMemory({ path: join(inTheWay, 'kubernetes.json'), log });
    memory.note([pod('a')]);
    memory.close();
    memory.note([pod('b')]);
    memory.close();
    expect(log.warn).toHaveBeenCalledTimes(1);
    rmSync(inTheWay);
    memory.note([pod('b')]);
    memory.close();
    expect(readFileSync(join(inTheWay, 'kubernetes.json'), 'utf8')).toContain('"b"');
    expect(log.warn).toHaveBeenCalledTimes(1);
  });
});

describe('the source', () => {
  test('notes what it tells, with what the namespace adds, and starts from it where nobody answers', async () => {
    const kubeconfig = join(folder, 'kubeconfig');
    const server = new ApiServerStandIn();
    await server.listen();
    server.writeKubeconfig(kubeconfig);
    server.put('namespaces', apiNamespace('default', { labels: ENROLLED }));
    server.put('pods', apiPod('web'));
    const first = new AbortController();
    const second = new AbortController();
    const shared = { kubeconfig, node: 'node-a', handlers: {}, log, backoffFirstMs: 2, backoffMaxMs: 20 };
    try {
      const memory = () => new KubernetesMemory({ path, log, everyMs: 60_000 });
      const before = new PodStore();
      await new KubernetesSource({ ...shared, store: before, memory: memory() }).start(first.signal);
      await eventually(() => expect(server.watches('pods')).toBe(1));
      server.put('pods', apiPod('late'));
      await eventually(() => expect(before.list()).toHaveLength(2));
      await server.kill();
      first.abort();
      expect(written().map(({ name }) => name)).toEqual(['web', 'late']);

      const store = new PodStore();
      store.replaceSource('cri', [pod('uid-web', { ips: ['10.66.0.3'] }, 'cri')]);
      await new KubernetesSource({ ...shared, store, memory: memory() }).start(second.signal);
      expect(store.list()).toMatchObject([
        { uid: 'uid-web', serviceAccount: 'web-sa', labels: { app: 'web', ...ENROLLED } },
      ]);
      expect([...store.syncedSources()]).toEqual(['cri']);

      server.delete('pods', 'web', 'default');
      await server.listen();
      await eventually(() => expect([...store.syncedSources()]).toEqual(['cri', 'kubernetes']));
      expect(store.get(uid('uid-web'))?.sources).toEqual(['cri']);
    } finally {
      first.abort();
      second.abort();
      await server.kill();
    }
  });
});
