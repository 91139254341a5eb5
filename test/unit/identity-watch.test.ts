import { once } from 'node:events';
import { type IncomingMessage, request } from 'node:http';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { IdentityLine } from '../../src/api/messages.js';
import { IdentityWatch, type IdentityWatchOptions, type WatchFrom } from '../../src/identity/watch.js';
import type { Subscription, WatchEvent } from '../../src/identity/watch-events.js';
import type { Workload } from '../../src/identity/workload.js';
import type { Pod, PodUid } from '../../src/pods/pod.js';
import { endpoint, type Fixture, identityParts, pod, startFixture, uid } from './api-fixture.js';

let parts: ReturnType<typeof identityParts>;
let endpointListeners: Set<(uid: PodUid) => void>;
let watches: IdentityWatch[];

beforeEach(() => {
  parts = identityParts({ synced: true, blockers: [], nowMs: 1_000_000 });
  endpointListeners = new Set();
  watches = [];
});

afterEach(() => {
  for (const watch of watches) {
    watch.close();
  }
  vi.useRealTimers();
});

function open(options: Partial<IdentityWatchOptions> = {}): IdentityWatch {
  const watch = new IdentityWatch({
    store: parts.store,
    identity: parts.identity,
    onEndpoint: (listener) => {
      endpointListeners.add(listener);
      return () => endpointListeners.delete(listener);
    },
    ...options,
  });
  watches.push(watch);
  return watch;
}

/** Takes what it is given until `room` events have come. */
class Reader {
  readonly events: WatchEvent[] = [];
  ended = false;
  readonly subscription: Subscription;
  #room: number;

  constructor(watch: IdentityWatch, from: WatchFrom = {}, room = Number.POSITIVE_INFINITY) {
    this.#room = room;
    this.subscription = watch.subscribe(from, {
      sizeOf: (event) => JSON.stringify(event).length,
      write: (events) => {
        this.events.push(...events);
        return this.events.length < this.#room;
      },
      end: () => {
        this.ended = true;
      },
    });
  }

  read(room: number): void {
    this.#room = this.events.length + room;
    this.subscription.drained();
  }

  /** In short: what, of whom with which generation, at which revision. */
  told(): string[] {
    return this.events.splice(0).map(short);
  }
}

function short(event: WatchEvent): string {
  switch (event.kind) {
    case 'upsert':
      return `+${event.workload.podName}/${event.workload.generation}@${event.revision}`;
    case 'removed':
      return `-${event.uid.replace('uid-', '')}/${event.generation}@${event.revision}`;
    default:
      return `${event.kind}@${event.revision}`;
  }
}

const a = pod('a', { ips: ['10.66.0.1'] });
const b = pod('b', { ips: ['10.66.0.2'] });
const c = pod('c', { ips: ['10.66.0.3'] });
const have = (...pods: Pod[]) => parts.store.replaceSource('static', pods);

function setGeneration(name: string, generation: number): void {
  const { statuses } = parts.datapath;
  const at = statuses.findIndex(({ podUid }) => podUid === uid(`uid-${name}`));
  statuses.splice(at === -1 ? statuses.length : at, 1, endpoint(uid(`uid-${name}`), { generation }));
  for (const listener of endpointListeners) {
    listener(uid(`uid-${name}`));
  }
}

describe('a reader that is new', () => {
  test('gets what lives, then what changes, each with epoch and revision', () => {
    have(a, b);
    const reader = new Reader(open());
    expect(reader.events.every(({ epoch }) => epoch === 'epoch-1')).toBe(true);
    expect(reader.told()).toEqual(['snapshot@0', '+a/0@0', '+b/0@1', 'snapshotDone@1']);
    have(a, b, c);
    have(b, c);
    expect(reader.told()).toEqual(['+c/0@2', '-a/0@3']);
  });

  test('gets the workload as resolve answers it, and no event twice encoded', () => {
    const watch = open();
    const [one, other] = [new Reader(watch), new Reader(watch)];
    have(a);
    const query = {
      proto: 'tcp',
      src: { ip: '10.66.0.1', port: 1 },
      dst: { ip: '10.0.0.1', port: 80 },
      minAssurance: 'IP_ONLY',
    } as const;
    expect(one.events.at(-1)).toMatchObject({ workload: parts.identity.resolve(query).workload });
    expect(one.events.at(-1)).toBe(other.events.at(-1));
  });

  test('gets no name of a pod that no authority has confirmed, and the name once one has', () => {
    const sources = [{ name: 'kubernetes', lastError: undefined } as const];
    parts = identityParts({ synced: true, blockers: [], nowMs: 0 }, sources);
    const reader = new Reader(open());
    const names = () =>
      reader.events.splice(0).map((event) => event.kind === 'upsert' && event.workload.spiffeId);
    names();
    parts.store.replaceSource('cri', [pod('a', { sources: ['cri'] })]);
    expect(names()).toEqual(['']);
    parts.store.replaceSource('kubernetes', [pod('a', { sources: ['kubernetes'] })]);
    expect(names()).toEqual(['spiffe://cluster.local/ns/default/sa/web']);
    // The authority has dropped it while the runtime still lists it: its address names nobody.
    parts.store.replaceSource('kubernetes', []);
    expect(names()).toEqual(['']);
  });

  test('gets no address of a pod on the host’s network: the node’s is not the pod’s', () => {
    have(pod('a', { hostNetwork: true, ips: ['192.0.2.1'] }));
    const { events } = new Reader(open());
    expect(events[1]).toMatchObject({ kind: 'upsert', workload: { podName: 'a', ips: [] } });
  });

  test('hears of an endpoint that was made anew', () => {
    have(a);
    const reader = new Reader(open());
    reader.told();
    setGeneration('a', 3);
    setGeneration('a', 3);
    setGeneration('nobody', 1);
    expect(reader.told()).toEqual(['+a/3@1']);
    have();
    expect(reader.told()).toEqual(['-a/3@2']);
  });
});

describe('a reader that comes back', () => {
  test('gets only what changed since', () => {
    have(a, b);
    const watch = open();
    have(a, b, c);
    have(b, c);
    expect(new Reader(watch, { epoch: 'epoch-1', since: 1 }).told()).toEqual([
      '+c/0@2',
      '-a/0@3',
      'snapshotDone@3',
    ]);
    expect(new Reader(watch, { epoch: 'epoch-1', since: 3 }).told()).toEqual(['snapshotDone@3']);
  });

  test('gets all anew with another epoch, from the future, or from before the journal', () => {
    const watch = open({ journalLimit: 2 });
    have(a);
    have(a, b);
    have(a, b, c);
    const all = ['snapshot@0', '+a/0@1', '+b/0@2', '+c/0@3', 'snapshotDone@3'];
    const told = (from: WatchFrom) => new Reader(watch, from).told();
    expect(told({ epoch: 'epoch-1', since: 1 })).toEqual(['+b/0@2', '+c/0@3', 'snapshotDone@3']);
    expect(told({ epoch: 'epoch-1', since: 0 })).toEqual(all);
    expect(told({ epoch: 'epoch-1', since: 4 })).toEqual(all);
    expect(told({ epoch: 'epoch-0', since: 3 })).toEqual(all);
    expect(told({ since: 3 })).toEqual(all);
    expect(told({ epoch: 'epoch-1' })).toEqual(all);
  });

  test('in the middle of what changed at once gets the rest of it', () => {
    const watch = open();
    const cut = new Reader(watch, {}, 3);
    have(a, b, c);
    expect(cut.told()).toEqual(['snapshot@0', 'snapshotDone@0', '+a/0@0']);
    expect(new Reader(watch, { epoch: 'epoch-1', since: 0 }).told()).toEqual([
      '+a/0@0',
      '+b/0@0',
      '+c/0@1',
      'snapshotDone@1',
    ]);
  });

  test('hears of a generation that changed without a change of the store', () => {
    have(a, b);
    const watch = open();
    setGeneration('a', 3);
    expect(new Reader(watch, { epoch: 'epoch-1', since: 1 }).told()).toEqual(['+a/3@1', 'snapshotDone@1']);
    setGeneration('a', 4);
    have(b);
    expect(new Reader(watch, { epoch: 'epoch-1', since: 1 }).told()).toEqual([
      '-a/0@1',
      '-a/3@1',
      '-a/4@2',
      'snapshotDone@2',
    ]);
  });
});

describe('a reader that does not read', () => {
  test('is told that it lost something, and ended; a hundred others get everything at once', () => {
    const watch = open({ queueLimit: 5 });
    const others = Array.from({ length: 100 }, () => new Reader(watch));
    const slow = new Reader(watch, {}, 2);
    for (let round = 1; round <= 7; round++) {
      have(pod('a', { labels: { round: String(round) } }));
      for (const { events } of others) {
        expect(events.at(-1)).toMatchObject({ kind: 'upsert', revision: round });
      }
    }
    expect(slow.ended).toBe(true);
    expect(slow.told()).toEqual(['snapshot@0', 'snapshotDone@0', 'lost@0']);
    slow.subscription.drained();
    have();
    expect(slow.told()).toEqual([]);
    expect(others.every(({ ended }) => !ended)).toBe(true);
  });

  test('is ended by the bytes that wait for it too', () => {
    const watch = open({ queueBytes: 3_000 });
    const slow = new Reader(watch, {}, 2);
    have(pod('a', { labels: { long: 'x'.repeat(2_000) } }));
    expect(slow.ended).toBe(false);
    have(pod('a', { labels: { long: 'y'.repeat(2_000) } }));
    expect(slow.ended).toBe(true);
  });

  test('gets what waited for it, in order, when it reads again in time', () => {
    have(a);
    const slow = new Reader(open({ queueLimit: 5 }), {}, 1);
    have(a, b);
    have(b);
    expect(slow.told()).toEqual(['snapshot@0', '+a/0@1', 'snapshotDone@1']);
    slow.read(10);
    expect(slow.told()).toEqual(['+b/0@2', '-a/0@3']);
  });

  test('with more pods than may wait gets the whole snapshot all the same', () => {
    have(...Array.from({ length: 300 }, (_, index) => pod(`pod-${index}`)));
    const slow = new Reader(open({ queueLimit: 5 }), {}, 1);
    for (let turn = 0; turn < 10; turn++) {
      slow.read(1);
    }
    expect(slow.told()).toHaveLength(302);
  });
});

test('heartbeats come while nothing happens, to those that take them', () => {
  vi.useFakeTimers();
  const watch = open({ heartbeatMs: 1_000 });
  const reader = new Reader(watch);
  const slow = new Reader(watch, {}, 2);
  reader.told();
  vi.advanceTimersByTime(900);
  have(a);
  expect(reader.told()).toEqual(['+a/0@1']);
  vi.advanceTimersByTime(999);
  expect(reader.told()).toEqual([]);
  vi.advanceTimersByTime(2_001);
  expect(reader.told()).toEqual(['heartbeat@1', 'heartbeat@1', 'heartbeat@1']);
  slow.read(10);
  expect(slow.told()).toEqual(['snapshot@0', 'snapshotDone@0', '+a/0@1']);
});

test('no more watch than may, and one that leaves makes room', () => {
  const watch = open({ maxWatchers: 2 });
  const [first] = [new Reader(watch), new Reader(watch)];
  expect(watch.full).toBe(true);
  first?.subscription.close();
  expect(watch.full).toBe(false);
  have(a);
  expect(first?.told()).toEqual(['snapshot@0', 'snapshotDone@0']);
});

test('a watch that closes ends its readers, and listens no more', () => {
  const watch = open();
  const reader = new Reader(watch);
  watch.close();
  expect(reader.ended).toBe(true);
  expect(endpointListeners.size).toBe(0);
});

/** Keeps by (uid, generation), as the contract has it. */
class Copy {
  readonly held = new Map<string, Workload>();
  from: WatchFrom = {};

  take(event: WatchEvent): void {
    const { epoch, revision } = event;
    if (this.from.since !== undefined && event.kind !== 'snapshot') {
      expect(revision).toBeGreaterThanOrEqual(this.from.since);
    }
    this.from = { epoch, since: revision };
    if (event.kind === 'snapshot') {
      this.held.clear();
    } else if (event.kind === 'upsert') {
      this.held.set(event.workload.uid, event.workload);
    } else if (event.kind === 'removed' && this.held.get(event.uid)?.generation === event.generation) {
      this.held.delete(event.uid);
    }
  }
}

function randomly(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

test('a copy equals the store, wherever its reader was cut off and however slow it was', () => {
  let resumed = 0;
  let anew = 0;
  let lost = 0;
  for (let seed = 1; seed <= 60; seed++) {
    const random = randomly(seed);
    parts = identityParts({ synced: true, blockers: [], nowMs: 0 });
    const watch = open({ journalLimit: 12, queueLimit: 6 });
    const copy = new Copy();
    let reader: Reader | undefined;
    const take = (most: number) => {
      for (const event of reader?.events.splice(0, most) ?? []) {
        copy.take(event);
      }
      reader?.read(2);
    };
    for (let step = 0; step < 150; step++) {
      const pods = ['a', 'b', 'c', 'd', 'e'].filter(() => random(3) > 0);
      switch (random(6)) {
        case 0:
          reader?.subscription.close();
          reader = new Reader(watch, copy.from, 2);
          if (reader.events[0]?.kind === 'snapshot') {
            anew += 1;
          } else {
            resumed += 1;
          }
          break;
        case 1:
          // What had not been read is gone with the connection.
          reader?.subscription.close();
          reader = undefined;
          break;
        case 2:
          setGeneration(pods[0] ?? 'a', random(4));
          break;
        case 3:
          take(random(4));
          break;
        default:
          have(...pods.map((name) => pod(name, { labels: { step: String(random(3)) } })));
      }
      if (reader?.ended === true) {
        lost += 1;
        expect(reader.events.at(-1)?.kind).toBe('lost');
        reader = undefined;
      }
    }
    reader?.subscription.close();
    const last = new Reader(watch, copy.from);
    for (const event of last.events) {
      copy.take(event);
    }
    const live = parts.store.list().map(({ uid }) => parts.identity.live(uid));
    expect([...copy.held.values()].sort(byUid)).toEqual(live.sort(byUid));
  }
  expect(Math.min(resumed, anew, lost)).toBeGreaterThan(20);
});

function byUid(one: Workload | undefined, other: Workload | undefined): number {
  return (one?.uid ?? '') < (other?.uid ?? '') ? -1 : 1;
}

describe('GET /v1/watch', () => {
  const opened: (() => Promise<unknown> | unknown)[] = [];
  afterEach(async () => {
    for (const close of opened.splice(0).reverse()) {
      await close();
    }
  });

  async function start(watch: Partial<IdentityWatchOptions> = {}): Promise<Fixture> {
    const fixture = await startFixture({ watch });
    opened.push(() => fixture.close());
    return fixture;
  }

  async function ask({ api }: Fixture, path: string): Promise<IncomingMessage> {
    const asked = request({ socketPath: api.path, path, headers: { 'nodesentry.io': 'true' } });
    opened.push(() => asked.destroy());
    asked.on('error', () => {}); // ours, when the test is over
    asked.end();
    const [response] = await once(asked, 'response');
    return response as IncomingMessage;
  }

  async function follow(fixture: Fixture, query = '') {
    const response = await ask(fixture, `/v1/watch${query}`);
    expect([response.statusCode, response.headers['content-type']]).toEqual([200, 'application/x-ndjson']);
    const lines = createInterface({ input: response })[Symbol.asyncIterator]();
    return async (): Promise<IdentityLine> => JSON.parse((await lines.next()).value as string);
  }

  test('is a snapshot and what changes, a line each', async () => {
    const fixture = await start();
    const next = await follow(fixture);
    const { workload } = fixture.identity.workload(uid('uid-web-0'));
    expect(await next()).toEqual({ type: 'SNAPSHOT', epoch: 'epoch-1', revision: 0 });
    expect(await next()).toEqual({ type: 'UPSERT', epoch: 'epoch-1', revision: 1, workload });
    expect(await next()).toEqual({ type: 'SNAPSHOT_DONE', epoch: 'epoch-1', revision: 1 });
    fixture.store.replaceSource('static', [pod('db-0')]);
    const removed = { type: 'REMOVED', epoch: 'epoch-1' };
    expect(await next()).toEqual({ ...removed, revision: 1, uid: 'uid-web-0', generation: 3 });
    expect(await next()).toMatchObject({ type: 'UPSERT', revision: 2, workload: { podName: 'db-0' } });
    fixture.store.replaceSource('static', []);
    expect(await next()).toEqual({ ...removed, revision: 3, uid: 'uid-db-0', generation: 0 });
  });

  test('resumes, and beats while nothing happens', async () => {
    const fixture = await start({ heartbeatMs: 20 });
    fixture.store.replaceSource('static', []);
    const next = await follow(fixture, '?epoch=epoch-1&since=1');
    expect(await next()).toMatchObject({ type: 'REMOVED', uid: 'uid-web-0', revision: 2 });
    expect(await next()).toMatchObject({ type: 'SNAPSHOT_DONE' });
    expect(await next()).toEqual({ type: 'HEARTBEAT', epoch: 'epoch-1', revision: 2 });
    const other = await follow(fixture, '?epoch=epoch-0&since=1');
    expect(await other()).toMatchObject({ type: 'SNAPSHOT' });
  });

  test.each([
    ['since=x', 'since: expected the revision of an earlier answer, got "x"'],
    ['since=-1', 'since: expected'],
    ['since=1&since=2', 'since: expected the revision of an earlier answer, got a list of 2'],
    ['epoch=', 'epoch: expected the epoch of an earlier answer, got ""'],
    ['epoch=a%0Ab', 'epoch: expected'],
    ['colour=red', 'colour: unknown key; known are epoch, since'],
  ])('is told which parameter is malformed: %s', async (query, detail) => {
    const response = await ask(await start(), `/v1/watch?${query}`);
    expect(response.statusCode).toBe(400);
    const body = JSON.parse((await response.toArray()).join(''));
    expect(body).toMatchObject({ reason: 'KEY_INVALID', detail: expect.stringContaining(detail) });
  });

  test('is refused to more than may watch', async () => {
    const fixture = await start({ maxWatchers: 1 });
    await follow(fixture);
    expect((await ask(fixture, '/v1/watch')).statusCode).toBe(429);
  });

  test('ends one that does not read, with LOST as its last line, while another is served', async () => {
    const fixture = await start({ queueLimit: 8 });
    const slow = await ask(fixture, '/v1/watch');
    const next = await follow(fixture);
    await next();
    await next();
    await next();
    // Past what the sockets themselves hold; the other reads as it comes.
    for (let round = 2; round <= 60; round++) {
      const long = 'x'.repeat(100_000);
      fixture.store.replaceSource('static', [pod('web-0', { labels: { round: String(round), long } })]);
      expect(await next()).toMatchObject({ type: 'UPSERT', revision: round });
    }
    const lines = (await slow.toArray()).join('').trim().split('\n');
    expect(lines.length).toBeLessThan(50);
    const last = lines.slice(-2).map((line) => JSON.parse(line) as IdentityLine);
    expect(last).toMatchObject([{ type: 'UPSERT' }, { type: 'LOST', revision: last[0]?.revision }]);
  });
});
