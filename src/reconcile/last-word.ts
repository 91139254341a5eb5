/**
 * What the authorities said last of a pod stays in force while another source still names it: one that is deleted by
 * force has lost its object, and the labels of its namespace with it, while its containers run on. The static file's word
 * does not: what is taken out of it is taken back.
 */

import { isConfirmed } from '../pods/confirmation.js';
import type { Pod, PodUid } from '../pods/pod.js';
import type { PodSource } from '../pods/source.js';

const TERMINATING =
  'terminating: its object is gone and its sandbox is not, so what was said of it last stays in force';

/** `note` where it is not the present word. */
export type Word = Pick<Pod, 'labels' | 'annotations' | 'owner'> & { readonly note?: string };

export class LastWords {
  readonly #authorities: readonly Pick<PodSource, 'name'>[];
  readonly #confirmed = new Map<PodUid, Pod>();

  constructor(authorities: readonly Pick<PodSource, 'name'>[]) {
    this.#authorities = authorities;
  }

  /** Whether an authority has told of it since it came. */
  has(uid: PodUid): boolean {
    return this.#confirmed.has(uid);
  }

  /** Whose word counts for the pod as the sources tell of it now. */
  of(pod: Pod): Word {
    if (isConfirmed(pod, this.#authorities)) {
      this.#confirmed.set(pod.uid, pod);
      return pod;
    }
    const said = this.#confirmed.get(pod.uid);
    const isTakenBack = !this.#authorities.some(({ name }) => said?.sources.includes(name));
    return said === undefined || isTakenBack ? pod : { ...said, note: TERMINATING };
  }

  forget(uid: PodUid): void {
    this.#confirmed.delete(uid);
  }
}
