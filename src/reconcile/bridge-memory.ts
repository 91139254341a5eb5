/**
 * What our program takes from a bridge's port the bridge never sees, and so it forgets where the pod is: after its ageing
 * time it would flood the proxy's answers to every port. What it has learnt there is renewed while the pod is intercepted.
 */

import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import type { BridgeFdb } from '../native/bridge-fdb.js';
import { isKernelError } from '../native/errors.js';
import type { LinkReader } from '../runtimes/location.js';
import type { PlannedEndpoint } from './planned-endpoint.js';

/** Addresses that a pod may have at one interface; one that makes up more has only these kept. */
const STATIONS = 16;
const EVERY_MS = 30_000;
/** The port has gone, or belongs to no bridge any more. */
const GONE: ReadonlySet<string> = new Set(['ENODEV', 'EINVAL', 'EOPNOTSUPP']);

export interface BridgeMemoryOptions {
  readonly fdb: Pick<BridgeFdb, 'renew'>;
  readonly links: Pick<LinkReader, 'hostLink'>;
  readonly nowMs: Clock;
  readonly log: Pick<Log, 'warn'>;
}

export class BridgeMemory {
  readonly #options: BridgeMemoryOptions;
  /** By ifindex of the bridge. */
  readonly #dueMs = new Map<number, number>();
  #hasFailed = false;

  constructor(options: BridgeMemoryOptions) {
    this.#options = options;
  }

  /** Renews what is due; called at every look, of which the shortest ageing time has to hold two. Never throws. */
  async renew(endpoints: readonly PlannedEndpoint[]): Promise<void> {
    const { links, nowMs } = this.#options;
    const ports = new Map<number, number[]>();
    for (const { at } of endpoints) {
      if (at.kind === 'bridge') {
        ports.set(at.bridge.index, [...(ports.get(at.bridge.index) ?? []), at.link.index]);
      }
    }
    for (const bridge of [...this.#dueMs.keys()].filter((index) => !ports.has(index))) {
      this.#dueMs.delete(bridge);
    }
    for (const [bridge, indexes] of ports) {
      if (nowMs() < (this.#dueMs.get(bridge) ?? 0)) {
        continue;
      }
      const ageingMs = (await links.hostLink(bridge))?.ageingMs ?? 0;
      if (ageingMs > 0) {
        this.#renewEach(indexes);
      }
      this.#dueMs.set(bridge, nowMs() + Math.min(EVERY_MS, ageingMs === 0 ? EVERY_MS : ageingMs / 3));
    }
  }

  #renewEach(ports: readonly number[]): void {
    for (const port of ports) {
      try {
        this.#options.fdb.renew(port, STATIONS);
      } catch (error) {
        if (!this.#hasFailed && !(isKernelError(error) && GONE.has(error.code))) {
          this.#hasFailed = true;
          this.#options.log.warn(
            { err: error, port },
            'a bridge cannot be told where a pod is: answers to it may be flooded to every port',
          );
        }
      }
    }
  }
}
