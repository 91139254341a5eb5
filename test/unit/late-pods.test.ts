import { beforeEach, expect, it } from 'vitest';
import type { Pod, PodUid, SourceName } from '../../src/pods/pod.js';
import { PodStore } from '../../src/pods/pod-store.js';
import { LatePods } from '../../src/reconcile/late-pods.js';
import type { EndpointStatus } from '../../src/reconcile/status.js';
import { endpoint, pod } from './api-fixture.js';
import { recordingLog } from './reconcile-fixture.js';

/** As the reconciler tells it: whoever is in the store has a status once it was looked at. */
class ReconcilerStandIn {
  readonly statuses = new Map<PodUid, EndpointStatus>();
  readonly watchers = new Set<(uid: PodUid) => void>();
  isCaughtUp = false;

  caughtUp(): boolean {
    return this.isCaughtUp;
  }

  statusOf(uid: PodUid): EndpointStatus | undefined {
    return this.statuses.get(uid);
  }

  onStatus(watcher: (uid: PodUid) => void): () => void {
    this.watchers.add(watcher);
    return () => this.watchers.delete(watcher);
  }

  publish(uid: PodUid, status: Partial<EndpointStatus> | undefined): void {
    if (status === undefined) {
      this.statuses.delete(uid);
    } else {
      this.statuses.set(uid, endpoint(uid, status));
    }
    for (const watcher of this.watchers) {
      watcher(uid);
    }
  }
}

const PENDING = { state: 'PENDING', programmed: false } as const;
const PROGRAMMED = { state: 'PENDING', programmed: true } as const;
const INTERCEPTED = { state: 'INTERCEPTED', programmed: true } as const;
const WEB = pod('web-0');

let nowMs: number;
let store: PodStore;
let reconciler: ReconcilerStandIn;
let log: ReturnType<typeof recordingLog>;
let late: LatePods;

beforeEach(() => {
  nowMs = 1_000;
  store = new PodStore({ nowMs: () => nowMs, rememberMs: 60_000 });
  startAgent();
});

/** Another one of the same node, or the first. */
function startAgent(before: readonly PodUid[] = []): void {
  reconciler = new ReconcilerStandIn();
  log = recordingLog();
  late = new LatePods({ store, reconciler, before, log });
}

function told(source: SourceName, { uid }: Pod): void {
  const known = store.get(uid) ?? pod('web-0', { uid });
  store.updateSource(source, { upsert: [{ ...known, sources: [source] }] });
}

it('counts and tells once a pod that the plugin did not announce, at the moment when it is put in place', () => {
  reconciler.isCaughtUp = true;
  told('cri', WEB);
  reconciler.publish(WEB.uid, PENDING);
  expect(late.count).toBe(0);
  reconciler.publish(WEB.uid, PROGRAMMED);
  reconciler.publish(WEB.uid, INTERCEPTED);
  reconciler.publish(WEB.uid, PROGRAMMED);
  reconciler.publish(WEB.uid, INTERCEPTED);
  expect(late.count).toBe(1);
  expect(log.warn).toHaveBeenCalledTimes(1);
  expect(log.warn.mock.calls[0]).toEqual([
    expect.objectContaining({ pod: 'default/web-0', sources: ['cri'] }),
    expect.stringContaining('first connections may have gone past the proxy'),
  ]);
});

it('a pod that was announced is never late, also not when its DEL comes before the runtime drops it', () => {
  reconciler.isCaughtUp = true;
  told('cri', WEB);
  reconciler.publish(WEB.uid, PENDING);
  told('cni', WEB);
  reconciler.publish(WEB.uid, PROGRAMMED);
  store.updateSource('cni', { remove: [WEB.uid] });
  expect(store.get(WEB.uid)?.sources).toEqual(['cri']);
  reconciler.publish(WEB.uid, INTERCEPTED);
  expect(late.count).toBe(0);
});

it('a pod that is left alone is not late', () => {
  reconciler.isCaughtUp = true;
  told('cri', WEB);
  reconciler.publish(WEB.uid, { state: 'NOT_ENROLLED', desired: false, programmed: false });
  expect(late.count).toBe(0);
});

it('pods that were there when the agent started are not late, whenever they come to be intercepted', () => {
  told('cri', WEB);
  reconciler.publish(WEB.uid, PENDING);
  reconciler.isCaughtUp = true;
  reconciler.publish(WEB.uid, INTERCEPTED);
  expect(late.count).toBe(0);
});

it('is not counted again by the next agent', () => {
  reconciler.isCaughtUp = true;
  told('cri', WEB);
  reconciler.publish(WEB.uid, INTERCEPTED);
  expect(late.count).toBe(1);
  startAgent();
  reconciler.publish(WEB.uid, INTERCEPTED);
  reconciler.isCaughtUp = true;
  reconciler.publish(WEB.uid, INTERCEPTED);
  expect(late.count).toBe(0);
  expect(log.warn).not.toHaveBeenCalled();
});

it('is not counted again by the next agent where the first answer of its source leaves it out', () => {
  startAgent([WEB.uid]);
  reconciler.isCaughtUp = true;
  told('cri', WEB);
  reconciler.publish(WEB.uid, INTERCEPTED);
  expect(late.count).toBe(0);
});

it('is not counted again where its source left it out of one answer', () => {
  reconciler.isCaughtUp = true;
  told('cri', WEB);
  reconciler.publish(WEB.uid, INTERCEPTED);
  store.updateSource('cri', { remove: [WEB.uid] });
  reconciler.publish(WEB.uid, undefined);
  reconciler.publish(pod('other').uid, undefined);
  told('cri', WEB);
  reconciler.publish(WEB.uid, INTERCEPTED);
  expect(late.count).toBe(1);
});

it('forgets pods with the store: one that comes back after that is judged as a new one', () => {
  reconciler.isCaughtUp = true;
  told('cri', WEB);
  reconciler.publish(WEB.uid, INTERCEPTED);
  store.updateSource('cri', { remove: [WEB.uid] });
  reconciler.publish(WEB.uid, undefined);
  nowMs += 61_000;
  store.updateSource('cri', {});
  reconciler.publish(pod('other').uid, undefined);
  told('cri', WEB);
  reconciler.publish(WEB.uid, INTERCEPTED);
  expect(late.count).toBe(2);
});

it('looks at nothing any more once it is closed', () => {
  late.close();
  expect(reconciler.watchers.size).toBe(0);
});
