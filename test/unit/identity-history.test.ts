import { execFileSync } from 'node:child_process';
import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Pool } from 'undici';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { FlowRecord } from '../../src/datapath/flows.js';
import type { IdentityError } from '../../src/identity/errors.js';
import { AddressHistory, type AddressHistoryOptions } from '../../src/identity/history.js';
import { PastIdentity, type PastQuery } from '../../src/identity/past.js';
import type { Assurance } from '../../src/identity/resolve.js';
import type { Pod, PodUid } from '../../src/pods/pod.js';
import { DST, endpoint, flowRecord, identityParts, pod, startFixture, uid } from './api-fixture.js';

const IP = '10.66.0.3';
const START = 1_700_000_000_000;
const a = pod('a', { ips: [IP] });
const b = pod('b', { ips: [IP] });

let folder: string;
let state: { synced: boolean; blockers: string[]; nowMs: number };
let parts: ReturnType<typeof identityParts>;
let history: AddressHistory;
let endpointChanged: (uid: PodUid) => void;
const log = { info: vi.fn(), warn: vi.fn() };

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-history-'));
  state = { synced: true, blockers: [], nowMs: START };
  log.info.mockReset();
  log.warn.mockReset();
  agent();
});

afterEach(() => {
  history.close();
  rmSync(folder, { recursive: true });
  vi.useRealTimers();
});

const path = (): string => join(folder, 'addresses.ndjson');

/** A store and a history as of a new start. */
function agent(
  options: Partial<AddressHistoryOptions> = {},
  sources?: Parameters<typeof identityParts>[1],
): void {
  parts = identityParts(state, sources);
  history = new AddressHistory({
    store: parts.store,
    identity: parts.identity,
    synced: () => state.synced,
    onEndpoint: (listener) => {
      endpointChanged = listener;
      return () => {};
    },
    seconds: 3_600,
    entries: 1_000,
    path: path(),
    log,
    nowMs: () => state.nowMs,
    ...options,
  });
}

const have = (...pods: Pod[]) => parts.store.replaceSource('static', pods);
const at = (seconds: number): number => START + seconds * 1_000;
const now = (seconds: number): void => {
  state.nowMs = at(seconds);
};
const owners = (seconds: number, ip = IP) =>
  history.at(ip, at(seconds)).map(({ workload }) => workload.podName);

/** a from 0 to 10 s, nobody to 20 s, b from then. */
function oneAfterTheOther(): void {
  have(a);
  now(10);
  have();
  now(20);
  have(b);
  now(30);
}

function resolve(query: Partial<PastQuery>) {
  const past = new PastIdentity({
    store: parts.store,
    history,
    datapath: parts.datapath,
    synced: () => state.synced,
    nowMs: () => state.nowMs,
  });
  return past.resolve({ address: IP, at: at(5), minAssurance: 'IP_ONLY', ...query });
}

function refusal(query: Partial<PastQuery>): IdentityError {
  try {
    resolve(query);
  } catch (error) {
    return error as IdentityError;
  }
  throw new Error('it was answered');
}

describe('who had an address', () => {
  test('is answered by time, from when it was told until it had gone', () => {
    oneAfterTheOther();
    expect([0, 9.999, 10, 19.999, 20, 30].map((seconds) => owners(seconds))).toEqual([
      ['a'],
      ['a'],
      [],
      [],
      ['b'],
      ['b'],
    ]);
    expect(resolve({})).toMatchObject({
      workload: { podName: 'a', state: 'TERMINATING', spiffeId: 'spiffe://cluster.local/ns/default/sa/web' },
      assurance: 'IP_ONLY',
      at: at(5),
      from: at(0),
      until: at(10),
    });
    expect(resolve({ at: at(25) })).toMatchObject({ workload: { podName: 'b', state: 'LIVE' }, until: null });
  });

  test('follows a pod that changes its address, or has several', () => {
    have(pod('a', { ips: [IP, 'fd00::3'] }));
    now(10);
    have(pod('a', { ips: ['10.66.0.4', 'fd00::3'] }));
    expect([owners(5), owners(10), owners(10, '10.66.0.4')]).toEqual([['a'], [], ['a']]);
    expect([owners(5, 'fd00::3'), owners(10, 'fd00::3')]).toEqual([['a'], ['a']]);
  });

  test('knows the generation that the endpoint had last', () => {
    have(a);
    parts.datapath.statuses.push(endpoint(uid('uid-a'), { generation: 7 }));
    endpointChanged(uid('uid-a'));
    now(10);
    have();
    expect(resolve({}).workload.generation).toBe(7);
  });

  test('is no pod on the host’s network', () => {
    have(pod('a', { ips: [IP], hostNetwork: true }));
    expect(owners(0)).toEqual([]);
  });

  test('is AMBIGUOUS where two pods had it, never a guess', () => {
    have(a);
    now(10);
    have(a, b);
    now(20);
    have(b);
    expect(refusal({ at: at(15) })).toMatchObject({
      code: 'AMBIGUOUS',
      message: expect.stringContaining('of 2 pods: default/a, default/b'),
    });
    expect([owners(5), owners(20)]).toEqual([['a'], ['b']]);
  });

  test('has no name while no authority has confirmed the pod, and keeps the one it was given', () => {
    const sources = [{ name: 'kubernetes', lastError: undefined } as const];
    history.close();
    agent({}, sources);
    parts.store.replaceSource('cri', [pod('a', { ips: [IP], sources: ['cri'] })]);
    expect(refusal({ at: at(0) })).toMatchObject({ code: 'WORKLOAD_UNCONFIRMED' });
    parts.store.replaceSource('kubernetes', [pod('a', { ips: [IP], sources: ['kubernetes'] })]);
    now(10);
    parts.store.replaceSource('kubernetes', []);
    parts.store.replaceSource('cri', []);
    expect(resolve({}).workload.spiffeId).toBe('spiffe://cluster.local/ns/default/sa/web');
  });

  test('is known with IP_ONLY, and told to those who ask for that', () => {
    oneAfterTheOther();
    for (const minAssurance of [undefined, 'IP_AND_IFACE', 'DATAPATH_RECORDED'] as const) {
      const { store, datapath } = parts;
      const past = new PastIdentity({
        store,
        history,
        datapath,
        synced: () => true,
        nowMs: () => state.nowMs,
      });
      const query = { address: IP, at: at(5), ...(minAssurance === undefined ? {} : { minAssurance }) };
      expect(() => past.resolve(query)).toThrow(expect.objectContaining({ code: 'ASSURANCE_TOO_LOW' }));
    }
  });

  describe('with a flow that has ended', () => {
    const flow = { src: { ip: IP, port: 41_886 }, dst: DST };
    const recorded = (started: number, fields: Partial<FlowRecord> = {}) =>
      parts.datapath.flows.push(flowRecord(flow.src, flow.dst, { startedMs: at(started), ...fields }));
    const asked = (seconds: number, minAssurance: Assurance = 'DATAPATH_RECORDED') =>
      resolve({ flow, at: at(seconds), minAssurance });

    test('is proven by its record, for whom the address says the same', () => {
      oneAfterTheOther();
      parts.datapath.owners.set('1/3', uid('uid-a'));
      recorded(4);
      expect(asked(5)).toMatchObject({
        workload: { podName: 'a', state: 'TERMINATING' },
        assurance: 'DATAPATH_RECORDED',
        started: at(4),
        direction: 'EGRESS',
      });
      // Its pod has gone since, so the record says nothing of who has the address after it.
      expect(() => asked(25)).toThrow(expect.objectContaining({ code: 'ASSURANCE_TOO_LOW' }));
      expect(asked(25, 'IP_ONLY')).toMatchObject({ workload: { podName: 'b' }, assurance: 'IP_ONLY' });
    });

    test('a record of a later flow over the same ports, or of a pod that is not known, proves nothing', () => {
      oneAfterTheOther();
      parts.datapath.owners.set('1/3', uid('uid-a'));
      recorded(6);
      expect(asked(5, 'IP_ONLY')).toMatchObject({ assurance: 'IP_ONLY' });
      expect(asked(5, 'IP_ONLY')).not.toHaveProperty('started');
      parts.datapath.owners.clear();
      expect(asked(7, 'IP_ONLY')).toMatchObject({ workload: { podName: 'a' }, assurance: 'IP_ONLY' });
    });

    test('that a pod received is the receiver’s', () => {
      oneAfterTheOther();
      const received = { src: { ip: '192.0.2.9', port: 50_000 }, dst: { ip: IP, port: 80 } };
      parts.datapath.owners.set('1/3', uid('uid-a'));
      parts.datapath.flows.push(
        flowRecord(received.src, received.dst, { startedMs: at(4), direction: 'INGRESS' }),
      );
      expect(
        resolve({ address: received.src.ip, flow: received, minAssurance: 'DATAPATH_RECORDED' }),
      ).toMatchObject({
        workload: { podName: 'a' },
        direction: 'INGRESS',
        assurance: 'DATAPATH_RECORDED',
      });
    });

    test('tells two pods with one address apart', () => {
      have(pod('a', { ips: [IP] }), pod('b', { ips: [IP] }));
      parts.datapath.owners.set('1/3', uid('uid-b'));
      now(10);
      expect(() => asked(5, 'IP_ONLY')).toThrow(expect.objectContaining({ code: 'AMBIGUOUS' }));
      recorded(4);
      expect(asked(5)).toMatchObject({ workload: { podName: 'b' }, assurance: 'DATAPATH_RECORDED' });
    });
  });

  test('says whether the time is before what is kept, to come, or not all told yet', () => {
    oneAfterTheOther();
    expect(refusal({ at: at(15) })).toMatchObject({
      code: 'WORKLOAD_NOT_FOUND',
      message: expect.stringContaining('no pod of this node is known to have had the address 10.66.0.3'),
    });
    expect(refusal({ at: at(-1) })).toMatchObject({
      code: 'WORKLOAD_NOT_FOUND',
      message: expect.stringContaining(
        'is before what is kept of who had which address: that begins at 2023-11',
      ),
    });
    expect(refusal({ at: at(31) })).toMatchObject({ code: 'KEY_INVALID' });
    state.synced = false;
    expect(refusal({ at: at(15) })).toMatchObject({ code: 'NOT_SYNCED' });
    expect(resolve({}).workload.podName).toBe('a');
  });
});

describe('what is kept', () => {
  test('ends with its time, but not while the pod has the address', () => {
    have(a, pod('c', { ips: ['10.66.0.9'] }));
    now(10);
    have(pod('c', { ips: ['10.66.0.9'] }));
    now(3_611);
    have(pod('c', { ips: ['10.66.0.9'] }), b);
    expect(refusal({ at: at(5) }).message).toContain('before what is kept');
    expect([owners(5), owners(3_000, '10.66.0.9')]).toEqual([[], ['c']]);
  });

  test('is so many and no more, and says from when on it is whole', () => {
    history.close();
    agent({ entries: 3 });
    for (let round = 0; round < 6; round++) {
      now(10 * round);
      have(pod(`pod-${round}`, { ips: [IP] }));
    }
    now(60);
    expect([5, 15, 25, 35, 45, 55].map((seconds) => owners(seconds)[0])).toEqual([
      undefined,
      undefined,
      undefined,
      'pod-3',
      'pod-4',
      'pod-5',
    ]);
    expect(history.keptSince()).toBe(at(30));
    expect(refusal({ at: at(25) }).message).toContain('before what is kept');
  });
});

describe('an agent that is started anew', () => {
  test('knows what the last one knew, and goes on with the pods that are still there', () => {
    oneAfterTheOther();
    history.close();
    expect(statSync(path()).mode & 0o777).toBe(0o600);
    now(40);
    agent();
    now(50);
    expect([owners(5), owners(15), owners(25)]).toEqual([['a'], [], ['b']]);
    // Not named by a source yet: known until the last agent ended.
    expect([owners(29.999), owners(35), owners(45)]).toEqual([['b'], [], []]);
    have(b);
    expect([owners(35), owners(45), owners(50)]).toEqual([['b'], ['b'], ['b']]);
    history.close();
    agent();
    expect(owners(35)).toEqual(['b']);
  });

  test('does not know who had it in between where the pod has gone, and says so', () => {
    have(a);
    now(30);
    history.close();
    now(40);
    agent();
    now(50);
    have(b);
    now(60);
    expect([owners(29), owners(35), owners(45), owners(55)]).toEqual([['a'], [], [], ['b']]);
    expect(refusal({ at: at(35) }).message).toContain('one before it may have been away');
  });

  test('goes on with nobody who turns up again after every source has told', () => {
    vi.useFakeTimers();
    have(a);
    now(30);
    history.close();
    now(40);
    agent();
    vi.advanceTimersByTime(5_000);
    now(50);
    have(a);
    expect([owners(35), owners(50)]).toEqual([[], ['a']]);
  });

  test('after one that died knows that it lived when the file was last touched', () => {
    have(a);
    now(30);
    utimesSync(path(), at(20) / 1_000, at(20) / 1_000);
    const dead = history;
    now(40);
    agent();
    expect([owners(19), owners(25)]).toEqual([['a'], []]);
    dead.close();
  });

  test('does without a last line that was not written to its end, and without one that is none', () => {
    have(a);
    now(10);
    have(b);
    history.close();
    const { size } = statSync(path());
    truncateSync(path(), size - 10);
    agent();
    expect(owners(5)).toEqual(['a']);
    expect(log.warn).not.toHaveBeenCalled();
    history.close();
    appendFileSync(path(), '{"ip":7}\nnothing\n');
    agent();
    expect(owners(5)).toEqual(['a']);
    expect(log.warn).toHaveBeenCalledExactlyOnceWith({ path: path(), lines: 2 }, expect.any(String));
  });

  test('leaves a file of another version alone until it writes its own', () => {
    history.close();
    writeFileSync(path(), '{"version":2}\n');
    agent();
    expect(log.warn).toHaveBeenCalledOnce();
    expect(readFileSync(path(), 'utf8')).toContain('"version":1');
  });
});

describe('the file', () => {
  test('stays small however much happens, and has the newest', () => {
    history.close();
    agent({ maxBytes: 20_000 });
    for (let round = 1; round <= 500; round++) {
      now(round);
      have(pod(`pod-${round}`, { ips: [IP] }));
      expect(statSync(path()).size).toBeLessThan(21_000);
    }
    now(500.5);
    history.close();
    agent({ maxBytes: 20_000 });
    have(pod('pod-500', { ips: [IP] }));
    expect([owners(1), owners(499), owners(500)]).toEqual([[], ['pod-499'], ['pod-500']]);
    expect(history.keptSince()).toBeGreaterThan(at(400));
    expect(refusal({ at: at(1) }).message).toContain('before what is kept');
  });

  test('that cannot be written is told once, ends nothing, and is written whole once it can be', () => {
    vi.useFakeTimers();
    history.close();
    rmSync(path());
    // What stands in the way of the file that is to be renamed.
    mkdirSync(join(path(), 'in-the-way'), { recursive: true });
    agent();
    oneAfterTheOther();
    vi.advanceTimersByTime(20_000);
    expect(owners(5)).toEqual(['a']);
    expect(log.warn.mock.calls.map(([, message]) => message)).toEqual([
      'who had which address before this start cannot be read',
      'who has which address cannot be noted for the next start',
    ]);
    rmSync(path(), { recursive: true });
    vi.advanceTimersByTime(5_000);
    expect(log.info).toHaveBeenCalledOnce();
    history.close();
    agent();
    expect([owners(5), owners(25)]).toEqual([['a'], ['b']]);
  });

  test('on a disk that is full is told of once, and written whole once there is room', () => {
    vi.useFakeTimers();
    history.close();
    rmSync(path());
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', folder]);
    try {
      agent({ maxBytes: 1 << 20 });
      writeFileSync(join(folder, 'ballast'), Buffer.alloc(56 << 10));
      for (let round = 0; round < 40; round++) {
        now(round);
        have(pod(`pod-${round}`, { ips: [IP] }));
      }
      vi.advanceTimersByTime(20_000);
      expect(log.warn).toHaveBeenCalledExactlyOnceWith(
        { err: expect.objectContaining({ code: 'ENOSPC' }), path: path() },
        'who has which address cannot be noted for the next start',
      );
      expect([owners(0), owners(39)]).toEqual([['pod-0'], ['pod-39']]);
      rmSync(join(folder, 'ballast'));
      vi.advanceTimersByTime(5_000);
      history.close();
      agent({ maxBytes: 1 << 20 });
      expect([owners(0), owners(38)]).toEqual([['pod-0'], ['pod-38']]);
      expect(log.warn).toHaveBeenCalledOnce();
    } finally {
      history.close();
      execFileSync('umount', [folder]);
    }
  });
});

describe('GET /v1/resolve of a time', () => {
  const opened: (() => Promise<unknown>)[] = [];
  afterEach(async () => {
    for (const close of opened.splice(0).reverse()) {
      await close();
    }
  });

  async function start() {
    const fixture = await startFixture();
    const pool = new Pool('http://localhost', { socketPath: fixture.api.path });
    opened.push(
      () => fixture.close(),
      () => pool.destroy(),
    );
    const ask = async (query: string) => {
      const answer = await pool.request({
        path: `/v1/resolve?${query}`,
        method: 'GET',
        headers: { 'nodesentry.io': 'true' },
      });
      return { status: answer.statusCode, body: (await answer.body.json()) as Record<string, unknown> };
    };
    // web-0 from the start, gone 10 s later.
    const from = fixture.state.nowMs;
    fixture.state.nowMs = from + 10_000;
    fixture.store.replaceSource('static', []);
    fixture.state.nowMs = from + 60_000;
    return { ask, from };
  }

  test('names who had the address, by Unix time and by RFC 3339, with and without a port', async () => {
    const { ask, from } = await start();
    const five = from + 5_000;
    for (const address of ['10.66.0.3', '10.66.0.3:41886', '::ffff:10.66.0.3']) {
      for (const time of [String(five), new Date(five).toISOString(), '2023-11-14T23:13:25%2B01:00']) {
        const { status, body } = await ask(`address=${address}&at=${time}&minAssurance=IP_ONLY`);
        expect([status, body.at]).toEqual([200, five]);
        expect(body).toMatchObject({
          workload: { podName: 'web-0', generation: 3 },
          assurance: 'IP_ONLY',
          from,
          until: from + 10_000,
          epoch: 'epoch-1',
        });
      }
    }
  });

  test('names who sent a flow by its record, and without one by its source', async () => {
    const { ask, from } = await start();
    const flow = `proto=tcp&src=10.66.0.3:41887&dst=10.200.1.1:80&at=${from + 5_000}`;
    expect(await ask(`${flow}&minAssurance=IP_ONLY`)).toMatchObject({
      status: 200,
      body: {
        workload: { podName: 'web-0' },
        direction: 'EGRESS',
        original: { src: '10.66.0.3:41887', dst: '10.200.1.1:80' },
      },
    });
    expect(await ask(flow)).toMatchObject({ status: 412, body: { reason: 'ASSURANCE_TOO_LOW' } });
    expect(await ask(flow.replace('41887', '41886'))).toMatchObject({
      status: 200,
      body: { workload: { podName: 'web-0' }, assurance: 'DATAPATH_RECORDED', started: from },
    });
  });

  test.each([
    ['address=10.66.0.3&at=yesterday', 'at: expected'],
    ['address=10.66.0.3&at=2023-02-30T00:00:00Z', 'at: expected'],
    ['address=10.66.0.3&at=2023-11-14T23:13:25', 'at: expected'],
    ['address=web-0&at=1', 'address: expected an address such as 10.66.0.3'],
    ['address=10.66.0.3&src=10.66.0.3:1&at=1', 'address: only one key at a time, and src is another'],
    ['src=10.66.0.3:1&at=1', 'dst: expected an address and port'],
    ['proto=sctp&src=10.66.0.3:1&dst=10.0.0.1:1&at=1', 'proto: expected tcp or udp'],
    ['address=10.66.0.3&at=1&colour=red', 'colour: unknown key'],
    ['address=10.66.0.3&at=999999999999999', 'at: '],
  ])('is told which key is wrong: %s', async (query, detail) => {
    const { ask } = await start();
    expect(await ask(query)).toMatchObject({
      status: 400,
      body: { reason: 'KEY_INVALID', detail: expect.stringContaining(detail) },
    });
  });
});
