/** Keeps the target's container at what the pods say; or, where it may only report, looks at it. */

import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import type { CapacityConfig, CapacityTarget } from '../config/config.js';
import { plus, type Resources, resourcesText } from '../pods/quantity.js';
import type { TargetContainer } from './container.js';
import { Plan, wantedOf } from './plan.js';
import type { Allotments, TargetReport } from './report.js';
import type { TargetApi } from './target.js';

const LOOK_MS = 10_000;
/** While the kubelet is at it. */
const LOOK_SOON_MS = 1_000;

export interface ResizerOptions {
  readonly config: CapacityConfig & { readonly target: CapacityTarget };
  readonly api: Pick<TargetApi, 'find' | 'resize'>;
  /** Of the pods of this node; undefined before all sources have told theirs. */
  readonly sum: () => Resources | undefined;
  /** Memory that the processes of a container hold, bytes; undefined where it cannot be read. */
  readonly usedBytes: (containerId: string) => number | undefined;
  readonly nowMs: Clock;
  readonly unixMs: Clock;
  readonly log: Log;
}

export class Resizer {
  readonly #options: ResizerOptions;
  readonly #plan: Plan;
  #seen: TargetContainer | undefined;
  #usedBytes: number | undefined;
  #failure = '';
  #lastResize: TargetReport['lastResize'] = null;
  #lookedAt: Resources | undefined;
  #nextMs = Number.NEGATIVE_INFINITY;
  #told = '';

  constructor(options: ResizerOptions) {
    this.#options = options;
    this.#plan = new Plan(options.config, options.nowMs);
  }

  /** Does what is due. Throws KubernetesError and TargetError. */
  async step(signal: AbortSignal): Promise<void> {
    const { sum, nowMs } = this.#options;
    const need = sum();
    if (need === undefined || (isSame(need, this.#lookedAt) && nowMs() < this.#nextMs)) {
      return;
    }
    try {
      await this.#look(need, signal);
      this.#failure = '';
      this.#lookedAt = need;
      const soonMs = this.report().state === 'RESIZING' ? LOOK_SOON_MS : LOOK_MS;
      this.#nextMs = Math.min(nowMs() + soonMs, this.#plan.dueMs ?? Number.POSITIVE_INFINITY);
    } catch (error) {
      this.#failure = error instanceof Error ? error.message : String(error);
      this.#nextMs = Number.NEGATIVE_INFINITY;
      throw error;
    } finally {
      this.#tell();
    }
  }

  async #look(need: Resources, signal: AbortSignal): Promise<void> {
    const { config, api, usedBytes, unixMs, log } = this.#options;
    const container = await api.find(signal);
    this.#seen = container;
    this.#usedBytes = usedBytes(container.id);
    const next = this.#plan.next(container, wantedOf(need, config), this.#usedBytes);
    if (config.mode === 'report' || next === undefined) {
      return;
    }
    await api.resize(container.podName, next, signal);
    this.#seen = { ...container, now: next };
    this.#lastResize = { ...next, atMs: unixMs() };
    log.info({ pod: container.podName, from: container.now, to: next }, 'capacity: the proxy is resized');
  }

  report(): TargetReport {
    const { config, sum } = this.#options;
    const need = sum();
    const seen = this.#seen;
    return {
      ...config.target,
      ...this.#state(need),
      podName: seen?.podName ?? '',
      now: seen?.now ?? null,
      actual: seen?.actual ?? null,
      usedMemoryBytes: this.#usedBytes ?? null,
      wanted: wantedOf(need ?? { cpuMillis: 0, memoryBytes: 0 }, config),
      lastResize: this.#lastResize,
    };
  }

  #state(need: Resources | undefined): Pick<TargetReport, 'state' | 'reason'> {
    const { config } = this.#options;
    const seen = this.#seen;
    if (this.#failure !== '') {
      return { state: 'DEGRADED', reason: this.#failure };
    }
    if (need === undefined || seen === undefined) {
      return { state: 'UNKNOWN', reason: 'not looked at yet' };
    }
    const all = plus(config.base, need);
    const wanted = wantedOf(need, config);
    if (!isSame(all, wanted)) {
      const reason = `${resourcesText(all)} is needed, which is above capacity.limit: no more than ${resourcesText(wanted)} is asked for`;
      return { state: 'DEGRADED', reason };
    }
    if (seen.refused !== '') {
      return { state: 'DEGRADED', reason: `the kubelet does not resize it: ${seen.refused}` };
    }
    if (config.mode === 'report' && isLess(seen.now, wanted)) {
      return {
        state: 'DEGRADED',
        reason: 'its requests are less than is wanted, and capacity.mode is report',
      };
    }
    const isCarriedOut = seen.actual === undefined || isEqual(seen.actual, seen.now);
    return seen.resizing || !isCarriedOut
      ? { state: 'RESIZING', reason: 'the kubelet has not carried it out yet' }
      : { state: 'FITS', reason: '' };
  }

  /** Once, however long it lasts; of a failure its caller tells. */
  #tell(): void {
    const { state, reason } = this.report();
    const text = state === 'DEGRADED' && this.#failure === '' ? reason : '';
    if (text !== this.#told && text !== '') {
      this.#options.log.warn({ state }, `capacity: ${text}`);
    } else if (text !== this.#told) {
      this.#options.log.info({ state }, 'capacity: that is over');
    }
    this.#told = text;
  }
}

function isSame(a: Resources, b: Resources | undefined): boolean {
  return a.cpuMillis === b?.cpuMillis && a.memoryBytes === b.memoryBytes;
}

function isLess({ requests }: Allotments, wanted: Resources): boolean {
  return (requests.cpuMillis ?? 0) < wanted.cpuMillis || (requests.memoryBytes ?? 0) < wanted.memoryBytes;
}

function isEqual(a: Allotments, b: Allotments): boolean {
  return (['requests', 'limits'] as const).every(
    (kind) => a[kind].cpuMillis === b[kind].cpuMillis && a[kind].memoryBytes === b[kind].memoryBytes,
  );
}
