import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test, vi } from 'vitest';
import {
  type IdentityChange,
  IdentityClient,
  type IdentityClientOptions,
} from '../../src/client/identity-client.js';
import { IdentityCopy } from '../../src/client/identity-copy.js';
import type { Workload } from '../../src/identity/workload.js';
import {
  DST,
  endpoint,
  type Fixture,
  type FixtureOptions,
  pod,
  SRC,
  startFixture,
  uid,
} from './api-fixture.js';
import { UnixRelay } from './unix-relay.js';

const opened: (() => Promise<unknown> | unknown)[] = [];

afterEach(async () => {
  for (const close of opened.splice(0).reverse()) {
    await close();
  }
});

async function startAgent(options: FixtureOptions = {}): Promise<Fixture> {
  const fixture = await startFixture(options);
  opened.push(() => fixture.close());
  return fixture;
}

interface Watched {
  readonly client: IdentityClient;
  readonly relay: UnixRelay;
  /** In the order in which they came: `synced`, `lost X`, `+pod`, `-pod`. */
  readonly events: string[];
}

async function watch(agent: Fixture, options: Partial<IdentityClientOptions> = {}): Promise<Watched> {
  const folder = mkdtempSync(join(tmpdir(), 'nodesentry-client-'));
  opened.push(() => rmSync(folder, { recursive: true, force: true }));
  const relay = await UnixRelay.open(join(folder, 'relay.sock'), agent.api.path);
  opened.push(() => relay.close());
  const client = new IdentityClient({ socket: relay.path, ...options });
  opened.push(() => client.close());
  const events: string[] = [];
  client.on('synced', () => events.push('synced'));
  client.on('lost', (cause) => events.push(`lost ${cause}`));
  client.on('change', ({ type, workload }: IdentityChange) =>
    events.push(`${type === 'UPSERT' ? '+' : '-'}${workload.podName}`),
  );
  return { client, relay, events };
}

async function synced(agent: Fixture, options: Partial<IdentityClientOptions> = {}): Promise<Watched> {
  const watched = await watch(agent, options);
  await once(watched.client, 'synced');
  watched.events.length = 0;
  return watched;
}

const a = pod('a', { ips: ['10.66.0.1', 'fd00:66::1'] });
const b = pod('b', { ips: ['10.66.0.2'] });
const unknown = (reason: string) => ({ workload: undefined, reason });

describe('a client', () => {
  test('names nobody before it has all, then answers without asking', async () => {
    const agent = await startAgent();
    const { client, relay, events } = await watch(agent);
    expect(client.synced).toBe(false);
    expect(client.byUid('uid-web-0')).toEqual(unknown('NOT_SYNCED'));
    expect(client.byAddress('10.66.0.3')).toEqual(unknown('NOT_SYNCED'));
    expect(client.workloads()).toEqual([]);
    await once(client, 'synced');
    const { workload } = agent.identity.workload(uid('uid-web-0'));
    expect(client.byUid('uid-web-0')).toEqual({ workload });
    expect(client.byAddress('10.66.0.3')).toEqual({ workload, assurance: 'IP_ONLY' });
    expect(client.byAddress('::ffff:10.66.0.3')).toMatchObject({ workload: { podName: 'web-0' } });
    expect(client.byAddress('10.66.0.9')).toEqual(unknown('WORKLOAD_NOT_FOUND'));
    expect(client.byAddress('nonsense')).toEqual(unknown('WORKLOAD_NOT_FOUND'));
    expect(client.byUid('nobody')).toEqual(unknown('WORKLOAD_NOT_FOUND'));
    expect(client.workloads()).toEqual([workload]);
    expect(events).toEqual(['+web-0', 'synced']);
    expect(relay.accepted).toBe(1);
  });

  test('follows what changes, each address of a pod', async () => {
    const agent = await startAgent();
    const { client, events } = await synced(agent);
    agent.store.replaceSource('static', [a, b]);
    await vi.waitFor(() => expect(events).toEqual(['-web-0', '+a', '+b']));
    for (const ip of a.ips) {
      expect(client.byAddress(ip)).toMatchObject({ workload: { podName: 'a' } });
    }
    agent.store.replaceSource('static', [{ ...a, ips: ['10.66.0.7'] }, b]);
    await vi.waitFor(() =>
      expect(client.byAddress('10.66.0.7')).toMatchObject({ workload: { podName: 'a' } }),
    );
    expect(a.ips.map((ip) => client.byAddress(ip))).toEqual(a.ips.map(() => unknown('WORKLOAD_NOT_FOUND')));
  });

  test('gives an address that is reused at once to the pod that has it, and to nobody while two do', async () => {
    const agent = await startAgent();
    const { client } = await synced(agent);
    for (let round = 0; round < 6; round++) {
      const [old, young] = [`p${round}`, `p${round + 1}`];
      agent.store.replaceSource('static', [pod(old), pod(young)]);
      await vi.waitFor(() => expect(client.byAddress('10.66.0.3')).toEqual(unknown('AMBIGUOUS')));
      // The removal of the one who had it comes after the other has got it.
      agent.store.replaceSource('static', [pod(young)]);
      await vi.waitFor(() =>
        expect(client.byAddress('10.66.0.3')).toMatchObject({ workload: { podName: young } }),
      );
      expect(client.byUid(`uid-${old}`)).toEqual(unknown('WORKLOAD_NOT_FOUND'));
    }
  });

  test('takes no pod for named that nobody with authority has named', async () => {
    const agent = await startAgent();
    const { client } = await synced(agent);
    agent.store.replaceSource('static', [pod('a', { serviceAccount: '' })]);
    await vi.waitFor(() => expect(client.byAddress('10.66.0.3')).toEqual(unknown('WORKLOAD_UNCONFIRMED')));
    expect(client.byUid('uid-a')).toMatchObject({ workload: { spiffeId: '' } });
  });

  test('asks about flows, one and many, whether or not the copy is complete', async () => {
    const agent = await startAgent();
    const { client } = await watch(agent);
    const query = { proto: 'tcp', src: SRC, dst: DST } as const;
    expect(await client.resolve(query)).toMatchObject({
      workload: { podName: 'web-0' },
      assurance: 'DATAPATH_RECORDED',
    });
    const other = { ...query, src: { ...SRC, port: 1 } };
    expect(await client.batch([query, other])).toMatchObject([
      { resolution: { workload: { podName: 'web-0' } } },
      { problem: { reason: 'ASSURANCE_TOO_LOW' } },
    ]);
    await expect(client.resolve(other)).rejects.toMatchObject({ code: 'ASSURANCE_TOO_LOW', status: 412 });
  });

  test('says why there is no watch, and goes on trying', async () => {
    const agent = await startAgent({ credentials: () => ({ pid: 7, uid: 1000, gid: 1000 }) });
    const { client, relay } = await watch(agent, { maxBackoffMs: 20 });
    await vi.waitFor(() => expect(client.lastError).toMatchObject({ code: 'CALLER_NOT_ALLOWED' }));
    relay.switchTo((await startAgent()).api.path);
    await once(client, 'synced');
    expect(client.lastError).toBeUndefined();
  });

  test('that is closed answers nothing, tells nothing, and lets go of the agent', async () => {
    const agent = await startAgent();
    const { client, relay, events } = await synced(agent);
    await client.close();
    await client.close();
    agent.store.replaceSource('static', [a]);
    expect(client.byAddress('10.66.0.3')).toEqual(unknown('NOT_SYNCED'));
    await expect(client.resolve({ proto: 'tcp', src: SRC, dst: DST })).rejects.toMatchObject({
      code: 'CONNECTION_FAILED',
    });
    expect(events).toEqual([]);
    const { accepted } = relay;
    await vi.waitFor(() => expect(relay.open).toBe(0));
    expect(relay.accepted).toBe(accepted);
  });

  test('can be closed by who hears of a change, and nothing comes after that', async () => {
    const agent = await startAgent({ empty: true });
    agent.store.replaceSource('static', [a, b]);
    const { client, events } = await watch(agent);
    client.once('change', () => void client.close());
    await vi.waitFor(() => expect(events).toEqual(['+a']));
    await client.close();
    expect([events, client.synced]).toEqual([['+a'], false]);
  });
});

describe('a stream that breaks', () => {
  test('for a short while is resumed where it was, and the copy answers meanwhile', async () => {
    const agent = await startAgent();
    const { client, relay, events } = await synced(agent);
    relay.refusing = true;
    relay.cut();
    agent.store.replaceSource('static', [pod('web-0'), a]);
    await vi.waitFor(() => expect(client.lastError).toMatchObject({ code: 'CONNECTION_FAILED' }));
    expect(client.synced).toBe(true);
    expect(client.byAddress('10.66.0.3')).toMatchObject({ workload: { podName: 'web-0' } });
    relay.refusing = false;
    // Only what has changed: not a snapshot, which would be told as lost.
    await vi.waitFor(() => expect(events).toEqual(['+a']));
    expect(client.synced).toBe(true);
  });

  test('for longer than a heartbeat and a half leaves nobody named', async () => {
    const agent = await startAgent();
    const { client, relay, events } = await synced(agent, { staleAfterMs: 60, maxBackoffMs: 20 });
    relay.refusing = true;
    relay.cut();
    await vi.waitFor(() => expect(events).toEqual(['lost SILENT']));
    expect([client.synced, client.byAddress('10.66.0.3')]).toEqual([false, unknown('NOT_SYNCED')]);
    agent.store.replaceSource('static', [a]);
    relay.refusing = false;
    await vi.waitFor(() => expect(events.slice(1, 4)).toEqual(['-web-0', '+a', 'synced']));
  });

  test('without a word is noticed by the silence, and opened anew', async () => {
    const agent = await startAgent({ watch: { heartbeatMs: 20 } });
    const { client, relay, events } = await synced(agent, { staleAfterMs: 200 });
    const since = performance.now();
    await vi.waitFor(() => expect(performance.now() - since).toBeGreaterThan(450));
    expect([client.synced, events]).toEqual([true, []]); // by the heartbeats alone
    relay.stall();
    await vi.waitFor(() => expect(events).toEqual(['lost SILENT', 'synced']));
    expect(relay.accepted).toBe(2);
  });

  test('because the agent was started anew voids the copy, and tells only what differs', async () => {
    const agent = await startAgent({ empty: true });
    agent.store.replaceSource('static', [a, b]);
    const { client, relay, events } = await synced(agent);
    const next = await startAgent({ empty: true, epoch: 'epoch-2' });
    next.store.replaceSource('static', [b, pod('c', { ips: ['10.66.0.1'] })]);
    let meanwhile: unknown;
    client.once('lost', () => {
      meanwhile = client.byAddress('10.66.0.2');
    });
    relay.switchTo(next.api.path);
    await vi.waitFor(() => expect(events).toEqual(['lost SNAPSHOT', '-a', '+c', 'synced']));
    expect(meanwhile).toEqual(unknown('NOT_SYNCED'));
    expect(client.byAddress('10.66.0.1')).toMatchObject({ workload: { podName: 'c' } });
    expect(client.byUid('uid-a')).toEqual(unknown('WORKLOAD_NOT_FOUND'));
  });

  test('because it read too slowly is LOST, and resumed', async () => {
    const agent = await startAgent({ empty: true, watch: { queueLimit: 4 } });
    const { client, events } = await synced(agent);
    // More in one turn than the sockets hold: nobody reads meanwhile.
    for (let round = 1; round <= 60; round++) {
      const long = 'x'.repeat(100_000);
      agent.store.replaceSource('static', [pod('a', { labels: { round: String(round), long } })]);
    }
    await vi.waitFor(() => expect(events.slice(-2)).toEqual(['+a', 'synced']), 5_000);
    expect(events).toContain('lost LOST');
    expect(client.byUid('uid-a')).toMatchObject({ workload: { labels: { round: '60' } } });
  });
});

test('a removal is of the generation that it names, whatever it comes after', async () => {
  const agent = await startAgent();
  const copy = new IdentityCopy();
  const workload = { ...agent.identity.workload(uid('uid-web-0')).workload, generation: 4 };
  copy.upsert(workload);
  expect(copy.remove(workload.uid, 3)).toBeUndefined();
  expect(copy.holders('10.66.0.3')).toEqual([workload]);
  expect(copy.remove(workload.uid, 4)).toEqual({ type: 'REMOVED', workload });
  expect(copy.holders('10.66.0.3')).toEqual([]);
});

function randomly(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

test('the copy equals the store once synced, wherever the stream was cut and whatever became of the agent', async () => {
  const SEEDS = 12;
  const seen = { cuts: 0, restarts: 0, lost: 0 };
  for (let seed = 1; seed <= SEEDS; seed++) {
    const random = randomly(seed);
    const start = (number: number) =>
      startAgent({ empty: true, epoch: `epoch-${seed}-${number}`, watch: { journalLimit: 12 } });
    let agent = await start(0);
    const { client, relay, events } = await watch(agent, { maxBackoffMs: 10 });
    const told = new Map<string, Workload>();
    client.on('change', ({ type, workload }) => {
      told.delete(workload.uid);
      if (type === 'UPSERT') {
        told.set(workload.uid, workload);
      }
    });
    let pods = [a, b];
    for (let step = 0; step < 60; step++) {
      const action = random(12);
      if (action === 0) {
        agent = await start(step + 1);
        agent.store.replaceSource('static', pods);
        relay.switchTo(agent.api.path);
        seen.restarts += 1;
      } else if (action < 3) {
        relay.cutAfterBytes = random(2) === 0 ? 150 + random(3_000) : Number.POSITIVE_INFINITY;
        relay.cut();
        seen.cuts += 1;
      } else if (action < 5) {
        const owner = uid(`uid-p${random(4)}`);
        agent.datapath.statuses.splice(0, 9, endpoint(owner, { generation: 1 + random(5) }));
      } else if (action < 7) {
        await new Promise((resolve) => setTimeout(resolve, random(8)));
      } else {
        pods = [0, 1, 2, 3, 4]
          .filter(() => random(3) > 0)
          .map((name) =>
            pod(`p${name}`, { ips: [`10.66.0.${random(4)}`], labels: { step: String(random(3)) } }),
          );
        agent.store.replaceSource('static', pods);
      }
    }
    relay.cutAfterBytes = Number.POSITIVE_INFINITY;
    relay.cut();
    // The last change: what has it has all before it.
    const last = pod('last', { labels: { seed: String(seed) }, ips: ['10.66.9.9'] });
    agent.store.replaceSource('static', [...pods, last]);
    await vi.waitFor(() => expect(client.byUid('uid-last')).toHaveProperty('workload.uid'), 10_000);
    // Endpoints change without telling the watch here: what it has told is what counts.
    const live = agent.store.list().map(({ uid: podUid }) => agent.identity.live(podUid));
    const plain = (all: readonly (Workload | undefined)[]) =>
      all
        .map((one) => ({ ...one, generation: 0 }))
        .sort((one, other) => ((one.uid ?? '') < (other.uid ?? '') ? -1 : 1));
    expect(plain(client.workloads())).toEqual(plain(live));
    expect(plain([...told.values()])).toEqual(plain(live));
    for (const ip of ['10.66.0.0', '10.66.0.1', '10.66.0.2', '10.66.0.3', '10.66.9.9']) {
      const holders = agent.store.byIp(ip);
      const [only] = holders;
      expect(client.byAddress(ip)).toMatchObject(
        only === undefined
          ? unknown('WORKLOAD_NOT_FOUND')
          : holders.length > 1
            ? unknown('AMBIGUOUS')
            : { workload: { uid: only.uid } },
      );
    }
    seen.lost += events.filter((event) => event.startsWith('lost')).length;
    await client.close();
  }
  expect(Math.min(seen.cuts, seen.restarts, seen.lost)).toBeGreaterThan(SEEDS);
}, 60_000);
