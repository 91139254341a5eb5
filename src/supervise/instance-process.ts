/** The process of one instance: when it starts, is started again, and ends. */

import type { ChildProcess } from 'node:child_process';
import { createHash } from 'node:crypto';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { Clock } from '../base/clock.js';
import { KeptText } from '../base/kept-text.js';
import type { Log } from '../base/log.js';
import type { Instance, InstanceRun } from '../config/config.js';
import { InstanceStartError } from './errors.js';
import { HandedSockets, textsOf } from './handed-sockets.js';
import { checkRun, launch } from './launch.js';
import { isLimited, limitedCgroup, oomKills, removeCgroup } from './limits.js';
import { Output } from './output.js';
import { isAlive, processIdOf, signalGroup } from './processes.js';
import { type KeptState, messageOf, type ProcessMessage, statePath } from './state.js';

const FIRST_BACKOFF_MS = 100;
const LONGEST_BACKOFF_MS = 30_000;
/** Who has run for so long starts at once the next time. */
const STEADY_MS = 60_000;
/** Who has lived for so long is not still being started. */
const RUNNING_AFTER_MS = 1_000;

/** Another process of the instance in the place of the present one: how that stands. */
export interface Renewal {
  readonly phase: 'CHECKING' | 'DRAINING' | 'DONE' | 'FAILED';
  readonly detail: string;
}

interface Successor {
  readonly child: ChildProcess;
  readonly id: { readonly pid: number; readonly startTime: number };
  readonly declared: Instance;
  readonly sinceMs: number;
  readonly startedAt: string;
  readonly cgroup: string | undefined;
  readonly deadlineMs: number;
  /** How it has ended, if so. */
  ended: string | undefined;
}

export interface InstanceProcessOptions {
  readonly folder: string;
  readonly nowMs: Clock;
  /** Called when listeners were opened. */
  readonly listening: () => void;
  readonly log: Log;
}

export class InstanceProcess {
  readonly name: string;
  readonly #options: InstanceProcessOptions;
  readonly #file: KeptText;
  readonly #output: { readonly stdout: Output; readonly stderr: Output };
  readonly #sockets = new HandedSockets();
  #kept: KeptState;
  /** Undefined where the process was adopted: how that ends nobody is told. */
  #child: ChildProcess | undefined;
  #sinceMs = 0;
  #oomKills = 0;
  #keepUntilMs = 0;
  #retryMs = 0;
  #backoffMs = FIRST_BACKOFF_MS;
  /** While it is stopped; Infinity once it was killed. */
  #killMs: number | undefined;
  /** Started beside the present one, and not in its place yet. */
  #next: Successor | undefined;
  /** Told to end after its successor has taken its place. */
  #former: { readonly id: Successor['id']; readonly killMs: number } | undefined;
  #renewal: Renewal | undefined;

  /** `kept`: what another supervisor has left. */
  constructor(name: string, options: InstanceProcessOptions, kept: KeptState = nothing(name)) {
    const { folder, log } = options;
    this.name = name;
    this.#options = options;
    this.#kept = kept;
    this.#file = new KeptText(statePath(folder, name), 'the state of an instance is not kept', log);
    const output = (stream: 'stdout' | 'stderr') =>
      new Output(join(folder, `${name}.${stream}.log`), kept.read[stream], (line) =>
        log.info({ instance: name, stream }, line),
      );
    this.#output = { stdout: output('stdout'), stderr: output('stderr') };
    if (kept.next !== null && isAlive(kept.next)) {
      signalGroup(kept.next.pid, 'SIGKILL'); // who was to see whether it lives has gone
    }
    this.#kept = { ...kept, next: null };
    if (kept.process !== null && isAlive(kept.process)) {
      this.#adopt(kept.process.pid);
    }
  }

  renewal(): Renewal | undefined {
    return this.#renewal;
  }

  /**
   * Starts another one beside it, with the same sockets, that takes its place once it has lived for a while; then the present
   * one is told to end, and killed after `deadlineMs`. If the new one does not live, nothing has changed. Returns why it
   * cannot, in words.
   */
  renew(declared: Instance, deadlineMs: number): string | undefined {
    const { run } = declared;
    if (run?.sockets !== 'handed' || this.#sockets.fds.length === 0 || this.#killMs !== undefined) {
      return run?.sockets === 'handed'
        ? `its process is ${this.#kept.state}`
        : 'its command opens its listeners itself (run.sockets: own): name the addresses of a new one that you start';
    }
    if (this.#kept.process === null || this.#next !== undefined || this.#former !== undefined) {
      return this.#kept.process === null ? `its process is ${this.#kept.state}` : 'that is under way';
    }
    try {
      checkRun(run);
      const cgroup = isLimited(run.limits) ? limitedCgroup(this.name, run.limits) : undefined;
      const child = this.#launch(run, cgroup);
      child.once('error', (error) => this.#renewed('FAILED', error.message));
      const id = child.pid === undefined ? undefined : processIdOf(child.pid);
      if (id === undefined) {
        this.#renewed('FAILED', 'the new one has ended at once');
        return undefined;
      }
      const sinceMs = this.#options.nowMs();
      const startedAt = new Date(Date.now()).toISOString();
      const next: Successor = {
        child,
        id,
        declared,
        sinceMs,
        startedAt,
        cgroup,
        deadlineMs,
        ended: undefined,
      };
      child.once('exit', (code, signal) => {
        next.ended = exitText(code, signal);
      });
      this.#next = next;
      this.#kept = { ...this.#kept, next: id };
      this.#write();
      this.#renewed('CHECKING', `pid ${id.pid} has to live for ${RUNNING_AFTER_MS / 1_000} s`);
    } catch (error) {
      this.#renewed('FAILED', (error as Error).message);
    }
    return undefined;
  }

  #renewed(phase: Renewal['phase'], detail: string): void {
    this.#renewal = { phase, detail };
    this.#options.log.info({ instance: this.name, phase, detail }, 'instance renewed');
  }

  /** Looks after the one that is to come, and the one that is to go. */
  #renewLook(nowMs: number): void {
    const next = this.#next;
    if (next?.ended !== undefined) {
      this.#next = undefined;
      const problem = `the new one has ended: ${next.ended}`;
      this.#kept = { ...this.#kept, next: null, hash: hashOf(next.declared), problem };
      this.#renewed('FAILED', problem);
    } else if (next !== undefined && nowMs - next.sinceMs >= RUNNING_AFTER_MS) {
      this.#promote(next, nowMs);
    }
    const former = this.#former;
    if (former === undefined) {
      return;
    }
    if (!isAlive(former.id)) {
      this.#former = undefined;
      this.#renewed('DONE', '');
    } else if (nowMs >= former.killMs) {
      this.#options.log.warn({ instance: this.name, pid: former.id.pid }, 'the former process is killed');
      signalGroup(former.id.pid, 'SIGKILL');
    }
  }

  #promote(next: Successor, nowMs: number): void {
    const { process } = this.#kept;
    this.#child?.removeAllListeners('exit');
    this.#next = undefined;
    this.#child = next.child;
    next.child.removeAllListeners('exit');
    next.child.once('exit', (code, signal) => this.#ended(exitText(code, signal)));
    this.#sinceMs = next.sinceMs;
    this.#oomKills = next.cgroup === undefined ? 0 : oomKills(next.cgroup);
    const { graceSeconds = 0, stopSeconds = 0, stopSignal = 'SIGTERM' } = next.declared.run ?? {};
    this.#kept = {
      ...this.#kept,
      state: 'RUNNING',
      process: next.id,
      next: null,
      hash: hashOf(next.declared),
      startedAt: next.startedAt,
      problem: '',
      cgroup: next.cgroup ?? null,
      graceSeconds,
      stopSeconds,
      stopSignal,
    };
    this.#write();
    this.#options.listening(); // the same sockets, of another process
    if (process !== null && isAlive(process)) {
      this.#former = { id: process, killMs: nowMs + next.deadlineMs };
      signalGroup(process.pid, stopSignal);
      this.#renewed('DRAINING', `pid ${process.pid} ends what it has open`);
    } else {
      this.#renewed('DONE', '');
    }
  }

  #adopt(pid: number): void {
    const { log, nowMs } = this.#options;
    this.#sinceMs = nowMs();
    this.#keepUntilMs = nowMs() + this.#kept.graceSeconds * 1_000;
    this.#oomKills = this.#kept.cgroup === null ? 0 : oomKills(this.#kept.cgroup);
    const missing = this.#sockets.takeBack(pid, this.#kept.handed);
    log.info({ instance: this.name, pid, missing }, 'instance taken over');
  }

  message(): ProcessMessage {
    return messageOf(this.#kept);
  }

  /**
   * One look. `declared`: undefined once it is not in the list any more. `wanted`: whether its apps have pods here;
   * undefined: nobody knows yet. Returns whether there is anything left to look after.
   */
  look(declared: Instance | undefined, wanted: boolean | undefined): boolean {
    const nowMs = this.#options.nowMs();
    this.#read(false);
    this.#renewLook(nowMs);
    const { process } = this.#kept;
    if (process !== null && this.#child === undefined && !isAlive(process)) {
      this.#ended('not known (it was adopted)');
    }
    const graceSeconds = declared?.run?.graceSeconds ?? this.#kept.graceSeconds;
    const needed = declared !== undefined && (wanted ?? this.#kept.process !== null);
    if (needed) {
      this.#keepUntilMs = nowMs + graceSeconds * 1_000;
    }
    const keep = needed || nowMs < this.#keepUntilMs;
    if (this.#kept.process === null) {
      if (declared?.run === undefined || !keep) {
        this.#sockets.close();
        this.#kept = { ...this.#kept, state: 'STOPPED', problem: '' };
        this.#backoffMs = FIRST_BACKOFF_MS;
        this.#retryMs = 0;
      } else if (nowMs >= this.#retryMs) {
        this.#start(declared);
      }
    } else if (this.#killMs !== undefined) {
      this.#killLate(nowMs);
    } else if (!keep) {
      this.#stop(nowMs);
    } else if (declared !== undefined && this.#next === undefined && this.#kept.hash !== hashOf(declared)) {
      this.#change(declared, nowMs);
    } else if (nowMs - this.#sinceMs >= RUNNING_AFTER_MS) {
      this.#kept = { ...this.#kept, state: 'RUNNING' };
      if (nowMs - this.#sinceMs >= STEADY_MS) {
        this.#backoffMs = FIRST_BACKOFF_MS;
      }
    }
    this.#write();
    return declared !== undefined || this.#kept.process !== null;
  }

  /** Another command, or another of what only a start can change: beside the present one, where that can be. */
  #change(declared: Instance, nowMs: number): void {
    const isSame = isDeepStrictEqual(textsOf(declared), this.#sockets.texts);
    const problem = isSame
      ? this.renew(declared, (declared.run?.stopSeconds ?? 0) * 1_000)
      : 'other addresses';
    if (problem !== undefined && this.#former === undefined) {
      this.#stop(nowMs);
    } else if (this.#renewal?.phase === 'FAILED') {
      this.#kept = { ...this.#kept, hash: hashOf(declared), problem: this.#renewal.detail };
    }
  }

  /** Of what is no longer declared and has ended. */
  remove(): void {
    this.close();
    this.#output.stdout.remove();
    this.#output.stderr.remove();
    rmSync(this.#file.path, { force: true });
  }

  /** The process goes on: for the next supervisor. */
  close(): void {
    this.#child?.removeAllListeners();
    if (this.#next !== undefined) {
      signalGroup(this.#next.id.pid, 'SIGKILL');
    }
    this.#sockets.close();
    this.#output.stdout.close();
    this.#output.stderr.close();
  }

  #start(declared: Instance): void {
    const { log, nowMs, listening } = this.#options;
    const { run } = declared;
    if (run === undefined) {
      return;
    }
    const { graceSeconds, stopSeconds, stopSignal } = run;
    this.#kept = { ...this.#kept, hash: hashOf(declared), graceSeconds, stopSeconds, stopSignal };
    try {
      checkRun(run);
      const cgroup = isLimited(run.limits) ? limitedCgroup(this.name, run.limits) : undefined;
      let opened = false;
      if (run.sockets === 'handed') {
        opened = this.#sockets.open(declared);
      } else {
        this.#sockets.close();
      }
      const child = this.#launch(run, cgroup);
      if (opened) {
        listening(); // not before: whoever looks now finds who holds them
      }
      child.once('error', (error) => this.#refused(new InstanceStartError('SPAWN_FAILED', error.message)));
      const id = child.pid === undefined ? undefined : processIdOf(child.pid);
      if (child.pid === undefined) {
        return; // its error comes in a moment
      }
      this.#child = child;
      this.#sinceMs = nowMs();
      this.#oomKills = cgroup === undefined ? 0 : oomKills(cgroup);
      this.#kept = {
        ...this.#kept,
        state: 'STARTING',
        // One that has ended already has no start time that anybody could find again.
        process: id ?? { pid: child.pid, startTime: 0 },
        startedAt: new Date(Date.now()).toISOString(),
        problem: '',
        handed: this.#sockets.texts,
        cgroup: cgroup ?? null,
      };
      child.once('exit', (code, signal) => this.#ended(exitText(code, signal)));
      log.info({ instance: this.name, pid: child.pid, restarts: this.#kept.restarts }, 'instance started');
    } catch (error) {
      this.#refused(error as Error);
    }
  }

  #launch(run: InstanceRun, cgroup: string | undefined): ChildProcess {
    const { stdout, stderr } = this.#output;
    return launch({ run, stdout: stdout.fd, stderr: stderr.fd, sockets: this.#sockets, cgroup });
  }

  #refused(error: Error): void {
    const lasting = error instanceof InstanceStartError && error.lasting;
    if (lasting) {
      this.#sockets.close(); // nobody will accept: the failure policy is for that
    }
    if (error.message !== this.#kept.problem) {
      this.#options.log.error({ instance: this.name, reason: error.message }, 'instance not started');
    }
    this.#kept = { ...this.#kept, state: lasting ? 'FAILED' : 'BACKOFF', problem: error.message };
    this.#backOff();
    this.#write();
  }

  #backOff(): void {
    this.#retryMs = this.#options.nowMs() + this.#backoffMs;
    this.#backoffMs = Math.min(this.#backoffMs * 2, LONGEST_BACKOFF_MS);
  }

  #stop(nowMs: number): void {
    const { process, stopSeconds, stopSignal } = this.#kept;
    this.#killMs = nowMs + stopSeconds * 1_000;
    this.#kept = { ...this.#kept, state: 'STOPPING' };
    if (process !== null) {
      this.#options.log.info({ instance: this.name, pid: process.pid }, 'instance is being stopped');
      signalGroup(process.pid, stopSignal);
    }
    if (this.#next !== undefined) {
      signalGroup(this.#next.id.pid, 'SIGKILL');
    }
  }

  #killLate(nowMs: number): void {
    const { process } = this.#kept;
    if (process !== null && this.#killMs !== undefined && nowMs >= this.#killMs) {
      this.#killMs = Number.POSITIVE_INFINITY;
      this.#options.log.warn({ instance: this.name, pid: process.pid }, 'instance killed: it did not stop');
      signalGroup(process.pid, 'SIGKILL');
    }
  }

  #ended(how: string): void {
    const { process, cgroup, restarts } = this.#kept;
    const { log, nowMs } = this.#options;
    if (process === null) {
      return;
    }
    if (this.#next !== undefined && this.#next.ended === undefined) {
      this.#promote(this.#next, nowMs());
      return;
    }
    // Its children have nobody who would tell them what to do, and may hold its sockets. A group's number is nobody's pid
    // as long as anybody is in it: one that is somebody else's now is not this group any more.
    if ((processIdOf(process.pid) ?? process).startTime === process.startTime) {
      signalGroup(process.pid, 'SIGKILL');
    }
    this.#read(true);
    const lastExit = cgroup !== null && oomKills(cgroup) > this.#oomKills ? 'out of memory' : how;
    if (cgroup !== null) {
      removeCgroup(cgroup);
    }
    const byItself = this.#killMs === undefined;
    log[byItself ? 'warn' : 'info']({ instance: this.name, pid: process.pid, lastExit }, 'instance ended');
    if (nowMs() - this.#sinceMs >= STEADY_MS) {
      this.#backoffMs = FIRST_BACKOFF_MS;
    }
    if (byItself) {
      this.#backOff();
    }
    this.#child = undefined;
    this.#killMs = undefined;
    this.#kept = {
      ...this.#kept,
      state: byItself ? 'BACKOFF' : 'STOPPED',
      process: null,
      startedAt: null,
      restarts: restarts + (byItself ? 1 : 0),
      lastExit,
      cgroup: null,
    };
    this.#write();
  }

  #read(ended: boolean): void {
    this.#output.stdout.read(ended);
    this.#output.stderr.read(ended);
  }

  #write(): void {
    const { stdout, stderr } = this.#output;
    const read = { stdout: stdout.offset, stderr: stderr.offset };
    this.#file.write(JSON.stringify({ ...this.#kept, read }));
  }
}

/** Of what only a start can change. */
function hashOf({ run, outbound, inbound }: Instance): string {
  const { graceSeconds: _grace, stopSeconds: _stop, stopSignal: _signal, ...rest } = run ?? {};
  return createHash('sha256')
    .update(JSON.stringify([rest, outbound.map(({ text }) => text), inbound.map(({ text }) => text)]))
    .digest('hex');
}

function exitText(code: number | null, signal: NodeJS.Signals | null): string {
  return signal ?? `exit code ${code}`;
}

function nothing(name: string): KeptState {
  return {
    name,
    state: 'STOPPED',
    process: null,
    hash: '',
    startedAt: null,
    restarts: 0,
    lastExit: '',
    problem: '',
    graceSeconds: 0,
    stopSeconds: 0,
    stopSignal: 'SIGTERM',
    next: null,
    handed: [],
    cgroup: null,
    read: { stdout: 0, stderr: 0 },
  };
}
