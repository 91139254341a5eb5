/** Which processes may ask: decided once per connection, by what the kernel says about the other end. */

import { closeSync, readFileSync, statSync } from 'node:fs';
import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import type { Clock } from '../base/clock.js';
import type { AllowedCaller } from '../config/config.js';

/** SO_PEERCRED and, where the kernel has it (6.5), SO_PEERPIDFD. The receiver closes `pidfd`. */
export interface PeerCredentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
  readonly pidfd?: number;
}

export interface CallersOptions {
  readonly allow: readonly AllowedCaller[];
  /** Credentials of the peer of a connected Unix socket, by its descriptor. */
  readonly credentials: (fd: number) => PeerCredentials;
  readonly log: Pick<Logger, 'warn'>;
  /** Unix time, milliseconds. */
  readonly nowMs: Clock;
}

const LOG_EVERY_MS = 60_000;

export class Callers {
  readonly #options: CallersOptions;
  readonly #refusals = new WeakMap<Socket, string | undefined>();
  readonly #loggedMs = new Map<string, number>();

  constructor(options: CallersOptions) {
    this.#options = options;
  }

  /** Why the process at the other end may not ask; undefined: it may. */
  refusal(socket: Socket): string | undefined {
    if (!this.#refusals.has(socket)) {
      this.#refusals.set(socket, this.#decide(socket));
    }
    return this.#refusals.get(socket);
  }

  #decide(socket: Socket): string | undefined {
    const fd = descriptorOf(socket);
    if (fd === undefined) {
      return 'the connection is closed';
    }
    const caller = this.#options.credentials(fd);
    try {
      if (this.#options.allow.some((rule) => matches(rule, caller))) {
        return undefined;
      }
    } finally {
      if (caller.pidfd !== undefined) {
        closeSync(caller.pidfd);
      }
    }
    this.#logRefusal(caller);
    return `uid ${caller.uid}, gid ${caller.gid} (pid ${caller.pid}) is not in api.allow of the configuration`;
  }

  #logRefusal({ pid, uid, gid }: PeerCredentials): void {
    const now = this.#options.nowMs();
    for (const [key, atMs] of this.#loggedMs) {
      if (now - atMs >= LOG_EVERY_MS) {
        this.#loggedMs.delete(key);
      }
    }
    const key = `${uid}:${gid}`;
    if (!this.#loggedMs.has(key)) {
      this.#loggedMs.set(key, now);
      this.#options.log.warn({ pid, uid, gid }, 'caller refused: not in api.allow');
    }
  }
}

function matches(rule: AllowedCaller, caller: PeerCredentials): boolean {
  if ('uid' in rule) {
    return rule.uid === caller.uid;
  }
  if ('gid' in rule) {
    return rule.gid === caller.gid;
  }
  return runs(caller, rule.exe);
}

/**
 * By file, not by name: anybody can mount a program of their own over a trusted path in a mount namespace of their
 * own. With a pidfd, a process id that was given to another process meanwhile is noticed. What is not: a process that
 * connects and hands the socket to a child before it executes the file itself, and code that the loader was told to
 * put into it (LD_PRELOAD). So this keeps accidents away, and nobody who means it.
 */
function runs({ pid, pidfd }: PeerCredentials, path: string): boolean {
  try {
    const running = statSync(`/proc/${pid}/exe`, { bigint: true });
    const wanted = statSync(path, { bigint: true });
    const same = running.dev === wanted.dev && running.ino === wanted.ino;
    return same && (pidfd === undefined || isAlive(pidfd, pid));
  } catch {
    return false; // gone, or no such program: nobody runs it
  }
}

/** proc_pid_fdinfo(5): `Pid` of a pidfd turns -1 when its process has ended. */
function isAlive(pidfd: number, pid: number): boolean {
  return readFileSync(`/proc/self/fdinfo/${pidfd}`, 'utf8').includes(`\nPid:\t${pid}\n`);
}

/** Of a connected socket; undefined once it is closed. */
export function descriptorOf(socket: Socket): number | undefined {
  const { _handle: handle } = socket as unknown as { _handle?: { fd?: number } | null };
  return handle?.fd !== undefined && handle.fd >= 0 ? handle.fd : undefined;
}
