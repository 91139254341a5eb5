/** Namespaces, other processes' sockets, peers of Unix sockets, link events: what Node has no call for. */

import {
  checkBytes,
  checkFd,
  checkFunction,
  checkPositive,
  checkText,
  loadAddon,
  throwingOutside,
} from './addon.js';

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

export interface TableRoute {
  /** RTN_*, such as 2 for local: rtnetlink(7). */
  readonly type: number;
  readonly protocol: number;
  readonly prefixLength: number;
  /** Canonical text; empty for a default route. */
  readonly destination: string;
  readonly interfaceIndex?: number;
  readonly metric?: number;
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
  openRoutes(): number;
  tableRoutes(fd: number, sequence: number, family: 4 | 6, table: number): TableRoute[];
  openNetfilter(): number;
  nftGeneration(fd: number, sequence: number): number;
  nftChangeElements(
    fd: number,
    sequence: number,
    table: string,
    set: string,
    keySize: number,
    add: Uint8Array,
    remove: Uint8Array,
  ): void;
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

/** Reads single routing tables of the network namespace that was current when it was opened. */
export class RouteTables {
  readonly #fd: number;
  #sequence = 0;
  #closed = false;

  constructor() {
    this.#fd = addon.openRoutes();
  }

  routes(family: 4 | 6, table: number): TableRoute[] {
    checkPositive(table, 'table', 0xffff_ffff);
    if (this.#closed) {
      throw new TypeError('the route socket is closed');
    }
    this.#sequence = (this.#sequence % 0x7fff_ffff) + 1;
    return addon.tableRoutes(this.#fd, this.#sequence, family, table);
  }

  close(): void {
    if (!this.#closed) {
      this.#closed = true;
      addon.closeFd(this.#fd);
    }
  }
}

/** A netfilter socket of the network namespace that was current when it was opened. */
export class Netfilter {
  readonly #fd: number;
  #sequence = 1;
  #closed = false;

  constructor() {
    this.#fd = addon.openNetfilter();
  }

  /** Grows by one with every change of the nftables ruleset, whoever makes it. */
  generation(): number {
    return addon.nftGeneration(this.#fd, this.#next(1));
  }

  /**
   * Puts elements into a set of an `inet` table and takes others out, in one transaction. One to add may be there
   * already; one to remove that is not there is KernelError ENOENT, and nothing is changed then.
   */
  changeElements(change: {
    readonly table: string;
    readonly set: string;
    /** Of each element, bytes. */
    readonly keySize: number;
    readonly add: readonly Uint8Array[];
    readonly remove: readonly Uint8Array[];
  }): void {
    const { table, set, keySize, add, remove } = change;
    checkText(table, 'table');
    checkText(set, 'set');
    checkPositive(keySize, 'keySize', 64);
    for (const [name, keys] of Object.entries({ add, remove })) {
      keys.forEach((key, index) => {
        checkBytes(key, `${name}[${index}]`, keySize);
      });
    }
    const sequence = this.#next(add.length + remove.length + 2); // a number for each message, of which there are fewer
    addon.nftChangeElements(
      this.#fd,
      sequence,
      table,
      set,
      keySize,
      Buffer.concat(add),
      Buffer.concat(remove),
    );
  }

  close(): void {
    if (!this.#closed) {
      this.#closed = true;
      addon.closeFd(this.#fd);
    }
  }

  #next(count: number): number {
    if (this.#closed) {
      throw new TypeError('the netfilter socket is closed');
    }
    const first = this.#sequence;
    this.#sequence = (first + count) % 0x7fff_ffff;
    return first;
  }
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
