/**
 * The live pods of this node and what changes of them, for readers that keep a copy. A reader that comes back gets what
 * it missed, where that is still known, and else all anew.
 */

import type { Pod, PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { IdentityService } from './resolve.js';
import type {
  RemovedEvent,
  SignalEvent,
  Subscription,
  UpsertEvent,
  WatchEvent,
  WatchSink,
} from './watch-events.js';
import { WatchJournal } from './watch-journal.js';
import { Watcher } from './watcher.js';

export interface IdentityWatchOptions {
  readonly store: Pick<PodStore, 'epoch' | 'revision' | 'subscribe' | 'list'>;
  readonly identity: Pick<IdentityService, 'live'>;
  /** Calls the listener whenever something of a pod's endpoint is another. The function returned ends it. */
  readonly onEndpoint?: (listener: (uid: PodUid) => void) => () => void;
  /** After so long without an event there is a heartbeat. Default 10 s. */
  readonly heartbeatMs?: number;
  /** So many changes back a reader can resume. Default 4,096. */
  readonly journalLimit?: number;
  /** What may wait for one reader. Default 1,024 events. */
  readonly queueLimit?: number;
  /** Default 4 MiB. */
  readonly queueBytes?: number;
  /** Default 2,048. */
  readonly maxWatchers?: number;
}

/** Where a reader was; without a revision of this epoch it gets all anew. */
export interface WatchFrom {
  readonly epoch?: string | undefined;
  readonly since?: number | undefined;
}

export class IdentityWatch {
  readonly #options: IdentityWatchOptions;
  readonly #journal: WatchJournal;
  readonly #watchers = new Set<Watcher>();
  /** What readers hold, in the order of the last changes. */
  readonly #told = new Map<PodUid, UpsertEvent>();
  readonly #unsubscribe: readonly (() => void)[];
  readonly #timer: NodeJS.Timeout;
  #revision: number;
  /** Undefined: to be made when somebody needs it. */
  #snapshot: readonly WatchEvent[] | undefined;

  constructor(options: IdentityWatchOptions) {
    this.#options = options;
    const { store, onEndpoint, journalLimit = 4_096, heartbeatMs = 10_000 } = options;
    this.#revision = store.revision;
    this.#journal = new WatchJournal(journalLimit, store.revision);
    for (const { uid, workload, revision } of this.#found(store.list(), store.revision - 1, store.revision)) {
      if (workload !== undefined) {
        this.#told.set(uid, { kind: 'upsert', ...this.#at(revision), workload });
      }
    }
    this.#unsubscribe = [
      store.subscribe((changes) =>
        this.#publish(
          changes.map(({ pod }) => pod),
          store.revision,
        ),
      ),
      ...(onEndpoint === undefined ? [] : [onEndpoint((uid) => this.#endpointChanged(uid))]),
    ];
    this.#timer = setInterval(() => this.#beat(), heartbeatMs).unref();
  }

  /** As many watch as may: `subscribe` is for when there are fewer. */
  get full(): boolean {
    return this.#watchers.size >= (this.#options.maxWatchers ?? 2_048);
  }

  subscribe(from: WatchFrom, sink: WatchSink): Subscription {
    const { queueLimit = 1_024, queueBytes = 4 << 20 } = this.#options;
    const watcher = new Watcher(
      sink,
      this.#missed(from) ?? this.#whole(),
      { events: queueLimit, bytes: queueBytes },
      (ended) => this.#watchers.delete(ended),
    );
    this.#watchers.add(watcher);
    watcher.flush();
    return watcher;
  }

  /** Ends every watcher. */
  close(): void {
    clearInterval(this.#timer);
    for (const unsubscribe of this.#unsubscribe) {
      unsubscribe();
    }
    for (const watcher of [...this.#watchers]) {
      watcher.end();
    }
  }

  #endpointChanged(uid: PodUid): void {
    const told = this.#told.get(uid);
    if (told !== undefined && this.#options.identity.live(uid)?.generation !== told.workload.generation) {
      this.#publish([{ uid }], this.#revision);
    }
  }

  #publish(pods: readonly Pick<Pod, 'uid'>[], now: number): void {
    const isLate = now === this.#revision;
    const found = this.#found(pods, this.#revision, now);
    this.#revision = now;
    this.#snapshot = undefined;
    for (const { uid, workload, revision } of found) {
      const held = this.#told.get(uid)?.workload.generation;
      const event: WatchEvent =
        workload === undefined
          ? { kind: 'removed', ...this.#at(revision), uid, generation: held ?? 0 }
          : { kind: 'upsert', ...this.#at(revision), workload };
      this.#told.delete(uid);
      if (event.kind === 'upsert') {
        this.#told.set(uid, event);
      }
      this.#journal.note({ uid, revision: now, told: revision, isLate, held });
      for (const watcher of this.#watchers) {
        watcher.push(event);
      }
    }
    this.#timer.refresh();
  }

  /** What lives now of these pods, and what did, each with the revision that is complete once it is told. */
  #found(pods: readonly Pick<Pod, 'uid'>[], before: number, now: number) {
    return pods
      .map(({ uid }) => ({ uid, workload: this.#options.identity.live(uid) }))
      .filter(({ uid, workload }) => workload !== undefined || this.#told.has(uid))
      .map((one, index, all) => ({
        ...one,
        revision: index === all.length - 1 ? now : before,
      }));
  }

  #missed({ epoch, since }: WatchFrom): readonly WatchEvent[] | undefined {
    const isOurs = epoch === this.#options.store.epoch && since !== undefined && since <= this.#revision;
    const changed = isOurs ? this.#journal.since(since) : undefined;
    if (changed === undefined) {
      return undefined;
    }
    let known = since ?? 0;
    const events = changed.flatMap(({ uid, told, held }): WatchEvent[] => {
      const live = this.#told.get(uid);
      const before = known;
      known = told;
      return live !== undefined
        ? [live]
        : held.map((generation, index): RemovedEvent => {
            const revision = index === held.length - 1 ? told : before;
            return { kind: 'removed', ...this.#at(revision), uid, generation };
          });
    });
    return [...events, this.#signal('snapshotDone')];
  }

  #whole(): readonly WatchEvent[] {
    this.#snapshot ??= [
      { kind: 'snapshot', ...this.#at(0) },
      ...this.#told.values(),
      this.#signal('snapshotDone'),
    ];
    return this.#snapshot;
  }

  #beat(): void {
    const event = this.#signal('heartbeat');
    for (const watcher of this.#watchers) {
      watcher.beat(event);
    }
  }

  #signal(kind: SignalEvent['kind']): SignalEvent {
    return { kind, ...this.#at(this.#revision) };
  }

  #at(revision: number): Pick<WatchEvent, 'epoch' | 'revision'> {
    return { epoch: this.#options.store.epoch, revision };
  }
}
