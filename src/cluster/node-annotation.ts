/** The annotation `nodesentry.io/status` on the agent's own node: a line for `kubectl get nodes` and for alerts. */

import type { Clock } from '../base/clock.js';
import type { EndpointStatus } from '../reconcile/status.js';
import type { OwnNode } from './own-node.js';

export const STATUS_ANNOTATION = 'nodesentry.io/status';

const EVERY_MS = 30_000;

export interface NodeAnnotationOptions {
  readonly node: OwnNode;
  readonly version: string;
  readonly ready: () => boolean;
  readonly statuses: () => readonly EndpointStatus[];
  readonly nowMs: Clock;
}

export class NodeAnnotation {
  readonly #options: NodeAnnotationOptions;
  readonly #startedMs: number;
  #written: { readonly text: string; readonly atMs: number } | undefined;

  constructor(options: NodeAnnotationOptions) {
    this.#options = options;
    this.#startedMs = options.nowMs();
  }

  /** Throws KubernetesError. */
  async step(signal: AbortSignal): Promise<void> {
    const { node, nowMs } = this.#options;
    if (!this.#isDue()) {
      return;
    }
    const text = this.#text();
    if (text !== this.#written?.text) {
      await node.patch(
        { kind: 'merge', patch: { metadata: { annotations: { [STATUS_ANNOTATION]: text } } } },
        signal,
      );
      this.#written = { text, atMs: nowMs() };
    }
  }

  /** The first one waits until the agent is ready, as the start of every agent would be told as trouble otherwise. */
  #isDue(): boolean {
    const { ready, nowMs } = this.#options;
    return (
      (this.#written === undefined && ready()) ||
      nowMs() - (this.#written?.atMs ?? this.#startedMs) >= EVERY_MS
    );
  }

  #text(): string {
    const { version, ready, statuses } = this.#options;
    const all = statuses();
    const count = (state: EndpointStatus['state']): number =>
      all.filter((status) => status.state === state).length;
    return JSON.stringify({
      version,
      ready: ready(),
      intercepted: count('INTERCEPTED'),
      outboundOnly: all.filter(({ state, inbound }) => state === 'INTERCEPTED' && !inbound).length,
      degraded: count('DEGRADED'),
      refused: count('REFUSED'),
      pending: count('PENDING'),
    });
  }
}
