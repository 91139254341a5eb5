/**
 * `<runDir>/announce.sock`, where a proxy says which of its listeners are an instance's, with their descriptors. Each who
 * connects says one message and gets one answer; who it is the kernel says.
 */

import { closeSync, lstatSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Log } from '../base/log.js';
import type { ListenerStatus } from '../datapath/listeners.js';
import type { Announcer, Announcing } from '../instances/announcing.js';
import { InstanceError } from '../instances/errors.js';
import type { Announcement } from '../native/kernel-addon.js';
import { isAlive, type PeerCredentials } from './callers.js';
import { problem, problemOf } from './problem.js';
import { SocketInUseError } from './unix-socket.js';

export const ANNOUNCE_SOCKET_NAME = 'announce.sock';

/** Any of the node may connect: owners may be told by executable or cgroup, and each message's sender is checked in every case. */
const MODE = 0o666;
const MOST_WAITING = 64;
const LOG_EVERY_MS = 60_000;

export interface AnnounceDoorOptions {
  readonly runDir: string;
  readonly announcing: Pick<Announcing, 'byDescriptor'>;
  /** The system calls: src/native/announce-door.ts, and SO_PEERCRED. */
  readonly open: (
    path: string,
    onAnnouncements: (announcements: Announcement[]) => void,
    options: { readonly mode: number },
  ) => { close(): void };
  readonly send: (connection: number, text: string) => boolean;
  readonly credentials: (fd: number) => PeerCredentials;
  readonly log: Pick<Log, 'info' | 'warn' | 'error'>;
}

/** Throws SocketInUseError where something else is there. No other agent listens: the run directory is locked. */
export function openAnnouncements(options: AnnounceDoorOptions): { close(): void } {
  const path = join(options.runDir, ANNOUNCE_SOCKET_NAME);
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found !== undefined && !found.isSocket()) {
    throw new SocketInUseError(
      `${path} exists and is not a socket: remove it or choose another run directory`,
    );
  }
  rmSync(path, { force: true });
  const tell = refusalLog(options.log);
  let waiting = 0;
  const take = async (announcement: Announcement) => {
    waiting += 1;
    try {
      options.send(
        announcement.connection,
        JSON.stringify(await answer(options, announcement, waiting, tell)),
      );
    } finally {
      waiting -= 1;
      closeSync(announcement.connection);
    }
  };
  const door = options.open(path, (announcements) => void announcements.forEach(take), { mode: MODE });
  return {
    close: () => {
      door.close();
      rmSync(path, { force: true });
    },
  };
}

async function answer(
  options: AnnounceDoorOptions,
  announcement: Announcement,
  waiting: number,
  tell: (key: string, fields: object) => void,
): Promise<object> {
  const { log } = options;
  const { pid, uid, gid, pidfd } = options.credentials(announcement.connection);
  try {
    const isThere = () => pidfd === undefined || isAlive(pidfd, pid);
    const listeners = await adopt(options, announcement, { pid, uid, gid, isThere }, waiting);
    const adopted = listeners.filter((listener) => listener.announced);
    return {
      ok: true,
      adopted: adopted.map(({ direction, family, address }) => ({ direction, family, address })),
    };
  } catch (error) {
    const known = problemOf(error);
    if (known === undefined) {
      log.error({ err: error, pid }, 'an announcement failed');
      return problem(500, 'INTERNAL', 'the agent failed to answer; its log says why');
    }
    tell(`${uid} ${known.reason}`, { pid, uid, reason: known.reason, detail: known.detail });
    return known;
  } finally {
    if (pidfd !== undefined) {
      closeSync(pidfd);
    }
  }
}

/** Once a minute for each uid and reason: anybody can be refused. */
function refusalLog(log: Pick<Log, 'warn'>): (key: string, fields: object) => void {
  const loggedMs = new Map<string, number>();
  return (key, fields) => {
    const now = performance.now();
    if (now - (loggedMs.get(key) ?? Number.NEGATIVE_INFINITY) >= LOG_EVERY_MS) {
      loggedMs.set(key, now);
      log.warn(fields, 'announcement refused');
    }
  };
}

/** The descriptors are closed when this returns: held on, they would make the agent another owner of the listeners. */
function adopt(
  { announcing }: AnnounceDoorOptions,
  { text, descriptors, tooLong, tooMany }: Announcement,
  caller: Announcer,
  waiting: number,
): Promise<ListenerStatus[]> {
  try {
    if (waiting > MOST_WAITING) {
      throw new InstanceError('INSTANCE_BUSY', 'as many others announce as are allowed to: try again later');
    }
    if (tooLong || tooMany) {
      const what = tooLong ? 'the message is longer than 4096 bytes' : 'there are more than 4 descriptors';
      throw new InstanceError('KEY_INVALID', what);
    }
    return announcing.byDescriptor(text.toString(), descriptors, caller);
  } catch (error) {
    return Promise.reject(error);
  } finally {
    for (const fd of descriptors) {
      closeSync(fd);
    }
  }
}
