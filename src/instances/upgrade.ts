/**
 * A proxy's upgrade without a loss: the new one listens at addresses of its own beside the old one, is tried, takes a share of
 * the new flows if that is asked for, then all of them at once; the old one keeps what it has open until that ends or the
 * deadline comes, and is told to stop. Until all new flows go to the new one, whatever goes wrong leaves everything as it was.
 */

import { setTimeout as delay } from 'node:timers/promises';
import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import type { InstanceCounts } from '../datapath/generations.js';
import type { ListenerProbe, ProbeTarget } from '../datapath/listener-probe.js';
import type { ListenerStatus } from '../datapath/listeners.js';
import type { Addresses, ConfiguredInstance, GenerationNumber, InstanceGenerations } from './generations.js';

export interface UpgradeRequest extends Addresses {
  /** Of new flows, from 0 to 1, that the new one takes while it is observed; undefined: it takes all at once. */
  readonly canary: number | undefined;
  /** How long the new one has to listen and to accept. */
  readonly checkMs: number;
  /** How long it is observed as a canary. */
  readonly observeMs: number;
  /** How long the old one keeps what it has open. */
  readonly deadlineMs: number;
  /** Whether the old one is told to stop at the end (SIGTERM). */
  readonly stop: boolean;
}

export type UpgradePhase = 'CHECKING' | 'CANARY' | 'DRAINING' | 'DONE' | 'FAILED';

export interface UpgradeStatus {
  readonly instance: string;
  readonly phase: UpgradePhase;
  /** What goes on, or why it failed. */
  readonly detail: string;
  /** Unix time, milliseconds. */
  readonly startedMs: number;
  /** Of the new one's, while it is a canary. */
  readonly canary?: number;
  /** Connections that the old one still has, while it drains. */
  readonly open?: number;
}

export interface UpgradeParts {
  readonly generations: InstanceGenerations;
  /** Adopts what is wanted by now, and writes who takes new flows. Throws DatapathError. */
  readonly applied: () => Promise<void>;
  /** Of an instance and generation. */
  readonly listeners: (name: string, generation: GenerationNumber) => readonly ListenerStatus[];
  readonly probe: (target: ProbeTarget) => Pick<ListenerProbe, 'state' | 'close'>;
  readonly counts: (number: number) => InstanceCounts;
  readonly openAt: (number: number) => Promise<number>;
  /** Counts resets until it is closed; or says why it cannot. */
  readonly watchResets: () => { readonly link: { close(): void } } | { readonly problem: string };
  readonly terminate: (pid: number) => void;
  readonly nowMs: Clock;
  readonly log: Pick<Log, 'info' | 'warn'>;
}

/** Only while an upgrade is under way. */
const LOOK_MS = 100;
const DRAIN_LOOK_MS = 1_000;
/** So many resets at least, and so large a part of its new flows, and twice the old one's: then a canary is called back. */
const RESETS_LEAST = 3;
const RESETS_SHARE = 0.02;

class Refused extends Error {}

export class Upgrade {
  readonly #parts: UpgradeParts;
  readonly #instance: ConfiguredInstance;
  readonly #name: string;
  readonly #request: UpgradeRequest;
  readonly #stop = new AbortController();
  readonly #startedMs: number;
  #phase: UpgradePhase = 'CHECKING';
  #detail = '';
  #open: number | undefined;

  constructor(parts: UpgradeParts, instance: ConfiguredInstance, request: UpgradeRequest) {
    this.#parts = parts;
    this.#instance = instance;
    this.#name = instance.name;
    this.#request = request;
    this.#startedMs = parts.nowMs();
  }

  get isOver(): boolean {
    return this.#phase === 'DONE' || this.#phase === 'FAILED';
  }

  status(): UpgradeStatus {
    return {
      instance: this.#name,
      phase: this.#phase,
      detail: this.#detail,
      startedMs: Math.round(this.#startedMs),
      ...(this.#phase === 'CANARY' ? { canary: this.#request.canary ?? 0 } : {}),
      ...(this.#phase === 'DRAINING' && this.#open !== undefined ? { open: this.#open } : {}),
    };
  }

  /** Before all new flows go to the new one: everything stays as it was. After that: the old one is not waited for. */
  abort(): void {
    this.#stop.abort();
  }

  /** Never rejects. */
  async run(): Promise<void> {
    const { generations, applied, log } = this.#parts;
    const former = generations.servingOf(this.#name);
    const next = generations.begin(this.#instance, this.#request);
    try {
      await applied();
      await this.#check(next);
      if (this.#request.canary !== undefined) {
        await this.#observe(former, next, this.#request.canary);
      }
      const stopping = this.#pidsOf(former);
      generations.change(this.#name);
      await applied();
      log.info({ instance: this.#name }, 'instance upgraded: the new one takes all new flows');
      await this.#drain(former);
      this.#tellToStop(stopping, next);
      this.#to('DONE', '');
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      this.#to('FAILED', reason);
      log.warn({ instance: this.#name, reason }, 'instance not upgraded: it stays as it was');
    } finally {
      generations.end(this.#name);
      await applied().catch((error: unknown) =>
        log.warn({ err: error }, 'instances could not be put in place'),
      );
    }
  }

  #to(phase: UpgradePhase, detail: string): void {
    this.#phase = phase;
    this.#detail = detail;
  }

  async #pause(ms: number): Promise<void> {
    await delay(ms, undefined, { signal: this.#stop.signal }).catch(() => undefined);
  }

  #refuseIfAborted(): void {
    if (this.#stop.signal.aborted) {
      throw new Refused('called off');
    }
  }

  /** It has to listen at every address that it names, and to accept by each slot. */
  async #check(next: GenerationNumber): Promise<void> {
    const { generations, nowMs, probe } = this.#parts;
    const until = nowMs() + this.#request.checkMs;
    const number = generations.numberOf(this.#name, next);
    this.#to('CHECKING', 'waits for it to listen');
    for (;;) {
      const missing = this.#missingOf(next);
      if (missing === undefined) {
        break;
      }
      if (nowMs() >= until) {
        throw new Refused(missing);
      }
      await this.#pause(LOOK_MS);
      this.#refuseIfAborted();
    }
    this.#to('CHECKING', 'waits for it to accept');
    for (const { direction, family } of this.#adoptedBy(next)) {
      const trial = probe({ number, direction, family });
      try {
        while (trial.state() !== 'accepted') {
          if (nowMs() >= until || trial.state() === 'gone') {
            throw new Refused(`it does not accept a connection (${direction}, IPv${family})`);
          }
          await this.#pause(LOOK_MS / 4);
          this.#refuseIfAborted();
        }
      } finally {
        trial.close();
      }
    }
  }

  #missingOf(generation: GenerationNumber): string | undefined {
    const all = this.#parts.listeners(this.#name, generation);
    const missing = all.find(({ adopted, address }) => !adopted && address !== 'not configured');
    if (missing === undefined && all.length > 0) {
      return undefined;
    }
    return missing?.refused === undefined
      ? `nobody listens at ${missing?.address ?? 'its addresses'} (IPv${missing?.family ?? 4})`
      : `the listener at ${missing.address} is refused: ${missing.refused}`;
  }

  #adoptedBy(generation: GenerationNumber): readonly ListenerStatus[] {
    return this.#parts.listeners(this.#name, generation).filter(({ adopted }) => adopted);
  }

  #pidsOf(generation: GenerationNumber): ReadonlySet<number> {
    return new Set(this.#adoptedBy(generation).flatMap(({ pid }) => pid ?? []));
  }

  async #observe(former: GenerationNumber, next: GenerationNumber, share: number): Promise<void> {
    const { generations, applied, counts, watchResets, nowMs } = this.#parts;
    const watch = watchResets();
    const numbers = [former, next].map((generation) => generations.numberOf(this.#name, generation));
    const [oldNumber = 0, newNumber = 0] = numbers;
    const [oldBefore, newBefore] = [counts(oldNumber), counts(newNumber)];
    const until = nowMs() + this.#request.observeMs;
    try {
      generations.canary(this.#name, share);
      await applied();
      while (nowMs() < until) {
        const [was, is] = [since(counts(oldNumber), oldBefore), since(counts(newNumber), newBefore)];
        const watched = 'problem' in watch ? `; ${watch.problem}` : '';
        this.#to('CANARY', `${is.started} new flows, ${is.reset} resets${watched}`);
        const worst = Math.max(RESETS_SHARE, 2 * rateOf(was));
        if (is.reset >= RESETS_LEAST && rateOf(is) > worst) {
          throw new Refused(
            `it reset ${is.reset} of ${is.started} new flows; the old one ${was.reset} of ${was.started}`,
          );
        }
        const missing = this.#missingOf(next);
        if (missing !== undefined) {
          throw new Refused(missing);
        }
        await this.#pause(LOOK_MS);
        this.#refuseIfAborted();
      }
    } finally {
      if ('link' in watch) {
        watch.link.close();
      }
    }
  }

  async #drain(former: GenerationNumber): Promise<void> {
    const { generations, openAt, nowMs } = this.#parts;
    const number = generations.numberOf(this.#name, former);
    const until = nowMs() + this.#request.deadlineMs;
    for (;;) {
      this.#open = await openAt(number);
      this.#to('DRAINING', `the old one has ${this.#open} connections open`);
      if (this.#open === 0 || nowMs() >= until || this.#stop.signal.aborted) {
        return;
      }
      await this.#pause(Math.min(DRAIN_LOOK_MS, until - nowMs()));
    }
  }

  /** Not a process that has listeners of the new one as well: it has been reloaded, not exchanged. */
  #tellToStop(pids: ReadonlySet<number>, next: GenerationNumber): void {
    const { terminate, log } = this.#parts;
    const kept = this.#pidsOf(next);
    for (const pid of this.#request.stop ? [...pids].filter((candidate) => !kept.has(candidate)) : []) {
      log.info({ instance: this.#name, pid }, 'the old proxy of the instance is told to stop');
      terminate(pid);
    }
  }
}

function since(now: InstanceCounts, before: InstanceCounts): InstanceCounts {
  return { started: now.started - before.started, reset: now.reset - before.reset };
}

function rateOf({ started, reset }: InstanceCounts): number {
  return started === 0 ? 0 : reset / started;
}
