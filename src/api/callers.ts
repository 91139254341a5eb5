/** Which processes may ask: decided once per connection, by what the kernel says about the other end. */

import { closeSync, readFileSync, statSync } from 'node:fs';
import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import type { Clock } from '../base/clock.js';
import type { AllowedCaller, RateLimit } from '../config/config.js';
import { Caller } from './caller.js';
import { ApiProblem } from './problem.js';
import { RateLimits } from './rate-limits.js';

/** SO_PEERCRED and, where the kernel has it (6.5), SO_PEERPIDFD. The receiver closes `pidfd`. */
export interface PeerCredentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
  readonly pidfd?: number;
}

export interface CallersOptions {
  readonly allow: readonly AllowedCaller[];
  readonly rateLimit: RateLimit;
  /** Credentials of the peer of a connected Unix socket, by its descriptor. */
  readonly credentials: (fd: number) => PeerCredentials;
  readonly log: Pick<Logger, 'warn'>;
  /** Unix time, milliseconds. */
  readonly nowMs: Clock;
}

const LOG_EVERY_MS = 60_000;

export class Callers {
  readonly #options: CallersOptions;
  readonly #limits: RateLimits;
  readonly #decided = new WeakMap<Socket, Caller | ApiProblem>();
  readonly #loggedMs = new Map<string, number>();

  constructor(options: CallersOptions) {
    this.#options = options;
    this.#limits = new RateLimits(options.rateLimit, options.nowMs);
  }

  /** The process at the other end. Throws ApiProblem CALLER_NOT_ALLOWED where it may ask nothing. */
  of(socket: Socket): Caller {
    const known = this.#decided.get(socket) ?? this.#decide(socket);
    this.#decided.set(socket, known);
    if (known instanceof ApiProblem) {
      throw known;
    }
    return known;
  }

  #decide(socket: Socket): Caller | ApiProblem {
    const fd = descriptorOf(socket);
    if (fd === undefined) {
      return new ApiProblem(403, 'CALLER_NOT_ALLOWED', 'the connection is closed');
    }
    const credentials = this.#options.credentials(fd);
    const { pid, uid, gid, pidfd } = credentials;
    const onRefusal = (why: string) => this.#logRefusal(credentials, why);
    try {
      const rules = this.#options.allow.filter((rule) => matches(rule, credentials));
      if (rules.length === 0) {
        onRefusal('not in api.allow');
        const detail = `uid ${uid}, gid ${gid} (pid ${pid}) is not in api.allow of the configuration`;
        return new ApiProblem(403, 'CALLER_NOT_ALLOWED', detail);
      }
      const scopes = rules.some((rule) => rule.scopes === undefined)
        ? undefined
        : new Set(rules.flatMap((rule) => rule.scopes ?? []));
      const limitedAs = `${uid} ${programOf(pid) ?? pid}`;
      return new Caller({ pid, uid, scopes, limitedAs, limits: this.#limits, onRefusal });
    } catch (error) {
      if (error instanceof ApiProblem) {
        return error;
      }
      throw error;
    } finally {
      if (pidfd !== undefined) {
        closeSync(pidfd);
      }
    }
  }

  /** Once a minute for each caller and reason. */
  #logRefusal({ pid, uid, gid }: PeerCredentials, why: string): void {
    const now = this.#options.nowMs();
    for (const [key, atMs] of this.#loggedMs) {
      if (now - atMs >= LOG_EVERY_MS) {
        this.#loggedMs.delete(key);
      }
    }
    const key = `${uid}:${gid}:${why}`;
    if (!this.#loggedMs.has(key)) {
      this.#loggedMs.set(key, now);
      this.#options.log.warn({ pid, uid, gid }, `caller refused: ${why}`);
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

/** Device and inode of what a process executes; undefined where it has gone, or is in another pid namespace. */
function programOf(pid: number): string | undefined {
  try {
    const { dev, ino } = statSync(`/proc/${pid}/exe`, { bigint: true });
    return `${dev}:${ino}`;
  } catch {
    return undefined;
  }
}

/** proc_pid_fdinfo(5): `Pid` of a pidfd turns -1 when its process has ended. */
export function isAlive(pidfd: number, pid: number): boolean {
  return readFileSync(`/proc/self/fdinfo/${pidfd}`, 'utf8').includes(`\nPid:\t${pid}\n`);
}

/** Of a connected socket; undefined once it is closed. */
export function descriptorOf(socket: Socket): number | undefined {
  const { _handle: handle } = socket as unknown as { _handle?: { fd?: number } | null };
  return handle?.fd !== undefined && handle.fd >= 0 ? handle.fd : undefined;
}
