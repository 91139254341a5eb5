/** A pod that is about to start: waits until it is known what it is, and until its datapath is in place. */

import { setTimeout as delay } from 'node:timers/promises';
import type { PodUid } from '../pods/pod.js';
import type { Reconciler } from './reconciler.js';
import type { StartingPods, StartTimes } from './starting-pods.js';
import type { EndpointStatus } from './status.js';

/**
 * ready: it may start. refused: it can never be intercepted. waiting: not within the time given, `reason` is what was
 * missing in the end.
 */
export type Admission =
  | { readonly kind: 'ready'; readonly state: 'INTERCEPTED' | 'OBSERVED' | 'DRAINED' | 'NOT_ENROLLED' }
  | { readonly kind: 'refused'; readonly reason: string }
  | { readonly kind: 'waiting'; readonly reason: string };

export interface AdmissionOptions {
  readonly reconciler: Pick<Reconciler, 'reconcilePods' | 'statusOf' | 'onStatus'>;
  /** Why nothing can be said of the pod yet; undefined: all that decides is known. */
  readonly unknown: (uid: PodUid, signal: AbortSignal) => Promise<string | undefined>;
  /** Holds the pods that are waiting here, which have no process yet. */
  readonly starting: Pick<StartingPods, 'add' | 'ended' | 'delete'>;
  /** Of each pod that has been admitted, when its answer is known. */
  readonly timed?: ((uid: PodUid, times: StartTimes) => void) | undefined;
}

/** What nobody announces (a link that comes up, a source that is asked again) is looked for this often. */
const LOOK_MS = 50;

export class Admissions {
  readonly #options: AdmissionOptions;

  constructor(options: AdmissionOptions) {
    this.#options = options;
  }

  /**
   * For a pod that has no process yet. `uidOf` is asked again and again: its UID may become known while it waits.
   * `sinceMs`, of performance.now: since when it does.
   */
  async admit(uidOf: () => PodUid, timeoutMs: number, sinceMs = performance.now()): Promise<Admission> {
    const { starting, timed } = this.#options;
    const uids = new Set<PodUid>();
    const uidOfStarting = () => {
      const uid = uidOf();
      uids.add(uid);
      starting.add(uid, sinceMs);
      starting.ended(uid, 'writing');
      return uid;
    };
    try {
      return await this.check(uidOfStarting, timeoutMs);
    } finally {
      for (const uid of uids) {
        starting.ended(uid, 'proving');
        const times = starting.delete(uid);
        timed?.(uid, times);
      }
    }
  }

  /** The same of a pod that runs. */
  async check(uidOf: () => PodUid, timeoutMs: number): Promise<Admission> {
    const deadline = AbortSignal.timeout(timeoutMs);
    for (;;) {
      const uid = uidOf();
      let reason = await this.#options.unknown(uid, deadline);
      if (reason === undefined && uidOf() !== uid) {
        continue;
      }
      if (reason === undefined) {
        this.#options.starting.ended(uid, 'confirming');
        const { status, failure } = await this.#look(uid, deadline);
        const decision = status === undefined ? undefined : decide(status);
        if (decision !== undefined) {
          return decision;
        }
        reason = failure ?? status?.reason ?? 'the pod is not known yet';
      } else {
        await this.#pause(deadline);
      }
      if (deadline.aborted) {
        return { kind: 'waiting', reason };
      }
    }
  }

  /**
   * Has the pod looked at now. Returns at once when that comes to a decision, and else what it came to after a while.
   */
  async #look(
    uid: PodUid,
    deadline: AbortSignal,
  ): Promise<{ readonly status?: EndpointStatus | undefined; readonly failure?: string | undefined }> {
    const { reconciler } = this.#options;
    const pause = new AbortController();
    let status: EndpointStatus | undefined;
    let failure: string | undefined;
    const unsubscribe = reconciler.onStatus((other) => {
      if (other === uid) {
        status = reconciler.statusOf(uid);
        if (status !== undefined && decide(status) !== undefined) {
          pause.abort();
        }
      }
    });
    try {
      const round = reconciler.reconcilePods([uid]);
      // Looked at again after the pause, not at once: what failed now would most likely fail again.
      round.catch((error: unknown) => {
        failure = `looking at the pod failed: ${error instanceof Error ? error.message : String(error)}`;
      });
      await this.#pause(AbortSignal.any([pause.signal, deadline]));
      return { status, failure };
    } finally {
      unsubscribe();
    }
  }

  async #pause(until: AbortSignal): Promise<void> {
    await delay(LOOK_MS, undefined, { signal: until }).catch(() => undefined);
  }
}

function decide({ state, reason = 'no reason was given' }: EndpointStatus): Admission | undefined {
  switch (state) {
    case 'INTERCEPTED':
    case 'OBSERVED':
    case 'DRAINED':
    case 'NOT_ENROLLED':
      return { kind: 'ready', state };
    case 'REFUSED':
      return { kind: 'refused', reason };
    case 'DEGRADED':
    case 'PENDING':
      return undefined;
  }
}
