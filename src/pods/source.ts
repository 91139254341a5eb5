/** What tells of pods: one of these per place that knows some, joined by the store. */

import type { Pod, PodUid, SourceName } from './pod.js';

/** How well a source follows, for metrics. */
export interface SourceStats {
  /** Unix time, milliseconds, of the last sign that the source still tells; undefined before the first. */
  readonly lastEventAtMs: number | undefined;
  /** How often everything was asked for anew. */
  readonly relists: number;
  /** How often the stream of changes was opened again, by reason. */
  readonly watchRestarts: Readonly<Record<string, number>>;
}

/** Something that keeps one source's snapshot in the store up to date. */
export interface PodSource {
  readonly name: SourceName;
  /**
   * Resolves after the first snapshot is in the store, or once its first failure is being retried; goes on until
   * `signal` aborts. Rejects where retrying cannot help.
   */
  start(signal: AbortSignal): Promise<void>;
  /** Why the store may be behind this source; undefined while it follows. */
  readonly lastError: string | undefined;
  readonly stats?: SourceStats;
  /** Something has happened on the node: looks again now, for sources that hear of changes late. */
  poke?(): void;
  /**
   * Asks now for one pod that the source may not have told of yet, and has it in the store as if it had. Undefined
   * where there is no such pod on this node; rejects where the source cannot be asked. Without a UID: the pod that has
   * the name now, and is not being deleted.
   */
  lookup?(
    uid: PodUid | undefined,
    namespace: string,
    name: string,
    signal: AbortSignal,
  ): Promise<Pod | undefined>;
  /** Whether a pod that starts bears this UID only until `adopt` tells its own, which this source was not told. */
  awaitsUid?(uid: PodUid): boolean;
  adopt?(standIn: PodUid, uid: PodUid): void;
}
