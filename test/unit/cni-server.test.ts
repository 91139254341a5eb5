/** What the CNI plugin is answered: before a pod starts, and when it goes. */

import { statSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { ADD, CniFixture, NETNS, RESULT } from './cni-fixture.js';

let node: CniFixture;

beforeEach(async () => {
  node = new CniFixture();
  await node.start();
});
afterEach(() => node.close());

const { prevResult: _, ...WITHOUT_RESULT } = ADD;
const { netns: __, ...WITHOUT_NETNS } = ADD;

describe('a request that is wrong is refused with the field that is', () => {
  const withIp = (address: unknown, more: object = {}) => ({
    ...ADD,
    prevResult: { ...RESULT, ips: [{ address, ...more }] },
  });
  const ADDRESS = /^prevResult\.ips\[0\]\.address: expected an address with a prefix length/;
  const ID = /^containerId: expected a container ID$/;
  const IFNAME = /^ifname: expected an interface name of at most 15 characters$/;
  const PATH = /^netns: expected the absolute path of a network namespace$/;
  const UID = /^podUid: expected a pod UID of 1 to 63/;
  const cases: [string, object | string, RegExp][] = [
    ['nothing', '', /^the request is not JSON: /],
    ['no JSON', 'ADD c1', /^the request is not JSON: /],
    ['half a document', '{"version":1', /^the request is not JSON: /],
    ['a list', '[]', /^the request: expected a JSON object$/],
    ['null', 'null', /^the request: expected a JSON object$/],
    ['no command', { version: 1 }, /^command: expected ADD, CHECK, DEL, STATUS or GC$/],
    ['an unknown command', { ...ADD, command: 'RUN' }, /^command: expected ADD, CHECK, DEL, STATUS or GC$/],
    ['version 2', { ...ADD, version: 2 }, /^version: expected protocol version 1: install the plugin/],
    ['no version', { command: 'STATUS' }, /^version: expected protocol version 1/],
    ['a container ID with a slash', { ...ADD, containerId: '../c1' }, ID],
    ['a container ID that is empty', { ...ADD, containerId: '' }, ID],
    ['a container ID that is a number', { ...ADD, containerId: 1 }, ID],
    ['a container ID of 257 characters', { ...ADD, containerId: 'c'.repeat(257) }, ID],
    ['an interface name of 16 characters', { ...ADD, ifname: 'e'.repeat(16) }, IFNAME],
    ['an interface name with a slash', { ...ADD, ifname: 'a/b' }, IFNAME],
    ['no interface name', { ...ADD, ifname: undefined }, IFNAME],
    ['no namespace', WITHOUT_NETNS, PATH],
    ['a namespace that is no path', { ...ADD, netns: 'pod' }, PATH],
    ['a pod UID with a slash', { ...ADD, podUid: 'a/b' }, UID],
    ['a pod UID of 64 characters', { ...ADD, podUid: 'a'.repeat(64) }, UID],
    [
      'a pod name that is too long',
      { ...ADD, podName: 'a'.repeat(254) },
      /^podName: expected a text of at most 253/,
    ],
    [
      'a pod namespace that is a number',
      { ...ADD, podNamespace: 7 },
      /^podNamespace: expected a text of at most/,
    ],
    [
      'annotations that are a list',
      { ...ADD, annotations: [] },
      /^annotations: expected an object of texts$/,
    ],
    [
      'an annotation that is a number',
      { ...ADD, annotations: { a: 1 } },
      /^annotations\.a: expected a text of/,
    ],
    [
      'a time that is a text',
      { ...ADD, timeoutMs: '10' },
      /^timeoutMs: expected a whole number of milliseconds/,
    ],
    [
      'a time of more than 10 minutes',
      { ...ADD, timeoutMs: 600_001 },
      /^timeoutMs: expected a whole number of/,
    ],
    [
      'a negative time',
      { command: 'STATUS', version: 1, timeoutMs: -1 },
      /^timeoutMs: expected a whole number/,
    ],
    ['no result', WITHOUT_RESULT, /^prevResult: expected the result of the plugin before$/],
    ['a result that is a list', { ...ADD, prevResult: [] }, /^prevResult: expected the result of the plugin/],
    [
      'addresses that are no list',
      { ...ADD, prevResult: { ips: {} } },
      /^prevResult\.ips: expected a list of at most/,
    ],
    [
      '257 addresses',
      { ...ADD, prevResult: { ips: Array(257).fill({ address: '10.0.0.1/8' }) } },
      /^prevResult\.ips: expected a list of at most 256$/,
    ],
    ['an address that is none', withIp('10.66.0.300/24'), ADDRESS],
    ['an address without a prefix', withIp('10.66.0.3'), ADDRESS],
    ['an IPv4 prefix of 33', withIp('10.66.0.3/33'), ADDRESS],
    ['an IPv6 prefix of 129', withIp('fd00::1/129'), ADDRESS],
    ['a prefix that is negative', withIp('10.66.0.3/-1'), ADDRESS],
    ['two prefixes', withIp('10.66.0.3/24/24'), ADDRESS],
    ['an address that is a number', withIp(10), ADDRESS],
    [
      'an interface number below 0',
      withIp('10.66.0.3/24', { interface: -1 }),
      /^prevResult\.ips\[0\]\.interface: expected the number of an interface/,
    ],
    [
      'an interface without a name',
      { ...ADD, prevResult: { interfaces: [{}] } },
      /^prevResult\.interfaces\[0\]\.name: expected a text/,
    ],
    ['GC without a list', { version: 1, command: 'GC' }, /^attachments: expected a list of at most 100000$/],
    [
      'GC with a bad entry',
      { version: 1, command: 'GC', attachments: [{ containerId: 'a/b', ifname: 'eth0' }] },
      /^attachments\[0\]\.containerId: expected a container ID$/,
    ],
    ['DEL without a container ID', { version: 1, command: 'DEL', ifname: 'eth0' }, ID],
  ];
  test.each(cases)('%s', async (_name, request, message) => {
    const answer = await node.ask(request);
    expect(answer).toMatchObject({ ok: false, code: 7, retry: false, msg: expect.stringMatching(message) });
    expect([node.store.list(), node.asked, node.log.error.mock.calls]).toEqual([[], [], []]);
  });

  test('more than 1 MiB, before it has been sent to the end', async () => {
    const long = Buffer.alloc((1 << 20) + 1, 'x');
    for (const end of [true, false]) {
      expect(await node.ask(long, end)).toMatchObject({
        code: 7,
        msg: expect.stringMatching(/longer than 1048576/),
      });
    }
    expect(await node.ask(Buffer.alloc(8 << 20, 'x'))).toMatchObject({ code: 7 });
    const most = JSON.stringify(ADD).padEnd(1 << 20, ' ');
    expect(await node.ask(most)).toMatchObject({ ok: true });
  });
});

describe('a client', () => {
  test('that never ends its request is let go of, and one that sends a byte now and then too', async () => {
    await node.close();
    node = new CniFixture();
    await node.start({ requestTimeoutMs: 200 });
    await expect(node.ask('{"version":1', false)).rejects.toThrow('without an answer');
    const dripping = node.client();
    const gone = new Promise<void>((resolve) => dripping.once('close', () => resolve()));
    dripping.on('error', () => undefined);
    dripping.once('end', () => dripping.destroy());
    dripping.resume();
    const timer = setInterval(() => dripping.write(' '), 20);
    try {
      await gone;
    } finally {
      clearInterval(timer);
    }
    expect(await node.ask({ version: 1, command: 'STATUS' })).toEqual({ ok: true });
  });

  test('that goes before it is answered harms nobody', async () => {
    let admit: (() => void) | undefined;
    node.admission = () =>
      new Promise((resolve) => {
        admit = () => resolve({ kind: 'ready', state: 'INTERCEPTED' });
      });
    const client = node.client();
    client.end(JSON.stringify(ADD));
    await vi.waitFor(() => expect(admit).toBeDefined());
    client.destroy();
    admit?.();
    await vi.waitFor(() => expect(node.observed).toEqual(['INTERCEPTED']));
    expect(await node.ask({ version: 1, command: 'STATUS' })).toEqual({ ok: true });
  });

  test('that is not root is refused, whatever it asks', async () => {
    node.credentials = () => ({ pid: 1, uid: 1000, gid: 0 });
    for (const request of [ADD, { version: 1, command: 'STATUS' }, 'nonsense']) {
      expect(await node.ask(request)).toEqual({
        ok: false,
        code: 100,
        msg: 'uid 1000 may not ask: only root may',
        retry: false,
      });
    }
    expect(node.store.list()).toEqual([]);
  });

  test('whose credentials cannot be read may try again; the agent goes on', async () => {
    node.credentials = () => {
      throw new Error('no such process');
    };
    expect(await node.ask(ADD)).toMatchObject({ ok: false, code: 11, retry: true });
    expect(node.store.list()).toEqual([]);
    expect(node.log.error).toHaveBeenCalledTimes(1);
  });

  test('finds a socket that is for root alone', () => {
    expect(statSync(node.path).mode & 0o777).toBe(0o600);
  });
});

describe('ADD', () => {
  test('announces the pod, waits for its datapath, and says which state it has', async () => {
    expect(await node.ask(ADD)).toEqual({ ok: true, state: 'INTERCEPTED' });
    // A tenth is left for the way back.
    expect(node.asked).toEqual([{ uid: 'uid-web', timeoutMs: 900 }]);
    expect(node.store.list()).toMatchObject([
      {
        uid: 'uid-web',
        namespace: 'shop',
        name: 'web-0',
        netns: NETNS,
        sandboxId: 'c1',
        annotations: { 'nodesentry.io/failure': 'open' },
        ips: ['10.66.0.3', 'fd00:66::3'],
        sources: ['cni'],
      },
    ]);
    node.admission = async () => ({ kind: 'ready', state: 'NOT_ENROLLED' });
    expect(await node.ask(ADD)).toEqual({ ok: true, state: 'NOT_ENROLLED' });
    expect(node.observed).toEqual(['INTERCEPTED', 'NOT_ENROLLED']);
  });

  test('of a pod that can never be intercepted is refused for good, with the reason', async () => {
    node.admission = async () => ({ kind: 'refused', reason: 'an SR-IOV interface' });
    expect(await node.ask(ADD)).toEqual({
      ok: false,
      code: 100,
      msg: 'pod shop/web-0 cannot be intercepted: an SR-IOV interface',
      retry: false,
    });
    expect(node.observed).toEqual(['refused']);
  });

  test('of a pod that is not ready in time is to be tried again', async () => {
    node.admission = async () => ({ kind: 'waiting', reason: 'not proven yet' });
    expect(await node.ask(ADD)).toEqual({
      ok: false,
      code: 11,
      msg: 'pod shop/web-0 is not intercepted yet: not proven yet',
      retry: true,
    });
    expect(node.observed).toEqual(['waiting']);
  });

  test('that fails inside the agent is to be tried again, and logged', async () => {
    node.admission = () => Promise.reject(new Error('broken'));
    expect(await node.ask(ADD)).toMatchObject({ ok: false, code: 11, retry: true });
    expect(node.log.error).toHaveBeenCalledTimes(1);
  });

  test('without pod UID and time has the container ID for a name, and 10 s', async () => {
    const containerId = 'f'.repeat(64);
    const bare = { ...ADD, containerId, podUid: '', timeoutMs: undefined };
    expect(await node.ask(bare)).toMatchObject({ ok: true });
    expect(node.asked).toEqual([{ uid: 'f'.repeat(63), timeoutMs: 9_000 }]);
    expect(node.store.list()[0]?.sandboxId).toBe(containerId);
  });

  test('takes addresses of its own interface only', async () => {
    const ips = [
      { address: '10.0.0.1/24', interface: 0 },
      { address: '10.0.0.2/24', interface: 1 },
      { address: '10.0.0.3/24', interface: 7 },
      { address: '10.0.0.2/32' },
    ];
    await node.ask({ ...ADD, prevResult: { ...RESULT, ips } });
    expect(node.store.list()[0]?.ips).toEqual(['10.0.0.2', '10.0.0.3']);
  });
});

describe('CHECK, DEL, GC and STATUS', () => {
  test('CHECK asks of the pod that was added, and refuses what nobody knows', async () => {
    const check = { ...ADD, command: 'CHECK' };
    expect(await node.ask(check)).toEqual({
      ok: false,
      code: 100,
      msg: 'nothing is known of eth0 of container c1',
      retry: false,
    });
    await node.ask(ADD);
    expect(await node.ask(check)).toEqual({ ok: true, state: 'INTERCEPTED' });
    node.admission = async () => ({ kind: 'waiting', reason: 'a program is missing' });
    expect(await node.ask(check)).toMatchObject({ code: 100, msg: 'pod shop/web-0: a program is missing' });
  });

  test('DEL lets go of the pod, and of one that nobody knows succeeds too', async () => {
    await node.ask(ADD);
    const del = { version: 1, command: 'DEL', containerId: 'c1', ifname: 'eth0' };
    for (let times = 0; times < 2; times++) {
      expect(await node.ask(del)).toEqual({ ok: true });
      expect(node.store.list()).toEqual([]);
    }
  });

  test('GC lets go of all but what is valid', async () => {
    for (const name of ['c1', 'c2', 'c3']) {
      await node.ask({ ...ADD, containerId: name, podUid: `uid-${name}` });
    }
    const attachments = [
      { containerId: 'c2', ifname: 'eth0' },
      { containerId: 'c3', ifname: 'net1' },
    ];
    expect(await node.ask({ version: 1, command: 'GC', attachments })).toEqual({ ok: true });
    expect(node.store.list().map(({ uid }) => uid)).toEqual(['uid-c2']);
    expect(await node.ask({ version: 1, command: 'GC', attachments: [] })).toEqual({ ok: true });
    expect(node.store.list()).toEqual([]);
  });

  test('STATUS is 50 with what is missing, until nothing is', async () => {
    node.blockers = ['source cri has not synced', 'datapath: no bpffs'];
    expect(await node.ask({ version: 1, command: 'STATUS' })).toEqual({
      ok: false,
      code: 50,
      msg: 'the agent is not ready: source cri has not synced; datapath: no bpffs',
      retry: true,
    });
    node.blockers = [];
    expect(await node.ask({ version: 1, command: 'STATUS' })).toEqual({ ok: true });
  });
});
