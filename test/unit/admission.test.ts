/** When a pod that is about to start may. The reconciler is a stand-in that a test drives. */

import { beforeEach, describe, expect, test, vi } from 'vitest';
import { confirmation } from '../../src/pods/confirmation.js';
import type { Pod, PodUid } from '../../src/pods/pod.js';
import { PodStore } from '../../src/pods/pod-store.js';
import { KubernetesSource } from '../../src/pods/sources/kubernetes.js';
import { Admissions } from '../../src/reconcile/admission.js';
import { StartingPods } from '../../src/reconcile/starting-pods.js';
import type { EndpointStatus } from '../../src/reconcile/status.js';
import { endpoint, pod, uid } from './api-fixture.js';

const WEB = uid('uid-web');
const LONG_MS = 20_000;

class ReconcilerStandIn {
  readonly rounds: PodUid[][] = [];
  readonly listeners = new Set<(uid: PodUid) => void>();
  status: Partial<EndpointStatus> | undefined;
  /** What a round does: by default it tells the status that is set. */
  onRound: () => Promise<void> = async () => this.tell();

  async reconcilePods(uids: Iterable<PodUid>): Promise<void> {
    this.rounds.push([...uids]);
    await this.onRound();
  }

  statusOf(of: PodUid): EndpointStatus | undefined {
    return this.status === undefined || of !== WEB ? undefined : endpoint(of, this.status);
  }

  onStatus(listener: (uid: PodUid) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  tell(of: PodUid = WEB): void {
    for (const listener of [...this.listeners]) {
      listener(of);
    }
  }
}

const starting = new StartingPods();
let reconciler: ReconcilerStandIn;
beforeEach(() => {
  reconciler = new ReconcilerStandIn();
});

function admissions(unknown: (of: PodUid, signal: AbortSignal) => Promise<string | undefined>) {
  return new Admissions({ reconciler, unknown, starting });
}
const known = () => admissions(async () => undefined);

describe('a pod whose status is', () => {
  test.each(['INTERCEPTED', 'DRAINED', 'NOT_ENROLLED'] as const)('%s may start', async (state) => {
    reconciler.status = { state };
    expect(await known().admit(() => WEB, LONG_MS)).toEqual({ kind: 'ready', state });
    expect([reconciler.rounds, reconciler.listeners.size]).toEqual([[[WEB]], 0]);
  });

  test('REFUSED never may', async () => {
    reconciler.status = { state: 'REFUSED', reason: 'an SR-IOV interface' };
    expect(await known().admit(() => WEB, LONG_MS)).toEqual({
      kind: 'refused',
      reason: 'an SR-IOV interface',
    });
  });

  test.each(['PENDING', 'DEGRADED'] as const)('%s waits until it is another', async (state) => {
    reconciler.status = { state, reason: 'not proven yet' };
    const admitted = known().admit(() => WEB, LONG_MS);
    await vi.waitFor(() => expect(reconciler.rounds.length).toBeGreaterThan(2));
    reconciler.status = { state: 'INTERCEPTED' };
    reconciler.tell();
    expect(await admitted).toEqual({ kind: 'ready', state: 'INTERCEPTED' });
    expect(reconciler.listeners.size).toBe(0);
  });

  test('PENDING to the end is told with what was missing', async () => {
    reconciler.status = { state: 'PENDING', reason: 'no interface yet' };
    expect(await known().admit(() => WEB, 120)).toEqual({ kind: 'waiting', reason: 'no interface yet' });
    expect(reconciler.listeners.size).toBe(0);
  });

  test('not there yet, or that of another pod, is no status', async () => {
    reconciler.onRound = async () => reconciler.tell(uid('uid-other'));
    reconciler.status = { state: 'INTERCEPTED' };
    expect(await known().admit(() => WEB, 120)).toEqual({
      kind: 'waiting',
      reason: 'the pod is not known yet',
    });
  });
});

test('a round that fails is tried again, not at once, and told where nothing else happens', async () => {
  reconciler.onRound = () => Promise.reject(new Error('ENOBUFS'));
  expect(await known().admit(() => WEB, 220)).toEqual({
    kind: 'waiting',
    reason: 'looking at the pod failed: ENOBUFS',
  });
  expect(reconciler.rounds.length).toBeGreaterThan(1);
  expect(reconciler.rounds.length).toBeLessThan(10);
});

describe('a pod that nobody has confirmed yet', () => {
  test('is not looked at before, then waits for its status', async () => {
    let reason: string | undefined = 'NOT_SYNCED: the API server is away';
    const admitted = admissions(async () => reason).admit(() => WEB, LONG_MS);
    reconciler.status = { state: 'PENDING', reason: 'no interface yet' };
    const unknown = vi.fn(async () => reason);
    await admissions(unknown).admit(() => WEB, 120);
    expect([unknown.mock.calls.length > 1, reconciler.rounds]).toEqual([true, []]);
    reason = undefined;
    await vi.waitFor(() => expect(reconciler.rounds.length).toBeGreaterThan(0));
    reconciler.status = { state: 'NOT_ENROLLED' };
    expect(await admitted).toEqual({ kind: 'ready', state: 'NOT_ENROLLED' });
  });

  test('is told with the reason when the time is over', async () => {
    const reason = 'NOT_SYNCED: connect ECONNREFUSED';
    expect(await admissions(async () => reason).admit(() => WEB, 120)).toEqual({ kind: 'waiting', reason });
    expect(reconciler.rounds).toEqual([]);
  });

  test('is given the time left: whoever is asked is told to stop when it is over', async () => {
    const unknown = (_: PodUid, signal: AbortSignal) =>
      new Promise<string>((resolve) =>
        signal.addEventListener('abort', () => resolve('the API server is silent'), { once: true }),
      );
    expect(await admissions(unknown).admit(() => WEB, 50)).toEqual({
      kind: 'waiting',
      reason: 'the API server is silent',
    });
  });
});

describe('who confirms a pod', () => {
  const never = new AbortController().signal;
  const fromCni = () => pod('web', { serviceAccount: '', labels: {}, sources: ['cni'] });
  let store: PodStore;
  let kubernetes: KubernetesSource;
  let lookup: (of: PodUid, namespace: string, name: string) => Promise<Pod | undefined>;

  beforeEach(() => {
    store = new PodStore();
    store.replaceSource('cni', [fromCni()]);
    const log = { info: vi.fn(), warn: vi.fn(), error: vi.fn() };
    kubernetes = new KubernetesSource({ node: 'node-a', handlers: {}, store, log });
    kubernetes.lookup = vi.fn((of, namespace, name) => lookup(of, namespace, name));
    lookup = async () => undefined;
  });

  const unknown = () => confirmation(store, [kubernetes])(WEB, never);

  test('nobody has to where Kubernetes is no source', async () => {
    expect(await confirmation(store, [])(WEB, never)).toBeUndefined();
  });

  test('the API server is asked for it by name, and its answer counts at once', async () => {
    lookup = async (of, namespace, name) => {
      expect([of, namespace, name]).toEqual([WEB, 'default', 'web']);
      store.replaceSource('kubernetes', [pod('web', { sources: ['kubernetes'] })]);
      return store.get(of);
    };
    expect(await unknown()).toBeUndefined();
    expect(await unknown()).toBeUndefined();
    expect(kubernetes.lookup).toHaveBeenCalledTimes(1);
  });

  test('a pod that it does not know, or that cannot be asked for, is NOT_SYNCED', async () => {
    expect(await unknown()).toBe('NOT_SYNCED: the API server has not told of this pod yet');
    lookup = () => Promise.reject(new Error('connect ECONNREFUSED'));
    expect(await unknown()).toBe('NOT_SYNCED: connect ECONNREFUSED');
  });

  test('a pod of the static file, and one that is remembered from the last run, need no call', async () => {
    store.replaceSource('static', [pod('web')]);
    expect(await unknown()).toBeUndefined();
    store.replaceSource('static', []);
    store.rememberSource('kubernetes', [pod('web', { sources: ['kubernetes'] })]);
    expect(await unknown()).toBeUndefined();
    expect(kubernetes.lookup).not.toHaveBeenCalled();
  });
});

test('a pod counts as starting until it is answered, a pod that is only checked does not', async () => {
  const asked: PodUid[][] = [];
  const both = admissions(async () => {
    asked.push([...starting.list()]);
    return undefined;
  });
  reconciler.status = { state: 'INTERCEPTED' };
  await both.admit(() => WEB, LONG_MS);
  await both.check(() => WEB, LONG_MS);
  expect(asked).toEqual([[WEB], []]);
  expect(starting.list()).toEqual([]);
});
