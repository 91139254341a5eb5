/** Takes away the taint that keeps pods off a node until its agent is ready. Whoever registers the node puts it on. */

import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import { KubernetesError } from '../pods/sources/kubernetes-client.js';
import type { OwnNode } from './own-node.js';

export const STARTUP_TAINT = 'nodesentry.io/agent-not-ready';

/** A node that is registered anew has its taint again. */
const LOOK_AGAIN_MS = 300_000;
const ATTEMPTS = 5;

export interface StartupTaintOptions {
  readonly node: OwnNode;
  readonly ready: () => boolean;
  readonly log: Log;
  readonly nowMs: Clock;
}

export class StartupTaint {
  readonly #options: StartupTaintOptions;
  #nextMs = Number.NEGATIVE_INFINITY;

  constructor(options: StartupTaintOptions) {
    this.#options = options;
  }

  /** Throws KubernetesError where it could not be taken away. */
  async step(signal: AbortSignal): Promise<void> {
    const { ready, nowMs } = this.#options;
    if (!ready() || nowMs() < this.#nextMs) {
      return;
    }
    await this.#remove(signal);
    this.#nextMs = nowMs() + LOOK_AGAIN_MS;
  }

  async #remove(signal: AbortSignal): Promise<void> {
    const { node, log } = this.#options;
    for (let attempt = 1; ; attempt++) {
      const taints = await node.taints(signal);
      const others = taints.filter(({ key }) => key !== STARTUP_TAINT);
      if (others.length === taints.length) {
        return;
      }
      // A list can only be replaced as a whole: the test sees to it that no taint of somebody else's is lost.
      const patch = [
        { op: 'test', path: '/spec/taints', value: taints },
        { op: 'replace', path: '/spec/taints', value: others },
      ];
      try {
        await node.patch({ kind: 'json', patch }, signal);
        log.info({ taint: STARTUP_TAINT }, 'kubernetes: ready, the startup taint is taken off this node');
        return;
      } catch (error) {
        const isChanged =
          error instanceof KubernetesError && (error.code === 'REJECTED' || error.code === 'CONFLICT');
        if (!isChanged || attempt === ATTEMPTS) {
          throw error;
        }
      }
    }
  }
}
