import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Revisions } from '../../src/identity/revisions.js';
import { netnsCookie, netnsCookieAt, socketInfo } from '../../src/native/sockets.js';
import { formatSocketAddress } from '../../src/net/socket-address.js';
import { endpoint, type Fixture, flowRecord, pod, startFixture, uid } from './api-fixture.js';
import { type OwnNamespace, ownNamespace, startTimeOf } from './own-namespace.js';

let fixture: Fixture;
const opened: (() => Promise<void> | void)[] = [];

beforeEach(async () => {
  fixture = await startFixture();
  opened.push(() => fixture.close());
});

afterEach(async () => {
  for (const close of opened.splice(0).reverse()) {
    await close();
  }
});

async function namespace(): Promise<OwnNamespace> {
  const made = await ownNamespace();
  opened.push(made.end);
  return made;
}

async function ask(query: string): Promise<{ status: number; body: Record<string, unknown> }> {
  return new Promise((resolve, reject) => {
    request(
      { socketPath: fixture.api.path, path: `/v1/resolve?${query}`, headers: { 'nodesentry.io': 'true' } },
      async (response) => {
        const text = (await response.setEncoding('utf8').toArray()).join('');
        resolve({ status: response.statusCode ?? 0, body: JSON.parse(text) });
      },
    )
      .on('error', reject)
      .end();
  });
}

const named = (podName: string) => ({ status: 200, body: { workload: { podName } } });
const refused = (status: number, reason: string) => ({ status, body: { reason } });
const byProcess = ({ pid, startTime }: OwnNamespace['process']) => `pid=${pid}&startTime=${startTime}`;

describe('a pod by its UID', () => {
  test('is named without a flow, also after it went', async () => {
    expect(await ask('podUid=uid-web-0')).toEqual({
      status: 200,
      body: {
        workload: expect.objectContaining({ podName: 'web-0', generation: 3, state: 'LIVE' }),
        instance: 'default',
        epoch: 'epoch-1',
        revision: 1,
        ttlMs: 1000,
      },
    });
    fixture.store.replaceSource('static', []);
    expect(await ask('podUid=uid-web-0')).toMatchObject({ body: { workload: { state: 'TERMINATING' } } });
    expect(await ask('podUid=nobody')).toMatchObject(refused(404, 'WORKLOAD_NOT_FOUND'));
    fixture.state.synced = false;
    expect(await ask('podUid=nobody')).toMatchObject(refused(503, 'NOT_SYNCED'));
  });

  test('whose service account nobody knows is not answered with an empty name', async () => {
    fixture.store.replaceSource('static', [pod('web-0', { serviceAccount: '' })]);
    expect(await ask('podUid=uid-web-0')).toMatchObject(refused(409, 'WORKLOAD_UNCONFIRMED'));
  });
});

describe('a pod by its address', () => {
  test('is named to those who ask for what an address says', async () => {
    expect(await ask('address=10.66.0.3')).toMatchObject(refused(412, 'ASSURANCE_TOO_LOW'));
    const { status, body } = await ask('address=10.66.0.3&minAssurance=IP_ONLY');
    expect([status, body.assurance, body.direction]).toEqual([200, 'IP_ONLY', undefined]);
    expect(body.workload).toMatchObject({ podName: 'web-0' });
  });

  test('is not guessed', async () => {
    expect(await ask('address=10.66.0.9&minAssurance=IP_ONLY')).toMatchObject(
      refused(404, 'WORKLOAD_NOT_FOUND'),
    );
    fixture.store.replaceSource('static', [pod('web-0'), pod('web-1')]);
    expect(await ask('address=10.66.0.3&minAssurance=IP_ONLY')).toMatchObject(refused(409, 'AMBIGUOUS'));
  });
});

describe('a pod by its interface on the host', () => {
  test('is the one whose interface it is', async () => {
    expect(await ask('hostInterface=veth0')).toMatchObject(named('web-0'));
    expect(await ask('hostInterface=veth')).toMatchObject(refused(404, 'WORKLOAD_NOT_FOUND'));
    fixture.store.replaceSource('static', [pod('web-0'), pod('web-1', { ips: ['10.66.0.4'] })]);
    fixture.datapath.statuses.push(endpoint(uid('uid-web-1'), { endpointId: 2 }));
    expect(await ask('hostInterface=veth0')).toMatchObject(refused(409, 'AMBIGUOUS'));
  });
});

describe('a pod by a process', () => {
  test('is the one in whose network namespace the process is', async () => {
    const [own, other] = [await namespace(), await namespace()];
    fixture.store.replaceSource('static', [
      pod('web-0', { netns: own.path }),
      pod('web-1', { ips: ['10.66.0.4'], netns: other.path }),
      pod('web-2', { ips: ['10.66.0.5'] }),
      pod('web-3', { ips: ['10.66.0.6'], netns: '/run/netns/does-not-exist' }),
    ]);
    expect(await ask(byProcess(own.process))).toMatchObject(named('web-0'));
    expect(await ask(byProcess(other.process))).toMatchObject(named('web-1'));
  });

  test('a namespace is the same whatever path leads to it', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'nodesentry-keys-'));
    const path = join(folder, 'netns');
    const own = await namespace();
    writeFileSync(path, '');
    execFileSync('mount', ['--bind', own.path, path]);
    opened.push(() => {
      execFileSync('umount', [path]);
      rmSync(folder, { recursive: true });
    });
    fixture.store.replaceSource('static', [pod('web-0', { netns: path })]);
    expect(await ask(byProcess(own.process))).toMatchObject(named('web-0'));
  });

  test('that another process has the number of by now is not found, nor one that has ended', async () => {
    const own = await namespace();
    fixture.store.replaceSource('static', [pod('web-0', { netns: own.path })]);
    const { pid, startTime } = own.process;
    const missed = await ask(byProcess({ pid, startTime: startTime - 1 }));
    expect(missed).toMatchObject(refused(404, 'WORKLOAD_NOT_FOUND'));
    expect(missed.body.detail).toContain(`says ${startTime}`);
    expect(await ask(`pid=4194305&startTime=1`)).toMatchObject(refused(404, 'WORKLOAD_NOT_FOUND'));
  });

  test('of the agent’s own namespace is of no pod, whatever its pods are told to be in', async () => {
    fixture.store.replaceSource('static', [
      pod('web-0', { hostNetwork: true, netns: '/proc/self/ns/net' }),
      pod('web-1', { netns: '/proc/self/ns/net' }),
    ]);
    const self = { pid: process.pid, startTime: startTimeOf(process.pid) };
    expect(await ask(byProcess(self))).toMatchObject(refused(404, 'WORKLOAD_NOT_FOUND'));
  });

  test('in the namespace of two pods is ambiguous', async () => {
    const own = await namespace();
    const netns = own.path;
    fixture.store.replaceSource('static', [pod('web-0', { netns }), pod('web-1', { netns })]);
    expect(await ask(byProcess(own.process))).toMatchObject(refused(409, 'AMBIGUOUS'));
  });
});

test('a pod by the cookie of its network namespace', async () => {
  const [own, other] = [await namespace(), await namespace()];
  fixture.store.replaceSource('static', [
    pod('web-0', { netns: own.path }),
    pod('web-1', { ips: ['10.66.0.4'], netns: other.path }),
    pod('web-2', { ips: ['10.66.0.5'], netns: '/run/netns/does-not-exist' }),
  ]);
  expect(await ask(`netnsCookie=${netnsCookieAt(own.path)}`)).toMatchObject(named('web-0'));
  expect(await ask(`netnsCookie=${netnsCookieAt(other.path)}`)).toMatchObject(named('web-1'));
  expect(await ask(`netnsCookie=${netnsCookie()}`)).toMatchObject(refused(404, 'WORKLOAD_NOT_FOUND'));
});

describe('a flow by the cookie of a socket', () => {
  /** Over loopback, as a proxy has it: what it has accepted, and what it has dialled. */
  async function connection(host: string, dialled = host) {
    const server = createServer().listen(0, host);
    opened.push(() => void server.close());
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const client = connect(port, dialled);
    const [[accepted]] = (await Promise.all([once(server, 'connection'), once(client, 'connect')])) as [
      [Socket],
      unknown,
    ];
    opened.push(
      () => void client.destroy(),
      () => void accepted.destroy(),
    );
    const ends = { src: { ip: dialled, port: client.localPort ?? 0 }, dst: { ip: dialled, port } };
    return { client: cookieOf(client), accepted: cookieOf(accepted), ends };
  }

  function cookieOf(socket: Socket): bigint {
    return socketInfo((socket as unknown as { _handle: { fd: number } })._handle.fd).cookie;
  }

  test.each([
    ['127.0.0.1', '127.0.0.1'],
    ['::1', '::1'],
    ['::', '127.0.0.1'],
  ])('that is accepted at %s from %s is the peer’s', async (host, dialled) => {
    const { accepted, client, ends } = await connection(host, dialled);
    fixture.datapath.flows.push(flowRecord(ends.src, ends.dst));
    expect(await ask(`socketCookie=${accepted}`)).toMatchObject({
      status: 200,
      body: {
        workload: { podName: 'web-0' },
        assurance: 'DATAPATH_RECORDED',
        original: { src: formatSocketAddress(ends.src), dst: formatSocketAddress(ends.dst) },
      },
    });
    expect(await ask(`socketCookie=${client}`)).toMatchObject(refused(404, 'WORKLOAD_NOT_FOUND'));
  });

  test('that nobody has is not found, however many ask at once', async () => {
    const { accepted, ends } = await connection('127.0.0.1');
    fixture.datapath.flows.push(flowRecord(ends.src, ends.dst));
    const cookies = Array.from({ length: 20 }, (_, n) => (n % 2 === 0 ? accepted : BigInt(n) << 50n));
    const answers = await Promise.all(cookies.map((cookie) => ask(`socketCookie=${cookie}`)));
    for (const [n, answer] of answers.entries()) {
      expect(answer).toMatchObject(n % 2 === 0 ? named('web-0') : refused(404, 'WORKLOAD_NOT_FOUND'));
    }
  });

  test('of a pod that is known by its address alone needs its word for it', async () => {
    const { accepted } = await connection('127.0.0.1');
    fixture.store.replaceSource('static', [pod('web-0', { ips: ['127.0.0.1'] })]);
    expect(await ask(`socketCookie=${accepted}`)).toMatchObject(refused(412, 'ASSURANCE_TOO_LOW'));
    expect(await ask(`socketCookie=${accepted}&minAssurance=IP_ONLY`)).toMatchObject(named('web-0'));
  });
});

describe('a revision that the answer has to rest on', () => {
  const at = (revision: number, waitMs = 0, epoch = 'epoch-1') =>
    ask(`podUid=uid-web-1&minEpoch=${epoch}&minRevision=${revision}&waitMs=${waitMs}`);
  const more = () =>
    fixture.store.replaceSource('static', [pod('web-0'), pod('web-1', { ips: ['10.66.0.4'] })]);

  test('is waited for', async () => {
    const waiting = at(2, 5_000);
    expect(await at(1)).toMatchObject(refused(404, 'WORKLOAD_NOT_FOUND'));
    more();
    expect(await waiting).toMatchObject({ ...named('web-1'), body: { revision: 2 } });
  });

  test('is waited for as long as the caller wants to, and not where it will never come', async () => {
    const startedMs = performance.now();
    const late = await at(2, 50);
    expect(late).toMatchObject(refused(503, 'NOT_SYNCED'));
    expect(late.body.detail).toBe('revision 2 is not reached yet, 1 is, after 50 ms');
    expect(performance.now() - startedMs).toBeGreaterThanOrEqual(45);
    const other = await at(1, 5_000, 'epoch-0');
    expect(other).toMatchObject(refused(503, 'NOT_SYNCED'));
    expect(other.body.detail).toContain('the epoch epoch-0 is another agent');
    expect(performance.now() - startedMs).toBeLessThan(4_000);
  });

  test('costs nothing once it was reached, the time is over or the caller has gone, and not all may wait', async () => {
    const { store } = fixture;
    const revisions = new Revisions(store, 2);
    const gone = new AbortController();
    const wait = (revision: number, waitMs: number) =>
      revisions.reached({ epoch: 'epoch-1', revision, waitMs }, gone.signal);
    const [reached, left] = [wait(2, 5_000), wait(9, 5_000)];
    expect(revisions.waiting).toBe(2);
    await expect(wait(9, 5_000)).rejects.toMatchObject({ code: 'NOT_SYNCED' });
    more();
    await reached;
    expect(revisions.waiting).toBe(1);
    gone.abort();
    await expect(left).rejects.toMatchObject({ code: 'NOT_SYNCED' });
    await expect(wait(9, 5_000)).rejects.toMatchObject({ code: 'NOT_SYNCED' });
    expect(revisions.waiting).toBe(0);
  });
});

test.each([
  ['podUid=a&address=10.66.0.3', 'address: only one key at a time, and podUid is another'],
  ['proto=tcp&podUid=a', 'podUid: only one key at a time, and proto is another'],
  ['podUid=a&podUid=b', 'podUid: expected 1 to 253 characters, got a list of 2'],
  ['podUid=', 'podUid: expected 1 to 253 characters, got 0'],
  ['podUid=a&minAssurance=IP_ONLY', 'minAssurance: only a flow or an address has an assurance'],
  ['podUid=a&at=1', 'at: only of a flow or an address'],
  ['pid=1', 'startTime: expected when the process started'],
  ['startTime=1', 'pid: expected the number of a process, got nothing'],
  ['pid=1x&startTime=1', 'pid: expected the number of a process, got "1x"'],
  ['pid=4294967296&startTime=1', 'pid: expected the number of a process'],
  ['pid=1&startTime=18446744073709551616', 'startTime: expected when the process started'],
  ['hostInterface=0123456789abcdef', 'hostInterface: expected the name of a network interface'],
  ['address=web-0', 'address: expected an address such as 10.66.0.3'],
  ['socketCookie=x', 'socketCookie: expected what SO_COOKIE of an accepted socket is, got "x"'],
  ['socketCookie=1&at=1', 'at: only of a flow or an address'],
  ['netnsCookie=x', 'netnsCookie: expected what SO_NETNS_COOKIE of a socket is, got "x"'],
  ['podUid=a&minRevision=1', 'minEpoch: expected the epoch of an earlier answer, got nothing'],
  ['podUid=a&minEpoch=e', 'minRevision: expected the revision of an earlier answer, got nothing'],
  ['podUid=a&waitMs=5', 'minEpoch: expected'],
  ['podUid=a&minEpoch=e&minRevision=1&waitMs=5001', 'waitMs: expected milliseconds, at most 5000'],
  ['address=10.66.0.3&at=1&minEpoch=e&minRevision=1', 'minEpoch: not with at'],
])('a malformed question is told which key is wrong: %s', async (query, detail) => {
  const { status, body } = await ask(query);
  expect([status, body.reason]).toEqual([400, 'KEY_INVALID']);
  expect(body.detail).toContain(detail);
});
