import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { createConnection, createServer, Socket } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { closeFd } from '../../src/native/descriptors.js';
import {
  interfaceIndex,
  interfacesText,
  netnsIdentity,
  openNamespace,
  withNetns,
} from '../../src/native/namespaces.js';
import {
  endTcpConnections,
  openTcpConnections,
  peerCredentials,
  pidfdGetfd,
  pidfdOpen,
  setTransparent,
  socketFrom,
  socketInfo,
  socketOwners,
  tcpListeners,
} from '../../src/native/sockets.js';
import { ipToBytes } from '../../src/net/ip.js';
import { Cleanup, Netns, startProcess, temporaryFolder } from './native-lab.js';

const cleanup = new Cleanup();
let netns: Netns;

beforeEach(() => {
  netns = cleanup.owned(new Netns());
});

afterEach(() => cleanup.run());

const here = () => readlinkSync('/proc/thread-self/ns/net');
const fdOf = (handle: unknown) => (handle as { _handle: { fd: number } })._handle.fd;

/** Listens on every address given, and says with which descriptor and port. */
const LISTENERS = `
const { createServer } = require('node:net');
const options = JSON.parse(process.argv[1]);
const servers = options.map(() => createServer((socket) => socket.on('error', () => undefined)));
let left = servers.length;
servers.forEach((server, i) => server.listen({ port: 0, ...options[i] }, () => {
  if (--left === 0) console.log(JSON.stringify(servers.map((s) => ({ fd: s._handle.fd, port: s.address().port }))));
}));
`;

/** Dials each of these, says so, and ends well once each has been reset. */
const DIALLERS = `
const { connect } = require('node:net');
const sockets = JSON.parse(process.argv[1]).map((to) => connect(to));
let left = sockets.length;
sockets.forEach((socket) => socket.on('connect', () => {
  if (--left === 0) console.log('[]');
}));
const codes = sockets.map((socket) => new Promise((resolve) => socket.on('error', ({ code }) => resolve(code))));
Promise.all(codes).then((all) => process.exit(all.every((code) => code === 'ECONNRESET') ? 0 : 1));
`;

interface Listening {
  fd: number;
  port: number;
}

async function startListeners(...options: object[]) {
  const started = await startProcess<Listening[]>(
    cleanup,
    'nsenter',
    `--net=${netns.path}`,
    process.execPath,
    '-e',
    LISTENERS,
    JSON.stringify(options),
  );
  const pidfd = cleanup.add(pidfdOpen(started.pid), closeFd);
  const copy = ({ fd }: Listening) => cleanup.add(pidfdGetfd(pidfd, fd), closeFd);
  return { ...started, pidfd, copy };
}

describe('a network namespace', () => {
  it('is entered for one call and left again', () => {
    const home = here();
    const inside = withNetns(netns.fd, () => {
      const nested = withNetns(netns.fd, here);
      return [here(), nested];
    });
    expect(inside[0]).not.toBe(home);
    expect(inside[1]).toBe(inside[0]);
    expect(here()).toBe(home);
  });

  it('is left when the call throws, and the error comes through', () => {
    const home = here();
    const thrown = new RangeError('from the body');
    expect(() =>
      withNetns(netns.fd, () => {
        throw thrown;
      }),
    ).toThrow(thrown);
    expect(here()).toBe(home);
  });

  it('takes no asynchronous work', () => {
    expect(() => withNetns(netns.fd, async () => 1)).toThrow(/body must be synchronous/);
  });

  it('is told by device and inode, whatever the path', () => {
    const { inode } = netnsIdentity(netns.fd);
    const again = cleanup.add(openNamespace(netns.path), closeFd);
    expect(netnsIdentity(again)).toEqual(netnsIdentity(netns.fd));
    expect(inode).toBe(statSync(netns.path, { bigint: true }).ino);
    const own = cleanup.add(openNamespace('/proc/self/ns/net'), closeFd);
    expect(netnsIdentity(own)).not.toEqual(netnsIdentity(netns.fd));
  });

  it('is not any file, and not any namespace', () => {
    const refused = (path: string, code: string) =>
      expect(() => openNamespace(path)).toThrow(expect.objectContaining({ code }));
    refused('/proc/self/ns/mnt', 'EINVAL');
    refused(import.meta.filename, 'ENOTTY');
    refused('/run/netns/none', 'ENOENT');
    expect(() => withNetns(0, () => 1)).toThrow(
      expect.objectContaining({ code: 'EINVAL', syscall: 'setns' }),
    );
  });

  it('knows its interfaces by name', () => {
    const ifindex = netns.addVeth('pod');
    expect(ifindex).toBeGreaterThan(1);
    expect(netns.run(() => interfaceIndex('lo'))).toBe(1);
    expect(netns.run(() => interfaceIndex('none'))).toBeUndefined();
    const before = netns.run(interfacesText);
    expect(before).toContain('1 lo\n');
    netns.exec('ip', 'link', 'add', 'other0', 'type', 'bridge');
    expect(netns.run(interfacesText)).toMatch(/^\d+ other0$/m);
    netns.exec('ip', 'link', 'del', 'other0');
    expect(netns.run(interfacesText)).toBe(before);
  });
});

describe("another process's listener", () => {
  it('is copied, described, and transparent for its owner once the copy is', async () => {
    const { hello, copy } = await startListeners({ host: '127.0.0.1' }, { host: '::1' });
    for (const [i, family] of [4, 6].entries()) {
      const listening = hello[i] as Listening;
      const fd = copy(listening);
      expect(socketInfo(fd)).toMatchObject({
        family,
        type: 'stream',
        listening: true,
        transparent: false,
        address: family === 4 ? '127.0.0.1' : '::1',
        port: listening.port,
      });
      setTransparent(fd);
      expect(socketInfo(copy(listening)).transparent).toBe(true);
    }
  });

  it('is listed by the kernel, with its cookie', async () => {
    expect(netns.run(tcpListeners)).toEqual([]);
    const { hello, copy } = await startListeners(
      { host: '127.0.0.1' },
      { host: '::' },
      { host: '::1', ipv6Only: true },
    );
    const expected = hello.map((listening) => {
      const { family, address, port, cookie, v6only, transparent } = socketInfo(copy(listening));
      return {
        family,
        address,
        port,
        cookie,
        v6only,
        transparent,
        uid: 0,
        inode: expect.any(Number),
        cgroup: expect.any(Number),
      };
    });
    expect(expected.map(({ v6only }) => v6only)).toEqual([false, false, true]);
    const listed = netns.run(tcpListeners);
    expect(listed).toHaveLength(3);
    expect(listed).toEqual(expect.arrayContaining(expected));
    expect(new Set(listed.map(({ inode }) => inode)).size).toBe(3);
    const first = copy(hello[0] as (typeof hello)[number]);
    setTransparent(first);
    expect(netns.run(tcpListeners).filter(({ transparent }) => transparent)).toMatchObject([
      { cookie: socketInfo(first).cookie },
    ]);
  });

  it('is told of with its connections, which end as a reset ends them', async () => {
    const { hello } = await startListeners({ host: '127.0.0.1' }, { host: '::' });
    const [four, both] = hello as [Listening, Listening];
    const addresses = ['127.0.0.1', '::1'].map(ipToBytes);
    const open = () => netns.run(() => openTcpConnections(addresses));
    expect(open()).toEqual([]);
    const dialled = [
      { host: '127.0.0.1', port: four.port },
      { host: '127.0.0.1', port: both.port },
      { host: '::1', port: both.port },
    ];
    const inside = ['nsenter', `--net=${netns.path}`, process.execPath, '-e', DIALLERS] as const;
    const dialling = await startProcess<unknown>(cleanup, ...inside, JSON.stringify(dialled));
    const ended = once(dialling.child, 'exit');
    const ports = [four.port, both.port];
    const accepted = open().filter(({ local }) => ports.includes(local.port));
    const named = (list: readonly { host: string; port: number }[]) =>
      list.map(({ host, port }) => `${host} ${port}`).sort();
    expect(named(accepted.map(({ local: { ip, port } }) => ({ host: ip, port })))).toEqual(named(dialled));
    expect(netns.run(() => openTcpConnections([ipToBytes('10.9.9.9')]))).toEqual([]);
    expect(netns.run(() => endTcpConnections(accepted))).toBe(3);
    expect(await ended).toEqual([0, null]);
    expect(netns.run(() => endTcpConnections(accepted))).toBe(0);
    expect(open()).toEqual([]);
  });

  it('is found with the process that holds it, by its inode', async () => {
    const { child } = await startListeners({ host: '127.0.0.1' }, { host: '::1' });
    const inodes = netns.run(tcpListeners).map(({ inode }) => inode);
    const owners = await socketOwners([...inodes, 1]);
    expect(owners.map(({ inode }) => inode).sort()).toEqual([...inodes].sort());
    expect(new Set(owners.map(({ pid }) => pid))).toEqual(new Set([child.pid]));
    for (const { pid, fd, inode } of owners) {
      expect(readlinkSync(`/proc/${pid}/fd/${fd}`)).toBe(`socket:[${inode}]`);
    }
    expect(await socketOwners([])).toEqual([]);
  });

  it('cannot be had from a process that is not there', async () => {
    const { child, pidfd } = await startListeners({ host: '127.0.0.1' });
    expect(() => pidfdGetfd(pidfd, 9999)).toThrow(expect.objectContaining({ code: 'EBADF' }));
    const ended = new Promise((resolve) => child.once('exit', resolve));
    child.kill();
    await ended;
    expect(() => pidfdGetfd(pidfd, 0)).toThrow(
      expect.objectContaining({ code: 'ESRCH', syscall: 'pidfd_getfd' }),
    );
    expect(() => pidfdOpen(2 ** 30)).toThrow(expect.objectContaining({ syscall: 'pidfd_open' }));
  });

  it('must be an IP socket', async () => {
    const path = join(temporaryFolder(cleanup), 'socket');
    const server = createServer();
    cleanup.add(server, (it) => it.close());
    await new Promise<void>((resolve) => server.listen(path, resolve));
    expect(() => socketInfo(fdOf(server))).toThrow(expect.objectContaining({ code: 'EAFNOSUPPORT' }));
    expect(() => socketInfo(99_999)).toThrow(expect.objectContaining({ code: 'EBADF' }));
    expect(() => setTransparent(99_999)).toThrow(expect.objectContaining({ code: 'EBADF' }));
  });
});

describe("a socket that connects from another machine's address", () => {
  const SEEN = `
const server = require('node:net').createServer((socket) => socket.end(socket.remoteAddress));
server.listen(0, process.argv[1], () => console.log(server.address().port));
`;

  /** Dials from `source` in the namespace, whose own that address is not. */
  const dial = (source: string, host: string, port: number): Socket => {
    const socket = new Socket({ fd: netns.run(() => socketFrom(source)) });
    return cleanup.add(socket.connect({ host, port }), (it) => it.destroy());
  };

  it.each([
    ['-4', '198.51.100.7', '127.0.0.1'],
    ['-6', '2001:db8::7', '::1'],
  ])('is seen as that address: %s', async (family, source, host) => {
    netns.ip(`${family} rule add to ${source} lookup 100`);
    netns.ip(`${family} route add local default dev lo table 100`);
    const args = [`--net=${netns.path}`, process.execPath, '-e', SEEN, host];
    const { hello: port } = await startProcess<number>(cleanup, 'nsenter', ...args);
    const [seen] = await once(dial(source, host, port), 'data');
    expect(String(seen)).toBe(source);
    const refused = once(dial(source, host, 1), 'connect');
    await expect(refused).rejects.toMatchObject({ code: 'ECONNREFUSED', syscall: 'connect' });
  });

  it.each(['198.51.100.7', '2001:db8::7'])('takes up no port before it does: %s', (address) => {
    netns.exec('sysctl', '-qw', 'net.ipv4.ip_local_port_range=40000 40001');
    for (let opened = 0; opened < 4; opened += 1) {
      const fd = cleanup.add(
        netns.run(() => socketFrom(address)),
        closeFd,
      );
      expect(socketInfo(fd)).toMatchObject({ type: 'stream', transparent: true, address, port: 0 });
    }
  });

  it('is closed again where it cannot be bound', () => {
    const before = readdirSync('/proc/self/fd').length;
    const refused = (source: string, code: string, syscall: string) =>
      expect(() => netns.run(() => socketFrom(source))).toThrow(expect.objectContaining({ code, syscall }));
    refused('fe80::1', 'EINVAL', 'bind'); // link-local, and of no interface
    refused('fe80::1%none', 'EADDRNOTAVAIL', 'getaddrinfo');
    expect(readdirSync('/proc/self/fd')).toHaveLength(before);
  });
});

describe('the peer of a Unix socket', () => {
  it('is the process that connected, with a pidfd of it', async () => {
    const path = join(temporaryFolder(cleanup), 'socket');
    const server = createServer();
    cleanup.add(server, (it) => it.close());
    await new Promise<void>((resolve) => server.listen(path, resolve));
    const accepted = new Promise<Socket>((resolve) => server.once('connection', resolve));
    const child = spawn(process.execPath, ['-e', 'require("node:net").connect(process.argv[1])', path]);
    cleanup.add(child, (it) => it.kill('SIGKILL'));
    const socket = await accepted;
    cleanup.add(socket, (it) => it.destroy());

    const { pidfd, ...credentials } = peerCredentials(fdOf(socket));
    expect(credentials).toEqual({ pid: child.pid, uid: 0, gid: 0 });
    if (pidfd === undefined) {
      throw new Error('this kernel has SO_PEERPIDFD');
    }
    cleanup.add(pidfd, closeFd);
    expect(readFileSync(`/proc/self/fdinfo/${pidfd}`, 'utf8')).toMatch(
      new RegExp(`^Pid:\\s+${child.pid}$`, 'm'),
    );
  });

  it('is not made up for a TCP socket', async () => {
    const server = createServer();
    cleanup.add(server, (it) => it.close());
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as { port: number };
    const client = createConnection(port, '127.0.0.1');
    cleanup.add(client, (it) => it.destroy());
    await new Promise((resolve) => client.once('connect', resolve));
    expect(() => peerCredentials(fdOf(client))).toThrow(expect.objectContaining({ code: 'EAFNOSUPPORT' }));
  });
});
