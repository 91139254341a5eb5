/** One that watches: first what it has to catch up with, then what happens, at its own pace and within bounds. */

import type { Subscription, WatchEvent, WatchSink } from './watch-events.js';

export interface WatcherLimits {
  /** Of what waits for a reader that is behind. */
  readonly events: number;
  readonly bytes: number;
}

const EVENTS_AT_ONCE = 64;

export class Watcher implements Subscription {
  readonly #sink: WatchSink;
  readonly #limits: WatcherLimits;
  readonly #onEnd: (watcher: Watcher) => void;
  /** Shared with others that caught up at the same time, and no part of the bounds. */
  #backlog: readonly WatchEvent[];
  #next = 0;
  #queue: WatchEvent[] = [];
  #queueBytes = 0;
  #writable = true;
  #ended = false;
  /** Of the last event that was written. */
  #revision = 0;

  constructor(
    sink: WatchSink,
    backlog: readonly WatchEvent[],
    limits: WatcherLimits,
    onEnd: (watcher: Watcher) => void,
  ) {
    this.#sink = sink;
    this.#backlog = backlog;
    this.#limits = limits;
    this.#onEnd = onEnd;
  }

  push(event: WatchEvent): void {
    if (this.#ended) {
      return;
    }
    const bytes = this.#sink.sizeOf(event);
    const { events: mostEvents, bytes: mostBytes } = this.#limits;
    if (!this.#writable && (this.#queue.length >= mostEvents || this.#queueBytes + bytes > mostBytes)) {
      this.#lose(event.epoch);
      return;
    }
    this.#queue.push(event);
    this.#queueBytes += bytes;
    this.flush();
  }

  /** Only where nothing waits: a reader that is behind learns nothing by it. */
  beat(event: WatchEvent): void {
    if (this.#writable) {
      this.push(event);
    }
  }

  drained(): void {
    this.#writable = true;
    this.flush();
  }

  flush(): void {
    while (this.#writable && !this.#ended) {
      const events = this.#take();
      const last = events.at(-1);
      if (last === undefined) {
        return;
      }
      this.#revision = last.revision;
      this.#writable = this.#sink.write(events);
    }
  }

  end(): void {
    if (!this.#ended) {
      this.close();
      this.#sink.end();
    }
  }

  close(): void {
    this.#ended = true;
    this.#backlog = [];
    this.#queue = [];
    this.#onEnd(this);
  }

  #take(): readonly WatchEvent[] {
    if (this.#next < this.#backlog.length) {
      const events = this.#backlog.slice(this.#next, this.#next + EVENTS_AT_ONCE);
      this.#next += events.length;
      return events;
    }
    this.#backlog = [];
    this.#next = 0;
    const events = this.#queue.splice(0, EVENTS_AT_ONCE);
    this.#queueBytes -= events.reduce((sum, event) => sum + this.#sink.sizeOf(event), 0);
    return events;
  }

  #lose(epoch: string): void {
    const lost: WatchEvent = { kind: 'lost', epoch, revision: this.#revision };
    this.close();
    this.#sink.write([lost]);
    this.#sink.end();
  }
}
