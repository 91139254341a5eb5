/** What somebody announces: found among the sockets that listen here, by descriptor or by process and address. */

import { readdirSync, readlinkSync } from 'node:fs';
import { u32 } from '../kernel/struct.js';
import { isKernelError } from '../native/errors.js';
import { type ListeningSocket, socketInfo, socketOption, tcpListeners } from '../native/sockets.js';
import { type AnnouncedListener, isAt } from './announced.js';
import { textOf, type WantedListener } from './listener-slots.js';
import { readable } from './proxy-sockets.js';

/** socket(7). */
const SOL_SOCKET = 1;
const SO_PROTOCOL = 38;
const IPPROTO_TCP = 6;

export type { ListeningSocket } from '../native/sockets.js';

export interface Unfit {
  readonly reason: 'NOT_TCP' | 'NOT_LISTENING' | 'WRONG_NAMESPACE' | 'PROCESS_NOT_FOUND';
  readonly detail: string;
}

/** The listener behind a descriptor, of which the caller may close its copy afterwards. */
export function listenerBehind(fd: number): ListeningSocket | Unfit {
  try {
    const { type, listening, cookie } = socketInfo(fd);
    const protocol = socketOption(fd, SOL_SOCKET, SO_PROTOCOL, 4);
    if (type !== 'stream' || !protocol.equals(u32(IPPROTO_TCP))) {
      return {
        reason: 'NOT_TCP',
        detail: 'is an IP socket, but not of TCP (Multipath TCP is another protocol)',
      };
    }
    if (!listening) {
      return { reason: 'NOT_LISTENING', detail: 'is a TCP socket that does not listen' };
    }
    // The kernel lists those of this namespace alone, and gives no cookie twice.
    return (
      tcpListeners().find((socket) => socket.cookie === cookie) ?? {
        reason: 'WRONG_NAMESPACE',
        detail: 'listens in another network namespace than the agent’s',
      }
    );
  } catch (error) {
    if (isKernelError(error)) {
      return { reason: 'NOT_TCP', detail: 'is not a TCP socket' };
    }
    throw error;
  }
}

/** The listeners that a process has open at an address: one for each of its workers, perhaps. */
export function listenersOf(pid: number, at: WantedListener): readonly ListeningSocket[] | Unfit {
  const held = socketsOf(pid);
  if (held === undefined) {
    return { reason: 'PROCESS_NOT_FOUND', detail: `there is no process ${pid}` };
  }
  const found = tcpListeners().filter(
    (socket) => isAt(at, socket.address, socket.port) && held.has(socket.inode),
  );
  return found.length > 0
    ? found
    : { reason: 'NOT_LISTENING', detail: `process ${pid} does not listen at ${textOf(at)}` };
}

/** Inodes; undefined where there is no such process. */
function socketsOf(pid: number): ReadonlySet<number> | undefined {
  const names = readable(() => readdirSync(`/proc/${pid}/fd`));
  const links = names?.map((name) => readable(() => readlinkSync(`/proc/${pid}/fd/${name}`)) ?? '');
  return links && new Set(links.flatMap((link) => /^socket:\[(\d+)\]$/.exec(link)?.[1] ?? []).map(Number));
}

/** As they are remembered: one for each address, with the sockets there. */
export function announcedAs(
  place: Pick<AnnouncedListener, 'instance' | 'generation' | 'direction'>,
  sockets: readonly ListeningSocket[],
): AnnouncedListener[] {
  const found = new Map<string, AnnouncedListener>();
  for (const { address: host, port, family, cookie } of sockets) {
    const key = textOf({ host, port, family });
    const cookies = [...(found.get(key)?.cookies ?? []), cookie];
    found.set(key, { ...place, host, port, family, cookies });
  }
  return [...found.values()];
}
