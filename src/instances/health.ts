/**
 * Whether each instance's proxy still takes connections: not whether its process lives. Where no flow has been started for a
 * while, or one is not known to have been taken, the agent dials by the instance's own slot and sees whether somebody accepts.
 * An instance that does not is treated as one that is not there: its new flows meet the failure policy, and no other's.
 */

import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import type { ListenerProbe, ProbeState, ProbeTarget } from '../datapath/listener-probe.js';
import type { ListenerStatus } from '../datapath/listeners.js';

export interface HealthRule {
  /** How long after the last sign of life it is asked for another. 0: never. */
  readonly checkMs: number;
  /** How long a connection waits to be accepted before the instance counts as hung. */
  readonly failMs: number;
}

/** UNKNOWN: not asked yet. DOWN: nobody listens. */
export type HealthState = 'UNKNOWN' | 'ACCEPTING' | 'HUNG' | 'DOWN';

export interface Health {
  readonly state: HealthState;
  /** In words; empty where nothing is wrong. */
  readonly reason: string;
}

export interface CheckedGeneration {
  readonly name: string;
  readonly number: number;
  readonly listeners: readonly Pick<ListenerStatus, 'direction' | 'family' | 'adopted'>[];
  readonly rule: HealthRule;
  /** Whether anybody sends to it. */
  readonly isUsed: boolean;
}

export interface InstanceHealthOptions {
  /** How often `look` is called, in milliseconds. */
  readonly lookMs: number;
  readonly open: (target: ProbeTarget) => Pick<ListenerProbe, 'state' | 'close'>;
  /** Called when an instance hangs, or has come back. */
  readonly changed: (name: string, hangs: boolean) => void;
  readonly nowMs: Clock;
  readonly log: Pick<Log, 'info' | 'warn'>;
}

interface Watched {
  probe:
    | { readonly of: Pick<ListenerProbe, 'state' | 'close'>; sinceMs: number; last: ProbeState }
    | undefined;
  /** Of the last sign of life. */
  acceptedMs: number | undefined;
  turn: number;
  hangs: boolean;
  reason: string;
}

export class InstanceHealth {
  readonly #options: InstanceHealthOptions;
  readonly #watched = new Map<number, Watched>();
  #down: ReadonlySet<number> = new Set();
  #lookedMs: number | undefined;

  constructor(options: InstanceHealthOptions) {
    this.#options = options;
  }

  of(number: number): Health {
    if (this.#down.has(number)) {
      return { state: 'DOWN', reason: 'nobody listens' };
    }
    const watched = this.#watched.get(number);
    if (watched?.hangs === true) {
      return { state: 'HUNG', reason: watched.reason };
    }
    return { state: watched?.acceptedMs === undefined ? 'UNKNOWN' : 'ACCEPTING', reason: '' };
  }

  /** To be called every `lookMs`. */
  look(generations: readonly CheckedGeneration[]): void {
    this.#forgiveOwnSleep();
    const numbers = new Set(generations.map(({ number }) => number));
    for (const number of [...this.#watched.keys()].filter((known) => !numbers.has(known))) {
      this.#forget(number);
    }
    this.#down = new Set(
      generations
        .filter(({ listeners }) => !listeners.some(({ adopted }) => adopted))
        .map(({ number }) => number),
    );
    for (const generation of generations) {
      this.#lookAt(generation);
    }
  }

  /**
   * A look that is late by more than an interval: this process was stopped, or the machine was. What was answered meanwhile
   * has not been read yet, so nobody has kept us waiting; from now on it counts again.
   */
  #forgiveOwnSleep(): void {
    const { nowMs, lookMs } = this.#options;
    const [before, now] = [this.#lookedMs, nowMs()];
    this.#lookedMs = now;
    if (before === undefined || now - before <= 2 * lookMs) {
      return;
    }
    for (const { probe } of this.#watched.values()) {
      if (probe !== undefined) {
        probe.sinceMs = now;
      }
    }
  }

  close(): void {
    for (const number of [...this.#watched.keys()]) {
      this.#watched.get(number)?.probe?.of.close();
      this.#watched.delete(number);
    }
  }

  #lookAt(generation: CheckedGeneration): void {
    const { number, listeners, rule, isUsed } = generation;
    const adopted = listeners.filter((listener) => listener.adopted);
    const watched = this.#watched.get(number) ?? {
      probe: undefined,
      acceptedMs: undefined,
      turn: 0,
      hangs: false,
      reason: '',
    };
    this.#watched.set(number, watched);
    if (adopted.length === 0 || rule.checkMs === 0) {
      this.#drop(watched);
      this.#tell(generation, watched, false, '');
      watched.acceptedMs = undefined;
      return;
    }
    this.#judge(generation, watched);
    const now = this.#options.nowMs();
    const isDue = watched.acceptedMs === undefined || now - watched.acceptedMs >= rule.checkMs;
    if (watched.probe === undefined && isUsed && isDue) {
      const at = adopted[watched.turn % adopted.length];
      watched.turn += 1;
      if (at !== undefined) {
        const of = this.#options.open({ number, direction: at.direction, family: at.family });
        watched.probe = { of, sinceMs: now, last: 'dialling' };
      }
    }
  }

  #judge(generation: CheckedGeneration, watched: Watched): void {
    const { probe } = watched;
    if (probe === undefined) {
      return;
    }
    probe.last = probe.of.state();
    const now = this.#options.nowMs();
    if (probe.last === 'accepted') {
      this.#drop(watched);
      watched.acceptedMs = now;
      this.#tell(generation, watched, false, '');
    } else if (probe.last === 'gone') {
      this.#drop(watched); // its listener has just gone: the next look sees which there are
    } else if (now - probe.sinceMs >= generation.rule.failMs) {
      const what =
        probe.last === 'queued'
          ? 'a connection is not accepted'
          : 'no connection is let in, for too many wait to be accepted';
      this.#tell(generation, watched, true, `${what} since ${Math.round((now - probe.sinceMs) / 1_000)} s`);
    }
  }

  #tell({ name }: CheckedGeneration, watched: Watched, hangs: boolean, reason: string): void {
    watched.reason = reason;
    if (watched.hangs !== hangs) {
      watched.hangs = hangs;
      const { log, changed } = this.#options;
      if (hangs) {
        log.warn({ instance: name, reason }, 'instance hangs: new connections meet the failure policy');
      } else {
        log.info({ instance: name }, 'instance accepts connections again');
      }
      changed(name, hangs);
    }
  }

  #drop(watched: Watched): void {
    watched.probe?.of.close();
    watched.probe = undefined;
  }

  #forget(number: number): void {
    const watched = this.#watched.get(number);
    if (watched !== undefined) {
      this.#drop(watched);
      this.#watched.delete(number);
    }
  }
}
