/** What the pods of this node say, summed, and what becomes of it. */

import type { Config } from '../config/config.js';
import type { PodStore } from '../pods/pod-store.js';
import type { CapacityReport, TargetReport } from './report.js';
import { type AppNeed, appNeeds, type Need, needOf } from './sums.js';

export interface CapacityOptions {
  readonly config: Pick<Config, 'capacity' | 'interception'>;
  readonly store: Pick<PodStore, 'list' | 'revision'>;
  /** Of the container that the configuration names, where it does. */
  readonly target?: { report(): TargetReport };
}

export class Capacity {
  readonly #options: CapacityOptions;
  #summed: { readonly revision: number; readonly apps: readonly AppNeed[]; readonly total: Need } | undefined;

  constructor(options: CapacityOptions) {
    this.#options = options;
  }

  total(): Need {
    return this.#sums().total;
  }

  report(): CapacityReport {
    const { config, target } = this.#options;
    const { apps, total } = this.#sums();
    return { mode: config.capacity.mode, apps, total, target: target?.report() ?? null };
  }

  /** Anew only where a pod has changed. */
  #sums() {
    const { config, store } = this.#options;
    if (this.#summed?.revision !== store.revision) {
      const apps = appNeeds(store.list(), config.interception);
      this.#summed = { revision: store.revision, apps, total: needOf(apps) };
    }
    return this.#summed;
  }
}
