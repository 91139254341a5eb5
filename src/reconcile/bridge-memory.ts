/**
 * What our program takes from a bridge's port the bridge never sees, and so it forgets where the pod is: after its ageing
 * time it would flood the proxy's answers to every port. What it has learnt there is renewed while the pod is intercepted.
 */

import type { Clock } from '../base/clock.js';
import { inTurns } from '../base/in-turns.js';
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
  /** When, by ifindex of the bridge. */
  readonly #renewedMs = new Map<number, number>();
  #renewing = false;
  #hasFailed = false;

  constructor(options: BridgeMemoryOptions) {
    this.#options = options;
  }

  /**
   * Renews what is due; called at every look, of which the shortest ageing time has to hold two. Never rejects. Does nothing
   * while it is at it already.
   */
  async renew(endpoints: readonly PlannedEndpoint[]): Promise<void> {
    if (this.#renewing) {
      return;
    }
    this.#renewing = true;
    try {
      const ports = portsByBridge(endpoints);
      for (const bridge of [...this.#renewedMs.keys()].filter((index) => !ports.has(index))) {
        this.#renewedMs.delete(bridge);
      }
      for (const [bridge, indexes] of ports) {
        await this.#renewAt(bridge, indexes);
      }
    } catch (error) {
      this.#tell(error);
    } finally {
      this.#renewing = false;
    }
  }

  /** By the ageing time that the bridge has now. */
  async #renewAt(bridge: number, ports: readonly number[]): Promise<void> {
    const { links, nowMs, fdb } = this.#options;
    const ageingMs = (await links.hostLink(bridge))?.ageingMs ?? 0;
    const dueMs =
      (this.#renewedMs.get(bridge) ?? Number.NEGATIVE_INFINITY) + Math.min(EVERY_MS, ageingMs / 3);
    if (ageingMs === 0 || nowMs() < dueMs) {
      return;
    }
    this.#renewedMs.set(bridge, nowMs());
    // For each port the kernel goes through all that the bridge knows: 120 ms for 1,000 of them.
    await inTurns(ports, (port) => {
      try {
        fdb.renew(port, STATIONS);
      } catch (error) {
        this.#tell(error, port);
      }
    });
  }

  #tell(error: unknown, port?: number): void {
    if (!this.#hasFailed && !(isKernelError(error) && GONE.has(error.code))) {
      this.#hasFailed = true;
      this.#options.log.warn(
        { err: error, port },
        'a bridge cannot be told where a pod is: answers to it may be flooded to every port',
      );
    }
  }
}

function portsByBridge(endpoints: readonly PlannedEndpoint[]): Map<number, number[]> {
  const ports = new Map<number, number[]>();
  for (const { at } of endpoints) {
    if (at.kind === 'bridge') {
      const known = ports.get(at.bridge.index) ?? [];
      known.push(at.link.index);
      ports.set(at.bridge.index, known);
    }
  }
  return ports;
}
