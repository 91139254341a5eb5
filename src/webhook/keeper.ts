/** Keeps the certificates: made in time, shared by the replicas, trusted before they are served. */

import { setTimeout as pause } from 'node:timers/promises';
import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import { KubernetesError } from '../pods/sources/kubernetes-client.js';
import { type Generation, makeGeneration } from './certificates.js';
import type { Stored, WebhookCluster } from './cluster.js';
import { isDue, kept, type RotationTerms, served } from './rotation.js';

export interface KeeperOptions {
  readonly cluster: Pick<WebhookCluster, 'read' | 'write' | 'publish'>;
  /** DNS names and addresses of the server. */
  readonly names: readonly string[];
  readonly terms: RotationTerms;
  readonly nowMs: Clock;
  readonly log: Log;
  /** Told of the first one and of every change. */
  readonly onServed: (generation: Generation) => void;
}

const RETRY_MS = 2_000;
const TRIES = 5;

export class CertificateKeeper {
  readonly #options: KeeperOptions;
  #published: ReadonlySet<string> = new Set();
  #served: Generation | undefined;
  #lookedMs = Number.NEGATIVE_INFINITY;

  constructor(options: KeeperOptions) {
    this.#options = options;
  }

  /** Whether API servers trust what is served: after a time without a look, others may have moved on. */
  get ready(): boolean {
    const { nowMs, terms } = this.#options;
    return this.#served !== undefined && nowMs() - this.#lookedMs < terms.spreadMs;
  }

  /** One look at the cluster, and what follows from it. Throws KubernetesError. */
  async round(signal: AbortSignal): Promise<void> {
    const { cluster, nowMs, terms } = this.#options;
    const { generations } = await this.#current(signal);
    const trusted = kept(generations, nowMs(), terms).map(({ authority }) => authority);
    await cluster.publish(trusted, signal);
    this.#published = new Set(trusted);
    this.#lookedMs = nowMs();
    this.#serve(generations);
  }

  /** Rounds until `signal` aborts. What fails is told and tried again; what is served goes on. */
  async run(signal: AbortSignal): Promise<void> {
    const { terms, log } = this.#options;
    while (!signal.aborted) {
      const waitMs = await this.round(signal).then(
        () => terms.roundMs,
        (error: unknown) => {
          if (!signal.aborted) {
            log.warn({ err: error }, 'webhook: the certificates cannot be kept up');
          }
          return RETRY_MS;
        },
      );
      await pause(waitMs, undefined, { signal }).catch(() => undefined);
    }
  }

  async #current(signal: AbortSignal): Promise<Stored> {
    const { cluster, names, nowMs, terms, log } = this.#options;
    for (let attempt = 1; ; attempt++) {
      const stored = await cluster.read(signal);
      const worthKeeping = kept(stored.generations, nowMs(), terms);
      if (!isDue(stored.generations, nowMs(), terms)) {
        return stored;
      }
      const made = await makeGeneration(names, nowMs(), terms.lifetimeMs);
      try {
        const written = await cluster.write([...worthKeeping, made], stored.version, signal);
        log.info({ names, ends: new Date(made.endsMs).toISOString() }, 'webhook: a new certificate');
        return written;
      } catch (error) {
        const isBeaten = error instanceof KubernetesError && error.code === 'CONFLICT';
        if (!isBeaten || attempt === TRIES) {
          throw error;
        }
      }
    }
  }

  #serve(generations: readonly Generation[]): void {
    const { nowMs, terms, onServed } = this.#options;
    const chosen = served(generations, this.#published, nowMs(), terms);
    if (chosen !== undefined && chosen.authority !== this.#served?.authority) {
      this.#served = chosen;
      onServed(chosen);
    }
  }
}
