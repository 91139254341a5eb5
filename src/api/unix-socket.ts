/** The API's socket in the file system: who may reach it, and what was left there before. */

import { chmodSync, chownSync, lstatSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import type { AllowedCaller } from '../config/config.js';

export class SocketInUseError extends Error {
  override readonly name = 'SocketInUseError';
  readonly code = 'SOCKET_IN_USE';
}

/** Removes a socket that nobody listens at (an agent was killed). Throws SocketInUseError for anything else there. */
export async function removeStaleSocket(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) {
    return;
  }
  if (!found.isSocket()) {
    throw new SocketInUseError(
      `${path} exists and is not a socket: remove it or choose another run directory`,
    );
  }
  if (await isAnswered(path)) {
    throw new SocketInUseError(`another process listens at ${path}: stop it or choose another run directory`);
  }
  rmSync(path, { force: true });
}

function isAnswered(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code !== 'ECONNREFUSED'));
  });
}

/**
 * Root only, or one group beside it, can be said by the file's mode. Other uids and further groups open the file to
 * all: the credentials of each connection are checked in every case. An executable opens it to nobody, since it can be
 * passed off as one's own (`callers.ts`).
 */
export function applyAccess(path: string, allow: readonly AllowedCaller[]): void {
  const uids = allow.filter((rule) => 'uid' in rule && rule.uid !== 0);
  const [group, ...more] = new Set(allow.flatMap((rule) => ('gid' in rule ? [rule.gid] : [])));
  if (uids.length > 0 || more.length > 0) {
    chmodSync(path, 0o666);
  } else if (group !== undefined) {
    chownSync(path, -1, group);
    chmodSync(path, 0o660);
  } else {
    chmodSync(path, 0o600);
  }
}
