import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { EventMemory } from '../../src/cluster/event-memory.js';
import { eventObject, podEvent } from '../../src/cluster/pod-event.js';
import { PodEvents } from '../../src/cluster/pod-events.js';
import type { Pod, PodUid } from '../../src/pods/pod.js';
import { PodStore } from '../../src/pods/pod-store.js';
import { type Call, KubernetesError, type Write } from '../../src/pods/sources/kubernetes-client.js';
import type { EndpointState, EndpointStatus } from '../../src/reconcile/status.js';
import { endpoint, pod as somePod, uid } from './api-fixture.js';

const NEVER = new AbortController().signal;
const log = { info: vi.fn(), warn: vi.fn(), error: vi.fn() };

let folder: string;
let store: PodStore;
let statuses: Map<PodUid, EndpointStatus>;
let nowMs: number;
let calls: { call: Call; write: Write }[];
/** What a call is answered with; undefined: it is done. */
let fault: ((call: Call) => KubernetesError | undefined) | undefined;
let events: PodEvents;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-events-'));
  store = new PodStore();
  statuses = new Map();
  nowMs = 0;
  calls = [];
  fault = undefined;
  vi.clearAllMocks();
  start();
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function start(): void {
  events = new PodEvents({
    node: 'node-a',
    client: {
      write: async (call, write) => {
        calls.push({ call, write });
        const error = fault?.(call);
        if (error !== undefined) {
          throw error;
        }
        return {};
      },
    },
    store,
    statuses: () => [...statuses.values()],
    memory: new EventMemory(join(folder, 'events.json'), log),
    log,
    nowMs: () => nowMs,
    unixMs: () => Date.UTC(2026, 0, 1) + nowMs,
  });
}

function pod(name: string, more: Partial<Pod> = {}): Pod {
  return somePod(name, { namespace: 'shop', labels: {}, ips: [], sources: ['kubernetes'], ...more });
}

function set(name: string, state: EndpointState, reason?: string): void {
  const podUid = uid(`uid-${name}`);
  const desired = state !== 'NOT_ENROLLED';
  statuses.set(
    podUid,
    endpoint(podUid, { state, reason, generation: 1, interfaces: [], inbound: true, desired }),
  );
}

/** Second by second. */
async function pass(seconds: number): Promise<void> {
  for (let second = 0; second < seconds; second++) {
    nowMs += 1_000;
    events.look();
    await events.send(NEVER).catch(() => undefined);
  }
}

const made = () =>
  calls.flatMap(({ write }) =>
    write.kind === 'create' ? [write.object as { reason: string; note: string; type: string }] : [],
  );
const reasons = () => made().map(({ reason }) => reason);
const conflict = () => new KubernetesError('CONFLICT', 'there already');

describe('a pod that is refused', () => {
  it('is told of once, however long it stays so, and once more when it is intercepted again', async () => {
    store.replaceSource('kubernetes', [pod('web')]);
    set('web', 'REFUSED', 'NO_INSTANCE: no instance is configured for app web');
    await pass(300);
    expect(made()).toMatchObject([
      {
        type: 'Warning',
        reason: 'NodeSentryRefused',
        note: expect.stringMatching(
          /^NO_INSTANCE: .* for app web\. Its connections go past the proxy\. Add an instance/,
        ),
        regarding: { kind: 'Pod', namespace: 'shop', name: 'web', uid: 'uid-web' },
      },
    ]);
    set('web', 'INTERCEPTED');
    await pass(300);
    expect(made().slice(1)).toMatchObject([{ type: 'Normal', reason: 'NodeSentryIntercepted' }]);
  });

  it('is told of only once it has been so for five seconds', async () => {
    store.replaceSource('kubernetes', [pod('web')]);
    for (let round = 0; round < 10; round++) {
      set('web', 'REFUSED', 'NETNS_GONE: it goes');
      await pass(3);
      set('web', 'INTERCEPTED');
      await pass(3);
    }
    expect(calls).toEqual([]);
  });

  it('for one reason after the other is told of no more than once a minute', async () => {
    store.replaceSource('kubernetes', [pod('web')]);
    for (let second = 0; second < 130; second++) {
      set('web', 'DEGRADED', `reason ${second}`);
      await pass(1);
    }
    expect(made()).toHaveLength(3);
  });
});

it('a pod that was always intercepted is not told of', async () => {
  store.replaceSource('kubernetes', [pod('web')]);
  set('web', 'INTERCEPTED');
  await pass(20);
  expect(calls).toEqual([]);
});

it('what the API server has not told of, or nobody wants intercepted, is left alone', async () => {
  store.replaceSource('cri', [pod('stray', { sources: ['cri'] })]);
  store.replaceSource('kubernetes', [
    pod('other'),
    pod('proxy', { hostNetwork: true }),
    pod('asked', { hostNetwork: true, labels: { 'nodesentry.io/intercept': 'enabled' } }),
  ]);
  set('stray', 'REFUSED', 'NO_INSTANCE: none');
  set('other', 'NOT_ENROLLED');
  set('proxy', 'REFUSED', 'HOST_NETWORK: it is');
  set('asked', 'REFUSED', 'HOST_NETWORK: it is');
  await pass(20);
  expect(made()).toMatchObject([{ regarding: { name: 'asked' } }]);
});

describe('an agent that is started anew', () => {
  beforeEach(async () => {
    store.replaceSource('kubernetes', [pod('web')]);
    set('web', 'DEGRADED', 'no canary');
    await pass(10);
    expect(reasons()).toEqual(['NodeSentryDegraded']);
  });

  it('does not say it again, but says when it is over', async () => {
    start();
    await pass(10);
    set('web', 'INTERCEPTED');
    await pass(10);
    expect(reasons()).toEqual(['NodeSentryDegraded', 'NodeSentryIntercepted']);
  });

  it('and has lost its memory makes the same event, which is there already', async () => {
    writeFileSync(join(folder, 'events.json'), '{');
    start();
    expect(log.warn).toHaveBeenCalledOnce();
    fault = conflict;
    await pass(70);
    const [first, second, ...more] = calls.map(({ write }) =>
      write.kind === 'create' ? (write.object as { metadata: object }).metadata : undefined,
    );
    expect(second).toEqual(first);
    expect(more).toEqual([]);
  });
});

it('the same trouble again, after it was over, counts up the event that is there', async () => {
  store.replaceSource('kubernetes', [pod('web')]);
  set('web', 'DEGRADED', 'no canary');
  await pass(10);
  set('web', 'INTERCEPTED');
  await pass(10);
  set('web', 'DEGRADED', 'no canary');
  fault = ({ what }) => (what === 'create events' ? conflict() : undefined);
  await pass(100);
  const patches = calls.flatMap(({ call, write }) => (write.kind === 'merge' ? [{ call, write }] : []));
  expect(patches).toMatchObject([{ write: { patch: { series: { count: 2 } } } }]);
  const [{ metadata }] = made() as unknown as [{ metadata: { name: string } }];
  expect(patches[0]?.call.path).toMatch(new RegExp(`/events/${metadata.name}$`));
});

describe('an API server that does not take events', () => {
  it('gets them later, in their order, with the time at which they happened', async () => {
    store.replaceSource('kubernetes', [pod('web')]);
    fault = () => new KubernetesError('UNAVAILABLE', 'away');
    set('web', 'REFUSED', 'NO_INSTANCE: none');
    await pass(20);
    set('web', 'INTERCEPTED');
    await pass(20);
    calls = [];
    fault = undefined;
    await pass(10);
    expect(made()).toMatchObject([
      { reason: 'NodeSentryRefused', eventTime: '2026-01-01T00:00:06.000000Z' },
      { reason: 'NodeSentryIntercepted', eventTime: '2026-01-01T00:00:26.000000Z' },
    ]);
  });

  it('is asked for no more than ten at once, and one each second after', async () => {
    const names = Array.from({ length: 400 }, (_, index) => `web-${index}`);
    store.replaceSource(
      'kubernetes',
      names.map((name) => pod(name)),
    );
    for (const name of names) {
      set(name, 'REFUSED', 'NO_INSTANCE: none');
    }
    await pass(6);
    expect(calls).toHaveLength(10);
    await pass(10);
    expect(calls).toHaveLength(20);
    await pass(400);
    expect(new Set(made().map(({ note }) => note)).size).toBe(1);
    expect(calls).toHaveLength(400);
  });

  it('in one namespace only is asked for the others', async () => {
    store.replaceSource('kubernetes', [pod('web', { namespace: 'closed' }), pod('api')]);
    set('web', 'REFUSED', 'NO_INSTANCE: none');
    set('api', 'REFUSED', 'NO_INSTANCE: none');
    fault = ({ path }) => (path.includes('/closed/') ? new KubernetesError('FORBIDDEN', 'no') : undefined);
    await pass(10);
    const done = calls.filter(({ call }) => !call.path.includes('/closed/'));
    expect(done).toHaveLength(1);
  });

  it.each(['NOT_FOUND', 'TERMINATING', 'REJECTED'] as const)('and says %s is left in peace', async (code) => {
    store.replaceSource('kubernetes', [pod('web')]);
    set('web', 'REFUSED', 'NO_INSTANCE: none');
    fault = () => new KubernetesError(code, 'no');
    await pass(100);
    expect(calls).toHaveLength(1);
  });
});

describe('an event', () => {
  it('of a long reason is as long as may be, advice and all', () => {
    const told = { state: 'DEGRADED', generation: 1, reason: '☂'.repeat(1_000) } as const;
    const { note } = podEvent(pod('web'), told, 'Do this', 0);
    expect(Buffer.byteLength(note)).toBeLessThanOrEqual(1_024);
    expect(Buffer.byteLength(note)).toBeGreaterThan(1_020);
    expect(note).toMatch(/☂…\. Do this$/);
  });

  it('of a pod with the longest name has a name that may be', () => {
    const name = `${'a'.repeat(219)}.${'b'.repeat(33)}`;
    const event = podEvent(pod(name), { state: 'REFUSED', generation: undefined, reason: 'r' }, '', 0);
    expect(event.name).toMatch(/^a{219}\.[0-9a-f]{16}$/);
    expect(eventObject(event, 'n'.repeat(253))).toMatchObject({ reportingInstance: 'n'.repeat(128) });
  });

  it('of another generation or reason is another one', () => {
    const name = (generation: number, reason: string) =>
      podEvent(pod('web'), { state: 'REFUSED', generation, reason }, '', 0).name;
    expect(new Set([name(1, 'a'), name(2, 'a'), name(1, 'b')]).size).toBe(3);
    expect(name(1, 'a')).toBe(name(1, 'a'));
  });
});
