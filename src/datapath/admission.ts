/** A pod that is about to start: waits until it is known what it is, and until its datapath is in place. */

import type { PodUid } from '../pods/pod.js';
import type { Reconciler } from './reconciler.js';
import type { EndpointStatus } from './status.js';

/**
 * ready: it may start. refused: it can never be intercepted. waiting: not within the time given, `reason` is what was
 * missing in the end.
 */
export type Admission =
  | { readonly kind: 'ready'; readonly state: 'INTERCEPTED' | 'NOT_ENROLLED' }
  | { readonly kind: 'refused'; readonly reason: string }
  | { readonly kind: 'waiting'; readonly reason: string };

export interface AdmissionOptions {
  readonly reconciler: Pick<Reconciler, 'reconcilePods' | 'statusOf' | 'onStatus'>;
  /** Why nothing can be said of the pod yet; undefined: all that decides is known. */
  readonly unknown: (uid: PodUid, signal: AbortSignal) => Promise<string | undefined>;
}

/** What nobody announces (a link that comes up, a source that is asked again) is looked for this often. */
const LOOK_MS = 50;

export class Admissions {
  readonly #options: AdmissionOptions;

  constructor(options: AdmissionOptions) {
    this.#options = options;
  }

  async admit(uid: PodUid, timeoutMs: number): Promise<Admission> {
    const deadline = AbortSignal.timeout(timeoutMs);
    for (;;) {
      const unknown = await this.#options.unknown(uid, deadline);
      let reason = unknown;
      if (unknown === undefined) {
        const changed = this.#nextStatus(uid, deadline);
        await this.#options.reconciler.reconcilePods([uid]);
        const status = this.#options.reconciler.statusOf(uid);
        const decision = status === undefined ? undefined : decide(status);
        if (decision !== undefined) {
          return decision;
        }
        reason = status?.reason ?? 'the pod is not known yet';
        await changed;
        const later = this.#options.reconciler.statusOf(uid);
        const laterDecision = later === undefined ? undefined : decide(later);
        if (laterDecision !== undefined) {
          return laterDecision;
        }
      } else {
        await this.#nextStatus(uid, deadline);
      }
      if (deadline.aborted) {
        return { kind: 'waiting', reason: reason ?? 'the pod is not known yet' };
      }
    }
  }

  /** Until something is told of the pod, or it is time for another look. */
  #nextStatus(uid: PodUid, deadline: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        unsubscribe();
        deadline.removeEventListener('abort', done);
        resolve();
      };
      const timer = setTimeout(done, LOOK_MS);
      const unsubscribe = this.#options.reconciler.onStatus((other) => {
        const status = this.#options.reconciler.statusOf(uid);
        if (other === uid && status !== undefined && decide(status) !== undefined) {
          done();
        }
      });
      deadline.addEventListener('abort', done, { once: true });
    });
  }
}

function decide({ state, reason = 'no reason was given' }: EndpointStatus): Admission | undefined {
  switch (state) {
    case 'INTERCEPTED':
    case 'NOT_ENROLLED':
      return { kind: 'ready', state };
    case 'REFUSED':
      return { kind: 'refused', reason };
    case 'DEGRADED':
    case 'PENDING':
      return undefined;
  }
}
