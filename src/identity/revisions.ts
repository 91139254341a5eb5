/** Waiting until the store knows as much as somebody has seen elsewhere: on a watch, or in an earlier answer. */

import type { PodStore } from '../pods/pod-store.js';
import { IdentityError } from './errors.js';

export interface AtLeast {
  readonly epoch: string;
  readonly revision: number;
  /** 0: not at all. */
  readonly waitMs: number;
}

type Store = Pick<PodStore, 'epoch' | 'revision' | 'subscribe'>;

const MOST_WAITING = 10_000;

export class Revisions {
  readonly #store: Store;
  readonly #mostWaiting: number;
  #waiting = 0;

  /** `mostWaiting` is for tests. */
  constructor(store: Store, mostWaiting = MOST_WAITING) {
    this.#store = store;
    this.#mostWaiting = mostWaiting;
  }

  get waiting(): number {
    return this.#waiting;
  }

  /** Rejects with IdentityError NOT_SYNCED: at once for another epoch, else after `waitMs`; and where `signal` aborts. */
  async reached({ epoch, revision, waitMs }: AtLeast, signal: AbortSignal): Promise<void> {
    const store = this.#store;
    if (epoch !== store.epoch) {
      throw new IdentityError(
        'NOT_SYNCED',
        `the epoch ${epoch} is another agent's, this one's is ${store.epoch}: what it told is void`,
      );
    }
    if (store.revision >= revision) {
      return;
    }
    if (waitMs > 0 && this.#waiting >= this.#mostWaiting) {
      throw new IdentityError(
        'NOT_SYNCED',
        `revision ${revision} is not reached yet, and too many wait for one`,
      );
    }
    if (waitMs > 0) {
      await this.#wait(revision, waitMs, signal);
    }
    if (store.revision < revision) {
      throw new IdentityError(
        'NOT_SYNCED',
        `revision ${revision} is not reached yet, ${store.revision} is${waitMs > 0 ? `, after ${waitMs} ms` : ''}`,
      );
    }
  }

  /** Until the revision is there, the time is over or the signal aborts. */
  async #wait(revision: number, waitMs: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) {
      return;
    }
    const cleanUp: (() => void)[] = [];
    this.#waiting += 1;
    await new Promise<void>((resolve) => {
      const end = () => resolve();
      const timer = setTimeout(end, waitMs);
      const unsubscribe = this.#store.subscribe(() => {
        if (this.#store.revision >= revision) {
          end();
        }
      });
      signal.addEventListener('abort', end, { once: true });
      cleanUp.push(
        unsubscribe,
        () => clearTimeout(timer),
        () => signal.removeEventListener('abort', end),
      );
    });
    this.#waiting -= 1;
    for (const undo of cleanUp) {
      undo();
    }
  }
}
