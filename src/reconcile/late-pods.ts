/**
 * Pods that were intercepted without our CNI plugin having announced them: it was not in the chain when they started, and
 * what they sent before another source told of them may have gone past the proxy. docs/cni.md, "Pods that come late".
 */

import type { Log } from '../base/log.js';
import type { PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { Reconciler } from './reconciler.js';

export interface LatePodsOptions {
  readonly store: Pick<PodStore, 'get' | 'removed'>;
  readonly reconciler: Pick<Reconciler, 'onStatus' | 'statusOf' | 'caughtUp'>;
  /** Pods that an agent before us has intercepted: the first answer of a source may leave one of them out. */
  readonly before: Iterable<PodUid>;
  readonly log: Pick<Log, 'warn'>;
}

export class LatePods {
  readonly #options: LatePodsOptions;
  /** Pods that were there when the agent started, and those that have been judged: each is judged once. */
  readonly #judged: Set<PodUid>;
  /** Of the judged, those that no source names. One may be named again: an answer of a source was not whole. */
  readonly #gone = new Set<PodUid>();
  readonly #close: () => void;
  #count = 0;

  /** From before the first round: it is by that one that pods are known to have been there. */
  constructor(options: LatePodsOptions) {
    this.#options = options;
    this.#judged = new Set(options.before);
    this.#close = options.reconciler.onStatus((uid) => this.#look(uid));
  }

  /** Since the agent started. */
  get count(): number {
    return this.#count;
  }

  close(): void {
    this.#close();
  }

  #look(uid: PodUid): void {
    const { reconciler, store } = this.#options;
    const status = reconciler.statusOf(uid);
    const pod = store.get(uid);
    if (status === undefined || pod === undefined) {
      this.#forget(uid);
      return;
    }
    this.#gone.delete(uid);
    if (this.#judged.has(uid)) {
      return;
    }
    if (!reconciler.caughtUp() || pod.sources.includes('cni')) {
      this.#judged.add(uid);
    } else if (status.programmed) {
      this.#judged.add(uid);
      this.#count += 1;
      this.#options.log.warn(
        { pod: `${pod.namespace}/${pod.name}`, runtime: pod.runtime, sources: pod.sources },
        'the CNI plugin did not announce this pod: it is intercepted late, and its first connections may have gone past the proxy',
      );
    }
  }

  /** As long as the store remembers a pod, it may be the same one that comes again. */
  #forget(uid: PodUid): void {
    if (this.#judged.has(uid)) {
      this.#gone.add(uid);
    }
    for (const gone of this.#gone) {
      if (gone !== uid && this.#options.store.removed(gone) === undefined) {
        this.#gone.delete(gone);
        this.#judged.delete(gone);
      }
    }
  }
}
