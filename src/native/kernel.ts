/** Namespaces, other processes' sockets, peers of Unix sockets, link events: what Node has no call for. */

import { checkFd, checkFunction, checkPositive, checkText, loadAddon, throwingOutside } from './addon.js';

export interface SocketInfo {
  readonly family: 4 | 6;
  readonly type: 'stream' | 'dgram' | 'other';
  readonly listening: boolean;
  /** IP_TRANSPARENT is set. */
  readonly transparent: boolean;
  readonly v6only: boolean;
  readonly address: string;
  readonly port: number;
  /** The same that sock_diag and BPF know the socket by. */
  readonly cookie: bigint;
}

export interface TcpListener {
  readonly family: 4 | 6;
  readonly address: string;
  readonly port: number;
  readonly inode: number;
  readonly uid: number;
  readonly cookie: bigint;
  readonly v6only: boolean;
}

export interface PeerCredentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
  /** Where the kernel has SO_PEERPIDFD (6.5) and the peer lives; for the caller to close. */
  readonly pidfd?: number;
}

export interface LinkEvent {
  readonly kind: 'new' | 'del';
  readonly ifindex: number;
  readonly name: string;
  readonly up: boolean;
  /** ifindex of the bridge or bond it is a port of, 0 without one. */
  readonly master: number;
}

interface Addon {
  LinkEvents: new (
    onEvents: (events: (LinkEvent | null)[]) => void,
    receiveBytes: number,
    queueLimit: number,
  ) => { close(): void };
  openNamespace(path: string): number;
  withNetns<T>(fd: number, body: () => T): T;
  netnsIdentity(fd: number): { dev: bigint; inode: bigint };
  interfaceIndex(name: string): number | undefined;
  closeFd(fd: number): void;
  pidfdOpen(pid: number): number;
  pidfdGetfd(pidfd: number, fd: number): number;
  setTransparent(fd: number): void;
  socketInfo(fd: number): SocketInfo;
  peerCredentials(fd: number): PeerCredentials;
  tcpListeners(): TcpListener[];
}

const addon = loadAddon<Addon>('kernel');

/** A descriptor for the network namespace at `path`, such as /run/netns/x or /proc/1/ns/net; for the caller to close. */
export function openNamespace(path: string): number {
  checkText(path, 'path');
  return addon.openNamespace(path);
}

/**
 * Runs `body` with this thread in the network namespace behind `fd`, and comes back however it ends (setns(2)).
 * Synchronous only: a promise would go on after the return. The process aborts if there is no way back.
 */
export function withNetns<T>(fd: number, body: () => T): T {
  checkFd(fd);
  checkFunction(body, 'body');
  const result = addon.withNetns(fd, body);
  if (result instanceof Promise) {
    throw new TypeError('body must be synchronous: it returned a Promise, which runs outside the namespace');
  }
  return result;
}

/** What a namespace is, whatever path or process it was reached by. */
export function netnsIdentity(fd: number): { dev: bigint; inode: bigint } {
  checkFd(fd);
  return addon.netnsIdentity(fd);
}

export function closeFd(fd: number): void {
  checkFd(fd);
  addon.closeFd(fd);
}

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
export function tcpListeners(): TcpListener[] {
  return addon.tcpListeners();
}

/** ifindex in the current network namespace. */
export function interfaceIndex(name: string): number | undefined {
  checkText(name, 'name');
  return addon.interfaceIndex(name);
}

export interface LinkEventOptions {
  /** Of the socket's buffer. */
  readonly receiveBytes?: number;
  /** How many events wait while JavaScript is busy, before a resync takes their place. */
  readonly queueLimit?: number;
}

/**
 * Links of the current network namespace as they come, change and go. `onResync` says that events were lost and
 * everything has to be read anew; events that come after it are newer. Does not keep the process alive.
 */
export function openLinkEvents(
  onEvents: (events: LinkEvent[]) => void,
  onResync: () => void,
  options: LinkEventOptions = {},
): { close(): void } {
  checkFunction(onEvents, 'onEvents');
  checkFunction(onResync, 'onResync');
  const { receiveBytes = 4 << 20, queueLimit = 65_536 } = options;
  checkPositive(receiveBytes, 'receiveBytes');
  checkPositive(queueLimit, 'queueLimit');
  return new addon.LinkEvents(
    throwingOutside((batch) => {
      // Null is a resync: always the first of its batch, for it takes the place of what was waiting.
      const events = batch.filter((event) => event !== null);
      if (events.length < batch.length) {
        onResync();
      }
      if (events.length > 0) {
        onEvents(events);
      }
    }),
    receiveBytes,
    queueLimit,
  );
}
