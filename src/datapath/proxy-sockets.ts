/** Listening sockets of other processes: whose they are, and how they get into the map. */

import { readFileSync, readlinkSync } from 'node:fs';
import { basename } from 'node:path';
import { u32 } from '../kernel/struct.js';
import type { BpfMap } from '../native/bpf.js';
import { closeFd } from '../native/descriptors.js';
import { isKernelError } from '../native/errors.js';
import {
  type ListeningSocket,
  pidfdGetfd,
  pidfdOpen,
  type SocketHolder,
  setTransparent,
  socketInfo,
  socketOption,
} from '../native/sockets.js';

/** socket(7), mptcp(7). */
const SOL_SOCKET = 1;
const SO_PROTOCOL = 38;
const IPPROTO_MPTCP = 262;

/** The name under which Node 24 runs every program. */
const NODE_MAIN_THREAD = 'MainThread';

/** A process that has a socket open, and under which descriptor. */
export type SocketOwner = Omit<SocketHolder, 'inode'>;

/**
 * Sets IP_TRANSPARENT on another process's listener: the kernel may hand a connection to any member of its SO_REUSEPORT
 * group, and without the option that member can only answer as itself. Throws as `putInto`.
 */
export function makeTransparent(socket: ListeningSocket, owner: SocketOwner): void {
  withCopy(socket, owner, setTransparent);
}

/** Puts a listener into the SOCKMAP. KernelError where the kernel refuses; Error where the descriptor is another by now. */
export function putInto(map: BpfMap, index: number, socket: ListeningSocket, owner: SocketOwner): void {
  withCopy(socket, owner, (fd) => map.setSocket(u32(index), fd));
}

/** The copy is closed at once: kept, it would hold the listener open after its owner has died. */
function withCopy(socket: ListeningSocket, owner: SocketOwner, use: (fd: number) => void): void {
  const pidfd = pidfdOpen(owner.pid);
  try {
    const fd = pidfdGetfd(pidfd, owner.fd);
    try {
      if (socketOption(fd, SOL_SOCKET, SO_PROTOCOL, 4).readInt32LE() === IPPROTO_MPTCP) {
        throw new Error(
          `process ${owner.pid} listens by Multipath TCP, which cannot be adopted: have it listen by TCP alone (Go: GODEBUG=multipathtcp=0 or SetMultipathTCP(false))`,
        );
      }
      const info = socketInfo(fd);
      if (!(info.listening || info.type === 'dgram') || info.cookie !== socket.cookie) {
        throw new Error(`descriptor ${owner.fd} of process ${owner.pid} is not the listener any more`);
      }
      use(fd);
    } finally {
      closeFd(fd);
    }
  } finally {
    closeFd(pidfd);
  }
}

/** Whether the process still has the socket: a reload may have handed it on (HAProxy, systemd). */
export function isHeld({ pid, fd, inode }: SocketOwner & { readonly inode: number }): boolean {
  return readable(() => readlinkSync(`/proc/${pid}/fd/${fd}`)) === `socket:[${inode}]`;
}

/** As in `ps`: at most 15 characters; of a program of Node 24 the executable's; `unknown` where the process has gone. */
export function processName(pid: number): string {
  const name = readable(() => readFileSync(`/proc/${pid}/comm`, 'utf8').trim());
  if (name === NODE_MAIN_THREAD) {
    return readable(() => basename(readlinkSync(`/proc/${pid}/exe`))) ?? name;
  }
  return name ?? 'unknown';
}

/** Processes and descriptors vanish while /proc is read; that is no error, and the answer undefined. */
export function readable<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    const { code } = error as { code?: string };
    if (code === 'ENOENT' || code === 'ESRCH' || code === 'EACCES' || isKernelError(error)) {
      return undefined;
    }
    throw error;
  }
}
