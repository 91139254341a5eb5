import { readdirSync, readlinkSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { SlotLayout } from '../../src/datapath/layouts.js';
import type { OwnerRule } from '../../src/datapath/listener-owner.js';
import { slotIndex, type WantedInstance, type WantedListener } from '../../src/datapath/listener-slots.js';
import { Listeners } from '../../src/datapath/listeners.js';
import { makeTransparent } from '../../src/datapath/proxy-sockets.js';
import { u32 } from '../../src/kernel/struct.js';
import type { BpfMap } from '../../src/native/bpf.js';
import { closeFd } from '../../src/native/descriptors.js';
import {
  pidfdGetfd,
  pidfdOpen,
  type SocketInfo,
  socketInfo,
  tcpListeners,
} from '../../src/native/sockets.js';
import { Cleanup, Netns, startProcess, temporaryBpffs } from '../unit/native-lab.js';
import { openIn } from './datapath-lab.js';

const cleanup = new Cleanup();
let netns: Netns;
let map: BpfMap;
let slots: SlotLayout;
let V4: number;
let V6: number;
let log: { level: 'info' | 'warn'; message: string; fields: object }[];

beforeEach(() => {
  netns = cleanup.owned(new Netns());
  const programs = openIn(cleanup, temporaryBpffs(cleanup));
  map = programs.maps.listeners;
  slots = programs.layouts.slots;
  [V4, V6] = [slotIndex(slots, 0, 'outbound', 4), slotIndex(slots, 0, 'outbound', 6)];
  log = [];
});

afterEach(() => cleanup.run());

interface Proxy {
  readonly pid: number;
  readonly port: number;
  /** Of a process that got the socket from this one. */
  readonly heir: number;
  /** Resolves when the process has ended and its sockets are closed. */
  kill(): Promise<void>;
}

/** A process in the namespace that listens; `port` 0 lets the kernel choose. */
async function startProxy(listen: object, options: { heir?: boolean } = {}): Promise<Proxy> {
  const heir = `spawn('sleep', ['600'], { stdio: ['ignore', 'ignore', 'ignore', server._handle.fd] }).pid`;
  const code = `
    const { spawn } = require('node:child_process');
    const server = require('node:net').createServer().listen(${JSON.stringify(listen)}, () =>
      console.log(JSON.stringify({ port: server.address().port, heir: ${options.heir === true ? heir : 0} })));`;
  const { child, pid, hello } = await startProcess<{ port: number; heir: number }>(
    cleanup,
    'nsenter',
    `--net=${netns.path}`,
    process.execPath,
    '-e',
    code,
  );
  if (hello.heir > 0) {
    cleanup.add(hello.heir, (it) => void process.kill(it, 'SIGKILL'));
  }
  const kill = async () => {
    const ended = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGKILL');
    await ended;
  };
  return { pid, ...hello, kill };
}

interface Wanted {
  readonly outbound?: WantedListener[];
  readonly inbound?: WantedListener[];
  readonly owner?: OwnerRule;
}

/** Numbers of the instances that endpoints refer to. */
let referred = new Set<number>();

function listenersOf(...given: (Wanted | typeof makeTransparent)[]): Listeners {
  const instances = given.filter((one) => typeof one !== 'function');
  const open = given.find((one) => typeof one === 'function');
  const wanted: WantedInstance[] = instances.map(
    ({ outbound = [], inbound = [], owner = { uid: 0 } }, i) => ({
      name: `proxy${i}`,
      number: i,
      outbound,
      inbound,
      owner,
    }),
  );
  return new Listeners({
    map,
    slots,
    instances: wanted,
    referred: () => referred,
    ...(open === undefined ? {} : { makeTransparent: open }),
    log: {
      info: (fields, message) => void log.push({ level: 'info', message, fields }),
      warn: (fields, message) => void log.push({ level: 'warn', message, fields }),
    },
  });
}

function at(host: string, port: number): WantedListener {
  return { host, port, family: host.includes(':') ? 6 : 4 };
}

/** The sockets are read at once, in the namespace; the rest of a look may run anywhere. */
const refresh = (listeners: Listeners, where = netns) =>
  where.run(() => ({ look: listeners.refresh() })).look;
const cookieIn = (slot: number) => map.get(u32(slot))?.readBigUInt64LE(0);
const cookieOf = (host: string, port: number) =>
  netns.run(tcpListeners).find((socket) => socket.address === host && socket.port === port)?.cookie;

/** The process's own view of its listening socket. */
function socketOf(pid: number): SocketInfo {
  const pidfd = pidfdOpen(pid);
  try {
    for (const name of readdirSync(`/proc/${pid}/fd`)) {
      if (readlinkSync(`/proc/${pid}/fd/${name}`).startsWith('socket:')) {
        const fd = pidfdGetfd(pidfd, Number(name));
        try {
          const info = socketInfo(fd);
          if (info.listening) {
            return info;
          }
        } catch {
          // a Unix socket: one of the standard streams
        } finally {
          closeFd(fd);
        }
      }
    }
  } finally {
    closeFd(pidfd);
  }
  throw new Error(`process ${pid} does not listen`);
}

/** One more socket of a SO_REUSEPORT group, in a process of its own. */
async function startMember(port: number): Promise<{ readonly pid: number; kill(): void }> {
  const count = () => netns.run(tcpListeners).length;
  const before = count();
  const socat = `TCP4-LISTEN:${port},bind=127.0.0.1,reuseport,fork`;
  const { child, pid } = await startProcess(
    cleanup,
    'nsenter',
    `--net=${netns.path}`,
    'sh',
    '-c',
    `echo $$; exec socat ${socat} PIPE`,
  );
  await vi.waitFor(() => expect(count()).toBe(before + 1), 10_000);
  return { pid, kill: () => void child.kill('SIGKILL') };
}

describe('a listener is adopted by its address', () => {
  it.each([
    ['of IPv4', '127.0.0.1', 4],
    ['of IPv6', '::1', 6],
    ['of all of IPv4', '0.0.0.0', 4],
  ] as const)('%s, from whichever process owns it, and becomes transparent', async (_what, host, family) => {
    const slot = slotIndex(slots, 0, 'outbound', family);
    const proxy = await startProxy({ host, port: 0 });
    expect(socketOf(proxy.pid).transparent).toBe(false);
    const listeners = listenersOf({ outbound: [at(host, proxy.port)] });
    expect(await refresh(listeners)).toBe(true);
    expect(cookieIn(slot)).toBe(cookieOf(host, proxy.port));
    expect(socketOf(proxy.pid)).toMatchObject({ transparent: true, cookie: cookieIn(slot) });
    expect(listeners.status().find(({ adopted }) => adopted)).toEqual({
      instance: 'proxy0',
      direction: 'outbound',
      family,
      address: host.includes(':') ? `[${host}]:${proxy.port}` : `${host}:${proxy.port}`,
      adopted: true,
      pid: proxy.pid,
      process: 'node',
      sockets: { all: 1, transparent: 1 },
    });
    expect(map.entries()).toHaveLength(1);
    expect(await refresh(listeners)).toBe(false);
    expect(log).toMatchObject([{ level: 'info', message: 'listener adopted', fields: { pid: proxy.pid } }]);
  });

  it('of [::] serves both families', async () => {
    const proxy = await startProxy({ host: '::', port: 0 });
    const listeners = listenersOf({ outbound: [at('::', proxy.port)] });
    await refresh(listeners);
    expect(cookieIn(V6)).toBe(cookieOf('::', proxy.port));
    expect(cookieIn(V4)).toBe(cookieIn(V6));
    expect(listeners.status().map(({ family, adopted }) => [family, adopted])).toEqual([
      [4, true],
      [6, true],
    ]);
  });

  it('of [::] for IPv6 only does not serve IPv4', async () => {
    const proxy = await startProxy({ host: '::', port: 0, ipv6Only: true });
    const listeners = listenersOf({ outbound: [at('::', proxy.port)] });
    await refresh(listeners);
    expect(cookieIn(V6)).toBe(cookieOf('::', proxy.port));
    expect(cookieIn(V4)).toBeUndefined();
    expect(listeners.status()).toMatchObject([
      { family: 4, adopted: false },
      { family: 6, adopted: true },
    ]);
  });

  it('and by no other: not on another port, address or namespace', async () => {
    const { port } = await startProxy({ host: '127.0.0.1', port: 0 });
    const listeners = listenersOf(
      { outbound: [at('127.0.0.1', port === 1024 ? 1025 : port - 1)] },
      { outbound: [at('0.0.0.0', port)] },
      { outbound: [at('127.0.0.2', port)] },
      { outbound: [at('::', port)] },
    );
    expect(await refresh(listeners)).toBe(false);
    const outside = cleanup.owned(new Netns());
    expect(await refresh(listenersOf({ outbound: [at('127.0.0.1', port)] }), outside)).toBe(false);
    expect(map.entries()).toEqual([]);
  });

  it('into the slot of its instance and direction', async () => {
    const first = await startProxy({ host: '127.0.0.1', port: 0 });
    const second = await startProxy({ host: '::1', port: 0 });
    await refresh(
      listenersOf({}, { outbound: [at('127.0.0.1', first.port)], inbound: [at('::1', second.port)] }),
    );
    expect(map.entries().map(([key]) => key.readUInt32LE(0))).toEqual([4, 7]);
    expect(cookieIn(slotIndex(slots, 1, 'outbound', 4))).toBe(cookieOf('127.0.0.1', first.port));
    expect(cookieIn(slotIndex(slots, 1, 'inbound', 6))).toBe(cookieOf('::1', second.port));
  });
});

describe('a proxy with a socket per worker', () => {
  const PORT = 8128;
  const transparent = () =>
    netns
      .run(tcpListeners)
      .filter((socket) => socket.port === PORT)
      .map((socket) => socket.transparent);

  it('can take connections on all of them, and on those that come later', async () => {
    await startMember(PORT);
    await startMember(PORT);
    expect(transparent()).toEqual([false, false]);
    const listeners = listenersOf({ outbound: [at('127.0.0.1', PORT)] });
    await refresh(listeners);
    expect(transparent()).toEqual([true, true]);
    const before = cookieIn(V4);
    await startMember(PORT);
    await refresh(listeners);
    expect(transparent()).toEqual([true, true, true]);
    expect(await refresh(listeners)).toBe(false);
    expect(listeners.status()[0]).toMatchObject({ adopted: true, sockets: { all: 3, transparent: 3 } });
    expect(cookieIn(V4)).toBe(before);
    expect(log.map(({ message }) => message)).toEqual(['listener adopted']);
  });

  it('whose holder was not to be found is tried again at the very next look: a master hands it on just then', async () => {
    await startMember(PORT);
    let tries = 0;
    const listeners = listenersOf({ outbound: [at('127.0.0.1', PORT)] }, (socket, owner) => {
      tries += 1;
      if (tries === 1) {
        throw new Error('the process has closed it');
      }
      makeTransparent(socket, owner);
    });
    await refresh(listeners);
    expect(cookieIn(V4)).toBeUndefined();
    await refresh(listeners);
    expect(cookieIn(V4)).toBeDefined();
  });

  it('is not adopted while one of them cannot, and that is told', async () => {
    await startMember(PORT);
    const barred = await startMember(PORT);
    let isBarred = true;
    const listeners = listenersOf({ outbound: [at('127.0.0.1', PORT)] }, (socket, owner) => {
      if (isBarred && owner.pid === barred.pid) {
        throw new Error('not permitted');
      }
      makeTransparent(socket, owner);
    });
    await refresh(listeners);
    expect(cookieIn(V4)).toBeUndefined();
    expect(listeners.status()[0]).toMatchObject({ adopted: false });
    expect(log).toMatchObject([{ message: 'listener not adopted', fields: { reason: 'not permitted' } }]);
    isBarred = false;
    await vi.waitFor(async () => expect(await refresh(listeners)).toBe(true), 5_000);
    expect(cookieIn(V4)).toBeDefined();
    expect(transparent()).toEqual([true, true]);
  });

  it('stays adopted while one that has come cannot, and is let go of when that one stays', async () => {
    await startMember(PORT);
    const pids = new Set<number>();
    const listeners = listenersOf({ outbound: [at('127.0.0.1', PORT)] }, (socket, owner) => {
      if (pids.has(owner.pid)) {
        throw new Error('not permitted');
      }
      makeTransparent(socket, owner);
    });
    await refresh(listeners);
    pids.add((await startMember(PORT)).pid);
    await refresh(listeners);
    expect(cookieIn(V4)).toBeDefined();
    await vi.waitFor(async () => {
      await refresh(listeners);
      expect(cookieIn(V4)).toBeUndefined();
    }, 5_000);
    expect(log.map(({ message }) => message)).toEqual([
      'listener adopted',
      'listener not adopted',
      'listener gone: new connections meet the failure policy',
    ]);
  });
});

describe('a listener by Multipath TCP, as Go opens it', () => {
  it('is not adopted, and what to do about it is told', async () => {
    const code = `use Socket; socket(my $s, AF_INET, SOCK_STREAM, 262) or die $!;
      bind($s, pack_sockaddr_in(0, inet_aton('127.0.0.1'))) && listen($s, 8) or die $!;
      $| = 1; printf(qq({"port":%d}\n), (unpack_sockaddr_in(getsockname($s)))[0]); sleep;`;
    const enter = `--net=${netns.path}`;
    const { hello } = await startProcess<{ port: number }>(cleanup, 'nsenter', enter, 'perl', '-e', code);
    const listeners = listenersOf({ outbound: [at('127.0.0.1', hello.port)] });
    await refresh(listeners);
    expect(cookieIn(V4)).toBeUndefined();
    expect(log).toMatchObject([
      { message: 'listener not adopted', fields: { reason: expect.stringContaining('by Multipath TCP') } },
    ]);
  });
});

describe('the owner of a listener', () => {
  const PORT = 8129;

  /** As another uid and gid. */
  async function startAs(id: number): Promise<{ readonly pid: number; kill(): Promise<void> }> {
    const code = `require('node:net').createServer().listen({ host: '127.0.0.1', port: ${PORT} }, () => console.log('0'))`;
    const { child, pid } = await startProcess(
      cleanup,
      'nsenter',
      `--net=${netns.path}`,
      'setpriv',
      `--reuid=${id}`,
      `--regid=${id}`,
      '--clear-groups',
      process.execPath,
      '-e',
      code,
    );
    const kill = async () => {
      const ended = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGKILL');
      await ended;
    };
    return { pid, kill };
  }

  const outbound = [at('127.0.0.1', PORT)];

  it('is root where nobody else is named: whoever has taken the address gets nothing, and is told of', async () => {
    const { pid, kill } = await startAs(65_534);
    const listeners = listenersOf({ outbound });
    await refresh(listeners);
    expect(map.entries()).toEqual([]);
    expect(socketOf(pid).transparent).toBe(false);
    const refused = `it is held by uid 65534 (node, pid ${pid}), who is not its owner: "owner: {uid: 65534}" would allow it`;
    expect(listeners.status()[0]).toMatchObject({ adopted: false, refused });
    expect(log).toMatchObject([
      { level: 'warn', message: 'listener not adopted', fields: { reason: refused } },
    ]);
    await kill();
    const own = await startProxy({ host: '127.0.0.1', port: PORT });
    expect(await refresh(listeners)).toBe(true);
    expect(listeners.status()[0]).toMatchObject({ adopted: true, pid: own.pid });
    expect(listeners.status()[0]).not.toHaveProperty('refused');
  });

  it('loses the listener to nobody: one that has taken over the address is taken out of the map', async () => {
    const own = await startProxy({ host: '127.0.0.1', port: PORT });
    await refresh(listenersOf({ outbound }));
    expect(cookieIn(V4)).toBeDefined();
    await own.kill();
    await startAs(65_534);
    // As an agent of before this rule would have left it.
    await refresh(listenersOf({ outbound, owner: { uid: 65_534 } }));
    expect(cookieIn(V4)).toBeDefined();
    expect(await refresh(listenersOf({ outbound }))).toBe(true);
    expect(map.entries()).toEqual([]);
  });

  it.each([
    ['uid', { uid: 1337 }, { uid: 1338 }],
    ['gid', { gid: 1337 }, { gid: 0 }],
    ['executable', { exe: process.execPath }, { exe: '/usr/bin/envoy' }],
    ['control group', { cgroup: '/' }, { cgroup: '/system.slice/envoy.service' }],
    ['uid and executable', { uid: 1337, exe: process.execPath }, { uid: 1337, exe: '/usr/bin/envoy' }],
  ] as const)('can be told by its %s', async (_what, right, wrong) => {
    await startAs(1337);
    await refresh(listenersOf({ outbound, owner: wrong }));
    expect(map.entries()).toEqual([]);
    await refresh(listenersOf({ outbound, owner: right }));
    expect(cookieIn(V4)).toBeDefined();
  });

  it('is asked for again when the socket has been handed on to another process', async () => {
    const proxy = await startProxy({ host: '127.0.0.1', port: PORT }, { heir: true });
    const listeners = listenersOf({ outbound, owner: { exe: process.execPath } });
    await refresh(listeners);
    expect(listeners.status()[0]).toMatchObject({ adopted: true, pid: proxy.pid });
    await proxy.kill();
    await refresh(listeners);
    expect(map.entries()).toEqual([]);
    expect(listeners.status()[0]).toMatchObject({
      refused: expect.stringContaining('with exe /usr/bin/sleep'),
    });
  });

  it('is told of when it is another process', async () => {
    const first = await startProxy({ host: '127.0.0.1', port: PORT });
    const listeners = listenersOf({ outbound });
    await refresh(listeners);
    await first.kill();
    const second = await startProxy({ host: '127.0.0.1', port: PORT });
    await refresh(listeners);
    expect(log.at(-1)).toMatchObject({
      message: 'listener adopted',
      fields: { uid: 0, pid: second.pid, before: { pid: first.pid, process: 'node' } },
    });
  });
});

describe('when a listener closes', () => {
  it('it leaves the map by itself, and its successor is adopted at the next look', async () => {
    const proxy = await startProxy({ host: '127.0.0.1', port: 0 });
    const listeners = listenersOf({ outbound: [at('127.0.0.1', proxy.port)] });
    await refresh(listeners);
    const before = cookieIn(V4);
    await proxy.kill();
    await vi.waitFor(() => expect(cookieIn(V4)).toBeUndefined());
    expect(listeners.status()).toMatchObject([
      { family: 4, adopted: false },
      { family: 6, adopted: false, address: 'not configured' },
    ]);
    await refresh(listeners);
    await refresh(listeners);
    const successor = await startProxy({ host: '127.0.0.1', port: proxy.port });
    expect(await refresh(listeners)).toBe(true);
    expect(cookieIn(V4)).toBe(cookieOf('127.0.0.1', proxy.port));
    expect(cookieIn(V4)).not.toBe(before);
    expect(listeners.status()[0]).toMatchObject({ adopted: true, pid: successor.pid });
    expect(log.map(({ message }) => message)).toEqual([
      'listener adopted',
      'listener gone: new connections meet the failure policy',
      'listener adopted',
    ]);
  });

  it('its successor is adopted also where nobody looked between the two', async () => {
    const proxy = await startProxy({ host: '::', port: 0 });
    const listeners = listenersOf({ outbound: [at('::', proxy.port)] });
    await refresh(listeners);
    await proxy.kill();
    const successor = await startProxy({ host: '::', port: proxy.port });
    expect(await refresh(listeners)).toBe(true);
    expect(cookieIn(V4)).toBe(cookieOf('::', proxy.port));
    expect(listeners.status()).toMatchObject([{ pid: successor.pid }, { pid: successor.pid }]);
  });

  it('another member of its reuseport group is adopted', async () => {
    const port = 8127;
    const members = [await startMember(port), await startMember(port)];
    const listeners = listenersOf({ outbound: [at('127.0.0.1', port)] });
    await refresh(listeners);
    const before = cookieIn(V4);
    const adopted = members.find(({ pid }) => pid === listeners.status()[0]?.pid);
    const other = members.find(({ pid }) => pid !== adopted?.pid);
    adopted?.kill();
    await vi.waitFor(() => expect(cookieIn(V4)).toBeUndefined());
    expect(await refresh(listeners)).toBe(true);
    expect(cookieIn(V4)).toBeDefined();
    expect(cookieIn(V4)).not.toBe(before);
    expect(listeners.status()[0]).toMatchObject({ adopted: true, pid: other?.pid, process: 'socat' });
    expect(socketOf(other?.pid ?? 0)).toMatchObject({ transparent: true, cookie: cookieIn(V4) });
  });

  it('only in the process that opened it, and not in the one it was handed to, it stays', async () => {
    const proxy = await startProxy({ host: '127.0.0.1', port: 0 }, { heir: true });
    const listeners = listenersOf({ outbound: [at('127.0.0.1', proxy.port)] });
    await refresh(listeners);
    const before = cookieIn(V4);
    expect(listeners.status()[0]).toMatchObject({ pid: proxy.pid });
    await proxy.kill();
    await refresh(listeners);
    expect(cookieIn(V4)).toBe(before);
    expect(listeners.status()[0]).toMatchObject({ adopted: true, pid: proxy.heir, process: 'sleep' });
    expect(await refresh(listeners)).toBe(false);
  });
});

describe('the next agent', () => {
  it('keeps the sockets in the map and learns whose they are', async () => {
    const proxy = await startProxy({ host: '127.0.0.1', port: 0 });
    const wanted = { outbound: [at('127.0.0.1', proxy.port)] };
    await refresh(listenersOf(wanted));
    const before = cookieIn(V4);
    const listeners = listenersOf(wanted);
    await refresh(listeners);
    expect(cookieIn(V4)).toBe(before);
    expect(listeners.status()[0]).toMatchObject({ adopted: true, pid: proxy.pid });
    expect(await refresh(listeners)).toBe(false);
  });

  it('keeps the listener of an instance that is not configured any more while an endpoint refers to it', async () => {
    const [first, second] = [
      await startProxy({ host: '127.0.0.1', port: 0 }),
      await startProxy({ host: '127.0.0.1', port: 0 }),
    ];
    const one = { outbound: [at('127.0.0.1', first.port)] };
    await refresh(listenersOf(one, { outbound: [at('127.0.0.1', second.port)] }));
    referred = new Set([0, 1]);
    const listeners = listenersOf(one);
    expect(await refresh(listeners)).toBe(true); // the first one's owner is looked up
    expect(map.entries()).toHaveLength(2);
    referred = new Set([0]);
    expect(await refresh(listeners)).toBe(true);
    expect(map.entries()).toHaveLength(1);
    expect(cookieIn(V4)).toBe(cookieOf('127.0.0.1', first.port));
    expect(await refresh(listeners)).toBe(false);
  });

  it('drops slots of instances that it has not, and of addresses that are not configured any more', async () => {
    const [first, second, third] = [
      await startProxy({ host: '127.0.0.1', port: 0 }),
      await startProxy({ host: '127.0.0.1', port: 0 }),
      await startProxy({ host: '::1', port: 0 }),
    ];
    await refresh(
      listenersOf(
        { outbound: [at('127.0.0.1', first.port), at('::1', third.port)] },
        { outbound: [at('127.0.0.1', second.port)] },
      ),
    );
    expect(map.entries()).toHaveLength(3);
    const listeners = listenersOf({ outbound: [at('127.0.0.1', second.port)] });
    expect(await refresh(listeners)).toBe(true);
    expect(map.entries()).toHaveLength(1);
    expect(cookieIn(V4)).toBe(cookieOf('127.0.0.1', second.port));
    expect(await refresh(listeners)).toBe(false);
  });
});

it('no descriptor is left behind, however often a listener is adopted', async () => {
  const proxy = await startProxy({ host: '::', port: 0 });
  const listeners = listenersOf({ outbound: [at('::', proxy.port)] });
  await refresh(listeners);
  const descriptors = () => readdirSync('/proc/self/fd').length;
  const before = descriptors();
  for (let i = 0; i < 200; i++) {
    if (i % 4 === 0) {
      map.delete(u32(V4)); // adopted anew
    }
    expect(await refresh(listeners)).toBe(i % 4 === 0);
  }
  expect(descriptors()).toBe(before);
  await proxy.kill();
  await vi.waitFor(() => expect(map.entries()).toEqual([]));
});
