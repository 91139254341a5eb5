/** How late the event loop is: everything that waits for its turn waits that long. */

import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks';

/**
 * A timer that fires this often measures: 0.14 % of a core, so only while somebody asks. Whatever holds the loop for longer
 * than this is seen.
 */
const RESOLUTION_MS = 50;
/** Whoever has not asked for so long does not ask any more: Prometheus asks every minute or oftener. */
const ASKED_MS = 180_000;
const QUANTILES = [0.5, 0.99, 1] as const;

export class LoopDelay {
  readonly #histogram: IntervalHistogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });

  #unasked: NodeJS.Timeout | undefined;

  /** Seconds beyond the time at which the loop should have had its turn, since the last call. Zeros at the first one. */
  take(): Readonly<Record<string, number>> {
    this.#histogram.enable();
    clearTimeout(this.#unasked);
    this.#unasked = setTimeout(() => this.#histogram.disable(), ASKED_MS).unref();
    const late = (ns: number) => Math.max(0, ns / 1e9 - RESOLUTION_MS / 1e3);
    const taken = QUANTILES.map((quantile) => {
      const ns = quantile === 1 ? this.#histogram.max : this.#histogram.percentile(quantile * 100);
      return [String(quantile), this.#histogram.count === 0 ? 0 : late(ns)] as const;
    });
    this.#histogram.reset();
    return Object.fromEntries(taken);
  }

  close(): void {
    clearTimeout(this.#unasked);
    this.#histogram.disable();
  }
}
