/** Sockets of this process and of others, and the peers of Unix sockets. */

import { isIP } from 'node:net';
import { checkBytes, checkFd, checkPositive, checkUnsigned } from './addon.js';
import { closeFd } from './descriptors.js';
import { isKernelError } from './errors.js';
import {
  addon,
  type ListeningSocket,
  type PeerCredentials,
  type SocketHolder,
  type SocketInfo,
  type TcpConnection,
  type TcpEnds,
} from './kernel-addon.js';
import { openNamespace, withNetns } from './namespaces.js';

export type {
  ListeningSocket,
  PeerCredentials,
  SocketHolder,
  SocketInfo,
  TcpConnection,
  TcpEnds,
} from './kernel-addon.js';

/** pidfd_open(2). */
export function pidfdOpen(pid: number): number {
  checkPositive(pid, 'pid');
  return addon.pidfdOpen(pid);
}

/** A copy of another process's descriptor: pidfd_getfd(2); needs CAP_SYS_PTRACE. */
export function pidfdGetfd(pidfd: number, fd: number): number {
  checkFd(pidfd, 'pidfd');
  checkFd(fd);
  return addon.pidfdGetfd(pidfd, fd);
}

/** IP_TRANSPARENT, for both families on an IPv6 socket: ip(7). */
export function setTransparent(fd: number): void {
  checkFd(fd);
  addon.setTransparent(fd);
}

/**
 * A TCP socket that is bound to this address, be it another machine's, and to no port yet: ip(7), IP_TRANSPARENT and
 * IP_BIND_ADDRESS_NO_PORT. For the caller to connect and to close. Needs CAP_NET_RAW or CAP_NET_ADMIN, else KernelError
 * EPERM.
 */
export function socketFrom(source: string): number {
  if (isIP(source) === 0) {
    throw new TypeError('source must be an IP address');
  }
  return addon.socketFrom(source);
}

/**
 * A TCP socket that listens at this address and is transparent, for another process to accept from. `v6only` is heeded
 * for IPv6 alone. For the caller to close. Needs CAP_NET_RAW or CAP_NET_ADMIN; KernelError, such as EADDRINUSE.
 */
export function openListener(
  host: string,
  port: number,
  { backlog = 4_096, v6only = true }: { readonly backlog?: number; readonly v6only?: boolean } = {},
): number {
  if (isIP(host) === 0) {
    throw new TypeError('host must be an IP address');
  }
  checkPositive(port, 'port', 65_535);
  checkPositive(backlog, 'backlog');
  return addon.openListener(host, port, backlog, v6only);
}

/** getsockopt(2): the bytes of an option, at most `size`. KernelError where the kernel refuses. */
export function socketOption(fd: number, level: number, name: number, size: number): Buffer {
  checkFd(fd);
  checkUnsigned(level, 'level');
  checkUnsigned(name, 'name');
  checkUnsigned(size, 'size', 1 << 16);
  const value = Buffer.alloc(size);
  return value.subarray(0, addon.socketOption(fd, level, name, value));
}

/** The number that BPF programs know the current network namespace by; 0 where the kernel does not tell (before 5.14). */
export function netnsCookie(): bigint {
  return addon.netnsCookie();
}

/** The same of the network namespace at a path; undefined where it has gone, or the kernel does not tell. */
export function netnsCookieAt(path: string): bigint | undefined {
  try {
    const netns = openNamespace(path);
    try {
      return withNetns(netns, netnsCookie) || undefined;
    } finally {
      closeFd(netns);
    }
  } catch (error) {
    if (isKernelError(error) && ['ENOENT', 'ESRCH', 'EINVAL'].includes(error.code)) {
      return undefined;
    }
    throw error;
  }
}

/** KernelError ENOTSOCK for what is no socket. */
export function socketInfo(fd: number): SocketInfo {
  checkFd(fd);
  return addon.socketInfo(fd);
}

/** Who connected a Unix socket, as of that moment: SO_PEERCRED and SO_PEERPIDFD, unix(7). */
export function peerCredentials(fd: number): PeerCredentials {
  checkFd(fd);
  return addon.peerCredentials(fd);
}

/** Listening TCP sockets of the current network namespace. */
export function tcpListeners(): ListeningSocket[] {
  return addon.tcpListeners();
}

/** UDP sockets of the current network namespace that are bound and not connected. */
export function udpListeners(): ListeningSocket[] {
  return addon.udpListeners();
}

/**
 * How many TCP connections of the current network namespace bear one of these addresses as their own, in TIME_WAIT as well,
 * or as their peer's on a transparent socket: those of a proxy with or for pods that have them. 16 bytes each, IPv4 mapped.
 */
export function tcpConnections(addresses: readonly Uint8Array[]): number {
  return addon.tcpConnections(joined(addresses, 'address'));
}

/** The same, each by itself, without those in TIME_WAIT. */
export function openTcpConnections(addresses: readonly Uint8Array[]): TcpConnection[] {
  return addon.openTcpConnections(joined(addresses, 'address'), false);
}

/** The same, where a peer has the address also those on sockets that are not transparent. */
export function openTcpConnectionsWith(addresses: readonly Uint8Array[]): TcpConnection[] {
  return addon.openTcpConnections(joined(addresses, 'address'), true);
}

/**
 * Ends each as a reset does, at both ends, and returns how many there still were. KernelError EOPNOTSUPP where the kernel
 * cannot (CONFIG_INET_DIAG_DESTROY).
 */
export function endTcpConnections(connections: readonly Pick<TcpConnection, 'id'>[]): number {
  return addon.endTcpConnections(
    joined(
      connections.map(({ id }) => id),
      'id',
    ),
  );
}

function joined(parts: readonly Uint8Array[], name: string): Buffer {
  for (const part of parts) {
    checkBytes(part, name);
  }
  return Buffer.concat(parts);
}

/**
 * The inode of the socket that a TCP connection has in the current network namespace, by its own end and its peer's (16 bytes
 * each, IPv4 mapped): 0 while nobody has accepted it, undefined where there is none.
 */
export function tcpInode(own: TcpEndpoint, peer: TcpEndpoint): number | undefined {
  for (const { address, port } of [own, peer]) {
    checkBytes(address, 'address', 16);
    checkPositive(port, 'port', 0xffff);
  }
  return addon.tcpInode(Buffer.concat([own.address, peer.address]), own.port, peer.port);
}

export interface TcpEndpoint {
  readonly address: Uint8Array;
  readonly port: number;
}

/**
 * Both ends of the TCP connections of the current network namespace whose sockets have these cookies (SO_COOKIE,
 * socket(7)); none for one that is not there. Looks at every socket, on a thread of its own. Rejects with KernelError.
 */
export async function tcpEnds(cookies: readonly bigint[]): Promise<TcpEnds[]> {
  cookies.forEach((cookie, index) => {
    if (typeof cookie !== 'bigint' || cookie <= 0n || cookie >= 1n << 64n) {
      throw new TypeError(`cookies[${index}] must be the cookie of a socket`);
    }
  });
  return addon.tcpEnds(cookies);
}

/** Bytes of an entry of `tcpOpen`. */
export const OPEN_BYTES = 36;

/**
 * The TCP connections of the current network namespace that are not over, 36 bytes each: the peer's address and the own one
 * (16 each, IPv4 mapped), the peer's port and the own one (2 each, little-endian). On a thread of its own.
 */
export function tcpOpen(): Promise<Buffer> {
  return addon.tcpOpen();
}

/**
 * Which process holds each of these sockets, by inode; none for one that nobody holds any more. Walks /proc on a thread of
 * its own.
 */
export function socketOwners(inodes: readonly number[]): Promise<SocketHolder[]> {
  inodes.forEach((inode, index) => {
    checkUnsigned(inode, `inodes[${index}]`, Number.MAX_SAFE_INTEGER);
  });
  return addon.socketOwners(inodes);
}
