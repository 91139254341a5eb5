/** What a watcher of the identities is told, and whom it tells it to. */

import type { PodUid } from '../pods/pod.js';
import type { Workload } from './workload.js';

interface At {
  readonly epoch: string;
  /**
   * Up to here the reader has all: it may resume from any event. Of the changes that share a revision only the last one
   * bears it, the others bear the one before.
   */
  readonly revision: number;
}

/** An upsert stands for the whole of what is known of its uid, whatever generation the reader holds. */
export interface UpsertEvent extends At {
  readonly kind: 'upsert';
  readonly workload: Workload;
}

export interface RemovedEvent extends At {
  readonly kind: 'removed';
  readonly uid: PodUid;
  readonly generation: number;
}

/**
 * `snapshot`: all that the reader holds is void, and what lives follows. `snapshotDone`: from here on changes come as they
 * happen. `lost`: the reader was too slow, and nothing comes after this; its revision is that of the event before.
 */
export interface SignalEvent extends At {
  readonly kind: 'snapshot' | 'snapshotDone' | 'heartbeat' | 'lost';
}

export type WatchEvent = UpsertEvent | RemovedEvent | SignalEvent;

/** Where the events of one watcher go. The same event object goes to all of them: to be encoded once. */
export interface WatchSink {
  /** Bytes of the event on the wire. */
  sizeOf(event: WatchEvent): number;
  /** False: no more, but for `lost`, until the subscription is told `drained`. */
  write(events: readonly WatchEvent[]): boolean;
  /** Nothing comes any more. Called once, and not after `close`. */
  end(): void;
}

export interface Subscription {
  drained(): void;
  /** The reader has gone. */
  close(): void;
}
