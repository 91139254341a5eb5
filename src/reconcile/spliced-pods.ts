/** Which pods are spliced: decided from what is known of them, written where anything of it has changed. */

import type { Log } from '../base/log.js';
import type { Splice, SpliceCounts, SplicedPod } from '../datapath/splice.js';
import { type SpliceGround, type SpliceStatus, spliceStatus } from '../datapath/splice-choice.js';
import { type InterceptionDefaults, interceptionOf } from '../pods/annotations.js';
import type { Pod, PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { EndpointStatus } from './status.js';

export interface SplicedPodsOptions {
  readonly splice: Pick<Splice, 'ensure' | 'problem' | 'counts'>;
  readonly mode: SpliceGround['mode'];
  /** Tried once, and only where somebody may want it. */
  readonly trial: () => Pick<SpliceGround, 'flaws' | 'problem'>;
  readonly store: Pick<PodStore, 'list' | 'get'>;
  readonly statusOf: (uid: PodUid) => EndpointStatus | undefined;
  readonly defaults: InterceptionDefaults;
  /** Of the network namespace at this path; undefined where none is. */
  readonly netnsCookieAt: (path: string) => bigint | undefined;
  readonly log: Pick<Log, 'info' | 'warn'>;
}

/** The splice on this node. */
export interface SpliceReport extends SpliceCounts {
  readonly mode: SpliceGround['mode'];
  readonly pods: number;
  /** Why no pod has it, whatever it asks for; empty where pods can. */
  readonly problem: string;
  /** What this kernel gets wrong, in words: why only pods that ask for it have it. */
  readonly flaws: readonly string[];
}

export class SplicedPods {
  readonly #options: SplicedPodsOptions;
  readonly #cookies = new Map<PodUid, { readonly netns: string; readonly cookie: bigint }>();
  #ground: SpliceGround | undefined;
  #spliced: ReadonlySet<PodUid> = new Set();
  #isDue = true;
  #problem: string | undefined;

  constructor(options: SplicedPodsOptions) {
    this.#options = options;
  }

  /** Of a pod, or of what it says, or of its interception: the next round looks again. */
  changed(): void {
    this.#isDue = true;
  }

  /** Once a round. Idempotent; never throws: without it all goes by TCP. */
  ensure(): void {
    if (!this.#isDue && this.#spliced.size > 0) {
      return;
    }
    const { splice, store, log } = this.#options;
    const rows = new Map<PodUid, SplicedPod>();
    let isComplete = true;
    try {
      for (const pod of this.#isDue ? store.list() : []) {
        if (this.#wants(pod).used) {
          const row = this.#rowOf(pod);
          isComplete &&= row !== undefined;
          if (row !== undefined) {
            rows.set(pod.uid, row);
          }
        }
      }
      if (splice.ensure([...rows.values()])) {
        log.info({ pods: rows.size }, 'the splice is loaded');
      }
      this.#problem = undefined;
      this.#isDue = !isComplete;
      this.#spliced = new Set(splice.problem === undefined ? rows.keys() : []);
    } catch (error) {
      const problem = error instanceof Error ? error.message : String(error);
      if (problem !== this.#problem) {
        log.warn({ reason: problem }, 'not every pod that is to be spliced is');
      }
      this.#problem = problem;
    }
    for (const uid of this.#cookies.keys()) {
      if (!rows.has(uid)) {
        this.#cookies.delete(uid);
      }
    }
  }

  statusOf(uid: PodUid): SpliceStatus {
    const pod = this.#options.store.get(uid);
    if (pod === undefined) {
      return { used: false, reason: 'the pod has gone' };
    }
    const wanted = this.#wants(pod);
    return wanted.used && !this.#spliced.has(uid) ? { used: false, reason: 'not in place yet' } : wanted;
  }

  report(): SpliceReport {
    const { mode, flaws, problem } = this.#known();
    const { splice } = this.#options;
    return {
      mode,
      pods: this.#spliced.size,
      problem: this.#problem ?? splice.problem ?? problem ?? '',
      flaws,
      ...splice.counts(),
    };
  }

  #wants(pod: Pod): SpliceStatus {
    const { statusOf, defaults, splice } = this.#options;
    const ground = this.#known();
    const endpoint = statusOf(pod.uid);
    return spliceStatus(
      pod,
      endpoint?.state === 'INTERCEPTED' && endpoint.interfaces.length > 0,
      ground.mode === 'disabled' ? undefined : interceptionOf(pod, defaults).splice,
      { ...ground, problem: splice.problem ?? ground.problem },
    );
  }

  #known(): SpliceGround {
    const { mode, trial } = this.#options;
    this.#ground ??= { mode, ...(mode === 'disabled' ? { flaws: [], problem: undefined } : trial()) };
    return this.#ground;
  }

  #rowOf({ uid, netns }: Pod): SplicedPod | undefined {
    const ifindex = this.#options.statusOf(uid)?.interfaces[0]?.ifindex;
    if (netns === undefined || ifindex === undefined) {
      return undefined;
    }
    const known = this.#cookies.get(uid);
    const cookie = known?.netns === netns ? known.cookie : this.#options.netnsCookieAt(netns);
    if (cookie === undefined) {
      return undefined;
    }
    this.#cookies.set(uid, { netns, cookie });
    return { netnsCookie: cookie, ifindex };
  }
}
