/** Listeners that proxies announce: through the real socket, by real processes, into a real SOCKMAP. */

import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ANNOUNCE_SOCKET_NAME, openAnnouncements } from '../../src/api/announce-door.js';
import { Announced } from '../../src/datapath/announced.js';
import type { SlotLayout } from '../../src/datapath/layouts.js';
import type { OwnerRule } from '../../src/datapath/listener-owner.js';
import { slotIndex, type WantedListener } from '../../src/datapath/listener-slots.js';
import { Listeners } from '../../src/datapath/listeners.js';
import { Announcing } from '../../src/instances/announcing.js';
import { u32 } from '../../src/kernel/struct.js';
import { openAnnounceDoor, sendMessage } from '../../src/native/announce-door.js';
import type { BpfMap } from '../../src/native/bpf.js';
import { peerCredentials, tcpListeners } from '../../src/native/sockets.js';
import { openIn } from '../bpf/datapath-lab.js';
import { waitFor } from '../lab/exec.js';
import { Cleanup, Netns, startProcess, temporaryBpffs, temporaryFolder } from './native-lab.js';

const SOURCE = join(import.meta.dirname, 'fixtures/announcer.c');
const ANNOUNCER = join(import.meta.dirname, '../../.cache/announcer');
/** May be read and executed by those who are not root, as the folder of a checkout may not. */
const OTHER_UID = 12_345;

interface Said {
  readonly answer: { ok?: boolean; adopted?: object[]; reason?: string; detail?: string } | null;
  readonly ms: number;
  readonly ports: readonly number[];
}

const cleanup = new Cleanup();
const closed: Promise<unknown>[] = [];
const log = { info: () => undefined, warn: () => undefined, error: () => undefined };
let netns: Netns;
let map: BpfMap;
let slots: SlotLayout;
let folder: string;

beforeAll(() => {
  if (!existsSync(ANNOUNCER) || statSync(ANNOUNCER).mtimeMs < statSync(SOURCE).mtimeMs) {
    mkdirSync(join(ANNOUNCER, '..'), { recursive: true });
    const own = `${ANNOUNCER}.${process.pid}`;
    execFileSync('gcc', ['-static', '-O2', '-Wall', '-Wextra', '-Werror', '-o', own, SOURCE]);
    renameSync(own, ANNOUNCER);
  }
});

beforeEach(() => {
  netns = cleanup.owned(new Netns());
  const programs = openIn(cleanup, temporaryBpffs(cleanup));
  map = programs.maps.listeners;
  slots = programs.layouts.slots;
  folder = temporaryFolder(cleanup);
  execFileSync('chmod', ['755', folder]);
});

afterEach(async () => {
  cleanup.run();
  await Promise.all(closed.splice(0)); // the next test counts descriptors
});

interface Given {
  readonly owner?: OwnerRule;
  readonly outbound?: readonly WantedListener[];
}

/** All that an agent has of it, in the namespace; `payments` may announce, `plain` has an address in each direction alone. */
function startDoor({ owner = { uid: 0 }, outbound = [] }: Given = {}) {
  const instances = [
    { name: 'payments', outbound, inbound: [], announced: ['outbound', 'inbound'] as const, owner },
    { name: 'plain', outbound: [at(16_900)], inbound: [], owner },
  ];
  const announced = new Announced(join(folder, 'announced.json'), log);
  const listeners = new Listeners({
    map,
    slots,
    instances: instances.map((instance, number) => ({ ...instance, number })),
    announced,
    referred: () => new Set(),
    log,
  });
  const look = async () => {
    for (let looks = 0; looks < 2; looks += 1) {
      await netns.run(() => ({ look: listeners.refresh() })).look;
    }
  };
  const announcing = new Announcing({
    instances: () => instances,
    generations: { servingOf: () => 1 },
    announced,
    listeners,
    all: () => netns.run(tcpListeners),
    look,
  });
  const door = openAnnouncements({
    runDir: folder,
    announcing: {
      byDescriptor: (text, descriptors, caller) =>
        netns.run(() => ({ done: announcing.byDescriptor(text, descriptors, caller) })).done,
    },
    open: openAnnounceDoor,
    send: sendMessage,
    credentials: peerCredentials,
    log,
  });
  let isOpen = true;
  const close = () => {
    if (isOpen) {
      isOpen = false;
      door.close();
    }
  };
  cleanup.add(door, close);
  const byProcess = (name: string, body: unknown) =>
    netns.run(() => ({ done: announcing.byProcess(name, body) })).done;
  return { listeners, look, byProcess, announcing, close };
}

function at(port: number): WantedListener {
  return { host: '127.0.0.1', port, family: 4 };
}

interface How {
  readonly uid?: number;
  readonly netns?: Netns;
}

/** A process that says this and goes on; it ends with the test. */
async function announcer(text: string | object, kinds: readonly string[], how: How = {}) {
  const { uid = 0, netns: where = netns } = how;
  const words = [join(folder, ANNOUNCE_SOCKET_NAME), typeof text === 'string' ? text : JSON.stringify(text)];
  const as = uid === 0 ? [] : ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups'];
  const { child, pid, hello } = await startProcess<Said>(
    cleanup,
    'nsenter',
    `--net=${where.path}`,
    ...as,
    ANNOUNCER,
    ...words,
    ...kinds,
  );
  const ended = once(child, 'close');
  closed.push(ended);
  const end = async () => {
    child.kill('SIGKILL');
    await ended;
  };
  return { pid, end, ...hello };
}

const cookieIn = (direction: 'outbound' | 'inbound', family: 4 | 6, number = 0) =>
  map.get(u32(slotIndex(slots, number, direction, family)))?.readBigUInt64LE(0);
const cookiesAt = (port: number) =>
  netns
    .run(tcpListeners)
    .filter((socket) => socket.port === port)
    .map(({ cookie }) => cookie);
const descriptors = () => readdirSync('/proc/self/fd').length;

/** Of ours, once the pipes to processes that have ended are closed. */
async function expectNoneLeft(before: number): Promise<void> {
  await waitFor(`${before} descriptors again`, () => descriptors() === before, 5_000);
}

const BOTH = { instance: 'payments', outbound: [0], inbound: [1] };
const OUT = { instance: 'payments', outbound: [0] };

describe('an announcement', () => {
  it('puts both listeners where the datapath looks, and they are gone with their process', async () => {
    const { listeners, look } = startDoor();
    const before = descriptors();
    const proxy = await announcer(BOTH, ['tcp4', 'tcp4']);
    const [outbound = 0, inbound = 0] = proxy.ports;
    expect(proxy.answer).toEqual({
      ok: true,
      adopted: [
        { direction: 'outbound', family: 4, address: `127.0.0.1:${outbound}` },
        { direction: 'inbound', family: 4, address: `127.0.0.1:${inbound}` },
      ],
    });
    expect(cookiesAt(outbound)).toEqual([cookieIn('outbound', 4)]);
    expect(cookiesAt(inbound)).toEqual([cookieIn('inbound', 4)]);
    expect(netns.run(tcpListeners).map(({ transparent }) => transparent)).toEqual([true, true]);
    expect(listeners.status().filter(({ adopted }) => adopted)).toMatchObject([
      { announced: true, pid: proxy.pid },
      { announced: true, pid: proxy.pid },
    ]);
    await proxy.end();
    await waitFor('the map to be empty', () => cookieIn('outbound', 4) === undefined);
    await look();
    expect(listeners.status().find(({ family }) => family === 4)).toMatchObject({
      address: 'none announced',
      adopted: false,
    });
    await expectNoneLeft(before);
  });

  it('of a dual-stack listener serves both families', async () => {
    startDoor();
    const { answer, ports } = await announcer(OUT, ['dual']);
    expect(answer?.ok).toBe(true);
    expect(cookieIn('outbound', 4)).toBe(cookiesAt(ports[0] ?? 0)[0]);
    expect(cookieIn('outbound', 6)).toBe(cookieIn('outbound', 4));
  });

  it('comes in the place of the configured address, which is adopted again when it has gone', async () => {
    const door = startDoor({ outbound: [at(16_001)] });
    await announcer(OUT, ['tcp4:16001']); // is there anyway
    await door.announcing.withdraw('payments');
    const [configured] = cookiesAt(16_001);
    expect(cookieIn('outbound', 4)).toBe(configured);
    const proxy = await announcer({ ...OUT, replace: true }, ['tcp4']);
    expect(cookieIn('outbound', 4)).toBe(cookiesAt(proxy.ports[0] ?? 0)[0]);
    await proxy.end();
    await door.look();
    expect(cookieIn('outbound', 4)).toBe(configured);
  });

  it('goes on for the other workers at its address, and for one that comes later', async () => {
    const { listeners, look } = startDoor();
    const first = await announcer('-', ['tcp4:16001']);
    const second = await announcer(OUT, ['tcp4:16001']);
    expect(listeners.status()[0]?.sockets).toEqual({ all: 2, transparent: 2 });
    await second.end();
    await look();
    expect([cookieIn('outbound', 4)]).toEqual(cookiesAt(16_001));
    const third = await announcer('-', ['tcp4:16001']);
    await look();
    await first.end();
    await look();
    expect([cookieIn('outbound', 4)]).toEqual(cookiesAt(16_001));
    expect(listeners.status()[0]).toMatchObject({ pid: third.pid, announced: true });
  });

  it('is known to the next agent; what had gone meanwhile is not', async () => {
    const before = startDoor();
    const proxy = await announcer(BOTH, ['tcp4', 'tcp4']);
    const cookie = cookieIn('outbound', 4);
    before.close();
    const after = startDoor();
    await after.look();
    expect(cookieIn('outbound', 4)).toBe(cookie);
    expect(after.listeners.status()[0]).toMatchObject({ announced: true, pid: proxy.pid });
    after.close();
    await proxy.end();
    await startDoor().look();
    expect(JSON.parse(readFileSync(join(folder, 'announced.json'), 'utf8'))).toMatchObject({ listeners: [] });
  });

  it('is forgotten, and that is told, where the file is not one of ours', () => {
    const path = join(folder, 'announced.json');
    const warnings: string[] = [];
    const warn = (_fields: object, message: string) => void warnings.push(message);
    for (const text of [
      '{',
      '{"version": 2, "listeners": []}',
      '{"version": 1, "listeners": [{"port": "x"}]}',
    ]) {
      writeFileSync(path, text);
      expect(new Announced(path, { warn }).list()).toEqual([]);
    }
    expect(warnings).toHaveLength(3);
  });

  it('of another owner than the configuration says by now does not go on', async () => {
    const before = startDoor();
    await announcer(OUT, ['tcp4']);
    before.close();
    await startDoor({ owner: { uid: OTHER_UID } }).look();
    expect(cookieIn('outbound', 4)).toBeUndefined();
  });
});

describe('nothing changes, no descriptor stays, and the reason is told, where', () => {
  const text = (value: object) => JSON.stringify(value);
  const refusals: readonly (readonly [string, string, string, string, readonly string[]])[] = [
    [
      'the instance is unknown',
      'INSTANCE_NOT_FOUND',
      'there is no instance nobody',
      text({ ...OUT, instance: 'nobody' }),
      ['tcp4'],
    ],
    [
      'it does not listen',
      'NOT_LISTENING',
      'outbound[0]: the descriptor is a TCP socket that does not',
      text(OUT),
      ['idle4'],
    ],
    ['it is of UDP', 'NOT_TCP', 'not of TCP', text(OUT), ['udp']],
    ['it is of Multipath TCP', 'NOT_TCP', 'Multipath', text(OUT), ['mptcp']],
    ['it is a Unix socket', 'NOT_TCP', 'is not a TCP socket', text(OUT), ['unix']],
    [
      'it is no socket',
      'NOT_TCP',
      'inbound[1]: the descriptor is not a TCP socket',
      text({ instance: 'payments', inbound: [0, 1] }),
      ['tcp4', 'pipe'],
    ],
    [
      'the instance has no such direction',
      'KEY_INVALID',
      'inbound: the instance plain has none',
      text({ instance: 'plain', inbound: [0] }),
      ['tcp4'],
    ],
    [
      'another instance has the address',
      'LISTENER_TAKEN',
      'is the outbound listener of the instance plain',
      text(OUT),
      ['tcp4:16900'],
    ],
    [
      'two of a family are given',
      'KEY_INVALID',
      'would be the second one of IPv4',
      text({ ...OUT, outbound: [0, 1] }),
      ['tcp4', 'tcp4'],
    ],
    [
      'there is no such descriptor',
      'KEY_INVALID',
      'inbound[0]: there is no descriptor 1, 1 came along',
      text(BOTH),
      ['tcp4'],
    ],
    [
      'one is named twice',
      'KEY_INVALID',
      'descriptor 0 is named twice',
      text({ ...OUT, inbound: [0] }),
      ['tcp4'],
    ],
    [
      'an index is negative',
      'KEY_INVALID',
      'outbound.0: expected the index',
      text({ ...OUT, outbound: [-1] }),
      ['tcp4'],
    ],
    [
      'an index is a text',
      'KEY_INVALID',
      'outbound.0: expected the index',
      text({ ...OUT, outbound: ['0'] }),
      ['tcp4'],
    ],
    ['no descriptor comes along', 'KEY_INVALID', 'there is no descriptor 0, 0 came', text(OUT), []],
    ['nothing is announced', 'KEY_INVALID', 'at least one of', text({ instance: 'payments' }), ['tcp4']],
    [
      'there is another field',
      'KEY_INVALID',
      'colour: there is no such field',
      text({ ...OUT, colour: 1 }),
      ['tcp4'],
    ],
    ['it is a list', 'KEY_INVALID', 'the request: expected an object', '[]', ['tcp4']],
    ['it is cut short', 'KEY_INVALID', 'is not JSON', text(OUT).slice(0, -1), ['tcp4']],
    [
      'it is too long',
      'KEY_INVALID',
      'longer than 4096 bytes',
      text({ ...OUT, instance: 'x'.repeat(4_096) }),
      ['tcp4'],
    ],
    [
      'there are too many descriptors',
      'KEY_INVALID',
      'more than 4 descriptors',
      text(OUT),
      Array(5).fill('tcp4'),
    ],
  ];

  it.each(refusals)('%s', async (_what, reason, detail, message, kinds) => {
    const { listeners } = startDoor();
    const before = descriptors();
    const { answer, end } = await announcer(message, kinds);
    expect(answer).toMatchObject({ reason, detail: expect.stringContaining(detail) });
    // The address of the other instance is adopted for that one, as it is anyway.
    expect(map.entries().filter(([key]) => key.readUInt32LE(0) < slots.perInstance)).toEqual([]);
    expect(listeners.status().filter(({ announced }) => announced)).toEqual([]);
    await end();
    await expectNoneLeft(before);
  });

  it('the caller is not the owner', async () => {
    startDoor();
    const own = await announcer(OUT, ['tcp4']);
    const cookie = cookieIn('outbound', 4);
    const { answer } = await announcer({ ...OUT, replace: true }, ['tcp4'], { uid: OTHER_UID });
    expect(answer).toMatchObject({
      reason: 'CALLER_NOT_ALLOWED',
      detail: expect.stringContaining(`with uid ${OTHER_UID} is not the owner`),
    });
    expect(cookieIn('outbound', 4)).toBe(cookie);
    expect(own.answer?.ok).toBe(true);
  });

  it('the caller executes something else, or is elsewhere', async () => {
    startDoor({ owner: { uid: 0, exe: '/usr/sbin/haproxy' } });
    const { answer } = await announcer(OUT, ['tcp4']);
    expect(answer).toMatchObject({
      reason: 'CALLER_NOT_ALLOWED',
      detail: expect.stringContaining(`exe ${ANNOUNCER}`),
    });
    expect(cookieIn('outbound', 4)).toBeUndefined();
  });

  it('it listens in another network namespace', async () => {
    startDoor();
    const { answer } = await announcer(OUT, ['tcp4'], { netns: cleanup.owned(new Netns()) });
    expect(answer?.reason).toBe('WRONG_NAMESPACE');
  });

  it('another process has announced and still listens, unless it is to make room', async () => {
    startDoor();
    const first = await announcer(OUT, ['tcp4']);
    const [kept] = cookiesAt(first.ports[0] ?? 0);
    expect((await announcer(OUT, ['tcp4'])).answer).toMatchObject({
      reason: 'LISTENER_TAKEN',
      detail: expect.stringContaining(`pid ${first.pid}, has announced`),
    });
    expect(cookieIn('outbound', 4)).toBe(kept);
    const third = await announcer({ ...OUT, replace: true }, ['tcp4']);
    expect(third.answer?.ok).toBe(true);
    expect(cookieIn('outbound', 4)).toBe(cookiesAt(third.ports[0] ?? 0)[0]);
  });
});

it('who says nothing is let go after a second, and keeps nobody waiting', async () => {
  startDoor();
  const before = descriptors();
  const silent = Promise.all(Array.from({ length: 8 }, () => announcer('-', [])));
  const { answer, ms, end } = await announcer(OUT, ['tcp4']);
  expect(answer?.ok).toBe(true);
  expect(ms).toBeLessThan(800);
  await end();
  for (const { answer: none, ms: waited, end: endSilent } of await silent) {
    await endSilent();
    expect(none).toBeNull();
    expect(waited).toBeGreaterThanOrEqual(900);
    expect(waited).toBeLessThan(3_000);
  }
  await expectNoneLeft(before);
});

it('a hundred that come at once are answered, and leave nothing', async () => {
  startDoor();
  const before = descriptors();
  const all = await Promise.all(
    Array.from({ length: 100 }, () => announcer({ ...OUT, instance: 'nobody' }, ['tcp4', 'pipe'])),
  );
  // Those that there is no room for are let go unanswered.
  expect(all.filter(({ answer }) => answer !== null && answer.reason !== 'INSTANCE_NOT_FOUND')).toEqual([]);
  expect(all.filter(({ answer }) => answer !== null).length).toBeGreaterThan(60);
  await Promise.all(all.map(({ end }) => end()));
  await expectNoneLeft(before);
});

it('the file is removed with the door, and what is no socket stays', () => {
  const { close } = startDoor();
  const path = join(folder, ANNOUNCE_SOCKET_NAME);
  expect(statSync(path).mode & 0o777).toBe(0o666);
  close();
  expect(existsSync(path)).toBe(false);
  mkdirSync(path);
  expect(() => startDoor()).toThrow('is not a socket');
});

describe('by process and address', () => {
  it('what it has open there is adopted, and withdrawn again', async () => {
    const { byProcess, announcing } = startDoor();
    const { pid, ports } = await announcer('-', ['tcp4', 'tcp4']);
    const [outbound = 0, inbound = 0] = ports;
    const body = { pid, outbound: `127.0.0.1:${outbound}`, inbound: [`127.0.0.1:${inbound}`] };
    expect((await byProcess('payments', body)).filter(({ announced }) => announced)).toMatchObject([
      { direction: 'outbound', address: `127.0.0.1:${outbound}`, adopted: true, pid },
      { direction: 'inbound', address: `127.0.0.1:${inbound}`, adopted: true, pid },
    ]);
    expect([cookieIn('outbound', 4)]).toEqual(cookiesAt(outbound));
    expect((await announcing.withdraw('payments')).some(({ adopted }) => adopted)).toBe(false);
    expect(map.entries()).toEqual([]);
  });

  it('a dead process, a port that is not its own, and what is no request are refused', async () => {
    const { byProcess, announcing } = startDoor();
    const one = await announcer('-', ['tcp4']);
    const other = await announcer('-', ['tcp4'], { uid: OTHER_UID });
    const there = `127.0.0.1:${one.ports[0]}`;
    const refused = async (name: string, body: unknown) =>
      (await byProcess(name, body).catch((error: unknown) => error)) as { code: string; message: string };
    expect(await refused('payments', { pid: other.pid, outbound: there })).toMatchObject({
      code: 'NOT_LISTENING',
      message: `outbound: process ${other.pid} does not listen at ${there}`,
    });
    const theirs = `127.0.0.1:${other.ports[0]}`;
    expect((await refused('payments', { pid: other.pid, outbound: theirs })).code).toBe('NOT_OWNER');
    expect((await refused('nobody', { pid: one.pid, outbound: there })).code).toBe('INSTANCE_NOT_FOUND');
    expect((await refused('payments', { pid: 0, outbound: there })).message).toContain('pid: expected');
    expect((await refused('payments', { pid: 1, outbound: 'here' })).message).toContain('outbound: expected');
    expect((await refused('payments', undefined)).message).toContain('an object');
    expect((await refused('payments', { pid: one.pid })).message).toContain('at least one of');
    await one.end();
    expect((await refused('payments', { pid: one.pid, outbound: there })).code).toBe('PROCESS_NOT_FOUND');
    await expect(announcing.withdraw('nobody')).rejects.toMatchObject({ code: 'INSTANCE_NOT_FOUND' });
    expect(map.entries()).toEqual([]);
  });
});
