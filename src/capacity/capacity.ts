/** What the pods of this node say, summed, and what becomes of it. */

import type { Config } from '../config/config.js';
import type { PodStore } from '../pods/pod-store.js';
import type { CapacityReport, TargetReport } from './report.js';
import { appNeeds, needOf } from './sums.js';

export interface CapacityOptions {
  readonly config: Pick<Config, 'capacity' | 'interception'>;
  readonly store: Pick<PodStore, 'list'>;
  /** Of the container that the configuration names, where it does. */
  readonly target?: { report(): TargetReport };
}

export class Capacity {
  readonly #options: CapacityOptions;

  constructor(options: CapacityOptions) {
    this.#options = options;
  }

  report(): CapacityReport {
    const { config, store, target } = this.#options;
    const apps = appNeeds(store.list(), config.interception);
    return { mode: config.capacity.mode, apps, total: needOf(apps), target: target?.report() ?? null };
  }
}
