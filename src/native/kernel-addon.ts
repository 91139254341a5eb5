/** The only loader of the kernel addon, and the signatures of what is in it. Arguments are checked by the callers. */

import { loadAddon } from './addon.js';

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

export interface ListeningSocket {
  readonly family: 4 | 6;
  readonly address: string;
  readonly port: number;
  readonly inode: number;
  readonly uid: number;
  readonly cookie: bigint;
  readonly v6only: boolean;
  /** The number of the cgroup of version 2 that it was opened in; undefined where the kernel does not tell. */
  readonly cgroup?: number;
  /** IP_TRANSPARENT is set; undefined where the kernel does not tell. */
  readonly transparent?: boolean;
}

/** A process that has a socket open, and under which descriptor. */
export interface SocketHolder {
  readonly inode: number;
  readonly pid: number;
  readonly fd: number;
}

/** Both ends of a connection, IPv4 as IPv4 whatever the socket's family. */
export interface TcpEnds {
  readonly cookie: bigint;
  readonly local: { readonly ip: string; readonly port: number };
  readonly peer: { readonly ip: string; readonly port: number };
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

/** A message of another process; its descriptors are for the receiver to close. */
export interface Announcement {
  /** By which it came, and is answered. */
  readonly connection: number;
  readonly text: Buffer;
  readonly descriptors: readonly number[];
  /** It was cut off. */
  readonly tooLong: boolean;
  /** There were more descriptors, which the kernel has closed. */
  readonly tooMany: boolean;
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

export interface Datagram {
  readonly fromIp: string;
  readonly fromPort: number;
  readonly toIp: string;
  readonly toPort: number;
  readonly data: Buffer;
}

export interface Redirect {
  readonly ifindex: number;
  /** ifindex of the interface that the packets go to. */
  readonly target: number;
}

export interface TcpConnection extends Omit<TcpEnds, 'cookie'> {
  /** By which it is ended. */
  readonly id: Buffer;
}

interface KernelAddon {
  LinkEvents: new (
    onEvents: (events: (LinkEvent | null)[]) => void,
    receiveBytes: number,
    queueLimit: number,
  ) => { close(): void };
  AnnounceDoor: new (
    path: string,
    onAnnouncements: (announcements: Announcement[]) => void,
    patienceMs: number,
    longest: number,
    mostDescriptors: number,
    mode: number,
  ) => { close(): void };
  sendMessage(connection: number, text: string): boolean;
  openNamespace(path: string): number;
  withNetns<T>(fd: number, body: () => T): T;
  interfaces(): string;
  netnsIdentity(fd: number): { dev: bigint; inode: bigint };
  interfaceIndex(name: string): number | undefined;
  closeFd(fd: number): void;
  tcpEnds(cookies: readonly bigint[]): Promise<TcpEnds[]>;
  socketOwners(inodes: readonly number[]): Promise<SocketHolder[]>;
  pidfdOpen(pid: number): number;
  pidfdGetfd(pidfd: number, fd: number): number;
  setTransparent(fd: number): void;
  socketFrom(source: string): number;
  openListener(host: string, port: number, backlog: number, v6only: boolean): number;
  socketOption(fd: number, level: number, name: number, value: Uint8Array): number;
  netnsCookie(): bigint;
  socketInfo(fd: number): SocketInfo;
  peerCredentials(fd: number): PeerCredentials;
  tcpListeners(): ListeningSocket[];
  udpListeners(): ListeningSocket[];
  DatagramListener: new (
    host: string,
    port: number,
    v6only: boolean,
    queueLimit: number,
    onDatagrams: (datagrams: Datagram[]) => void,
  ) => { readonly port: number; readonly lost: number; close(): void };
  DatagramSender: new (
    family: 4 | 6,
  ) => {
    send(fromIp: string, fromPort: number, toIp: string, toPort: number, data: Uint8Array): boolean;
    close(): void;
  };
  tcpOpen(): Promise<Buffer>;
  tcpConnections(addresses: Uint8Array): number;
  tcpInode(ends: Uint8Array, port: number, peerPort: number): number | undefined;
  openTcpConnections(addresses: Uint8Array, any: boolean): TcpConnection[];
  endTcpConnections(ids: Uint8Array): number;
  tryLock(fd: number): boolean;
  trimMemory(): boolean;
  openRoutes(): number;
  tableRoutes(fd: number, sequence: number, family: 4 | 6, table: number): TableRoute[];
  redirects(fd: number, sequence: number): Redirect[];
  renewStations(fd: number, sequence: number, port: number, most: number): number;
  sendFrames(netns: string, interfaceName: string, frames: readonly Uint8Array[]): Promise<void>;
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

export const addon = loadAddon<KernelAddon>('kernel');
