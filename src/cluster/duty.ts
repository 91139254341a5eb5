/** One thing that is done for the API server: tried again for as long as it fails, and nobody waits for it. */

import { setTimeout as delay } from 'node:timers/promises';
import type { Log } from '../base/log.js';
import { KubernetesError } from '../pods/sources/kubernetes-client.js';

export interface DutyOptions {
  /** For messages: `events on pods`. */
  readonly what: string;
  /** Does what is due now. Rejects where it could not; what was not done is due again. */
  readonly step: (signal: AbortSignal) => Promise<void>;
  readonly log: Log;
  /** Default 1 000. */
  readonly everyMs?: number;
  /** After the first failure; doubled with each further one. Default 1 000, to 60 000. */
  readonly backoffFirstMs?: number;
  readonly backoffMaxMs?: number;
}

export class Duty {
  readonly #options: DutyOptions;
  #failures = 0;
  /** Logged last: the same again is not news, whichever object it is of. */
  #code: string | undefined;
  #problem: string | undefined;

  constructor(options: DutyOptions) {
    this.#options = options;
  }

  /** Why it fails; undefined while it does not. */
  get problem(): string | undefined {
    return this.#problem;
  }

  /** Goes on until `signal` aborts; resolves then. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        await this.#options.step(signal);
        this.#works();
      } catch (error) {
        if (!signal.aborted) {
          this.#failed(error);
        }
      }
      await delay(this.#pauseMs(), undefined, { signal, ref: false }).catch(() => undefined);
    }
  }

  #works(): void {
    if (this.#code !== undefined) {
      this.#options.log.info({}, `kubernetes: ${this.#options.what}: works again`);
    }
    this.#failures = 0;
    this.#code = undefined;
    this.#problem = undefined;
  }

  #failed(error: unknown): void {
    const { log, what } = this.#options;
    const code = error instanceof KubernetesError ? error.code : 'FAILED';
    this.#failures += 1;
    this.#problem = `${what}: ${error instanceof Error ? error.message : String(error)}`;
    if (code !== this.#code) {
      log.warn({ err: error }, `kubernetes: ${what}: fails; everything else goes on; trying again`);
    }
    this.#code = code;
  }

  /** With jitter, so that the agents of all nodes do not come back in step. */
  #pauseMs(): number {
    const { everyMs = 1_000, backoffFirstMs = 1_000, backoffMaxMs = 60_000 } = this.#options;
    if (this.#failures === 0) {
      return everyMs;
    }
    const mostMs = Math.min(backoffFirstMs * 2 ** Math.min(this.#failures - 1, 16), backoffMaxMs);
    return mostMs * (0.5 + Math.random() / 2);
  }
}
