/**
 * What pods were before they went. The store has four words about going, and each means one thing:
 * - told before: what a source told before the agent was started anew. Nothing has gone, the source is only late.
 * - departed: one of the sources that knew the pod has dropped it, another still names it. The pod lives.
 * - the change `remove`: the last source has dropped the pod. Listeners hear of it once.
 * - removed: the pod from then on.
 * Departed and removed pods are remembered here, each for a time that is configured or until it is back.
 */

import type { Clock } from '../base/clock.js';
import type { Pod, PodUid } from './pod.js';

/**
 * How long a pod that has gone is remembered: its name here, its row in the kernel, its flows by identity. What
 * `identity.rememberSeconds` is where nobody sets it.
 */
export const REMEMBERED_MS = 60_000;

export interface GonePod {
  /** As it was before it went. */
  readonly pod: Pod;
  /** Unix time, milliseconds. */
  readonly atMs: number;
}

type Gone = GonePod & { readonly kind: 'departed' | 'removed' };

export class GonePods {
  readonly #nowMs: Clock;
  readonly #rememberMs: number;
  /** In the order of their going. */
  readonly #gone = new Map<PodUid, Gone>();

  constructor(nowMs: Clock, rememberMs = REMEMBERED_MS) {
    this.#nowMs = nowMs;
    this.#rememberMs = rememberMs;
  }

  /** A pod that the last source dropped within that time, and that did not come back. */
  removed(uid: PodUid): GonePod | undefined {
    return this.#find(uid, 'removed');
  }

  /** A live pod as it was before one of its sources dropped it, within that time. */
  departed(uid: PodUid): GonePod | undefined {
    return this.#find(uid, 'departed');
  }

  /** What the sources say of a pod has changed; undefined where none names it. */
  note(uid: PodUid, before: Pod | undefined, after: Pod | undefined): void {
    const known = this.#gone.get(uid);
    if (before === undefined) {
      this.#gone.delete(uid);
    } else if (after === undefined) {
      // What the last source to let go of it knew can be the least: the network, and no name.
      this.#remember('removed', known?.pod ?? before);
    } else if (known === undefined && !has(after, before.sources)) {
      this.#remember('departed', before);
    } else if (known !== undefined && has(after, known.pod.sources)) {
      // The first departure has most to say, so it stays until all are back.
      this.#gone.delete(uid);
    }
  }

  /** They stand in the order of their going, so the first young one ends the search. */
  forgetOld(): void {
    const oldestMs = this.#nowMs() - this.#rememberMs;
    for (const [uid, { atMs }] of this.#gone) {
      if (atMs > oldestMs) {
        break;
      }
      this.#gone.delete(uid);
    }
  }

  #find(uid: PodUid, kind: Gone['kind']): GonePod | undefined {
    this.forgetOld();
    const gone = this.#gone.get(uid);
    return gone?.kind === kind ? gone : undefined;
  }

  #remember(kind: Gone['kind'], pod: Pod): void {
    // Set anew, it stands last.
    this.#gone.delete(pod.uid);
    this.#gone.set(pod.uid, { kind, pod, atMs: this.#nowMs() });
  }
}

function has(pod: Pod, sources: Pod['sources']): boolean {
  return sources.every((name) => pod.sources.includes(name));
}
