/** The watch of the identities over HTTP: a line of JSON per event, written once for all who watch. */

import type { Writable } from 'node:stream';
import type { IdentityWatch, WatchFrom } from '../identity/watch.js';
import type { WatchEvent } from '../identity/watch-events.js';
import type { IdentityLine } from './messages.js';

/** What a reader that is told that it lost something has left to take it. */
const LINGER_MS = 10_000;

export class IdentityStreams {
  readonly #watch: IdentityWatch;
  readonly #lines = new WeakMap<WatchEvent, Buffer>();
  readonly #closers = new Set<() => void>();

  constructor(watch: IdentityWatch) {
    this.#watch = watch;
  }

  get full(): boolean {
    return this.#watch.full;
  }

  /** Writes NDJSON until `output` closes. */
  follow(from: WatchFrom, output: Writable): void {
    let linger: NodeJS.Timeout | undefined;
    output.on('error', () => output.destroy()); // the reader went away: nobody to tell
    const subscription = this.#watch.subscribe(from, {
      sizeOf: (event) => this.#line(event).length,
      write: (events) => {
        const lines = events.map((event) => this.#line(event));
        const [only] = lines;
        return output.write(only !== undefined && lines.length === 1 ? only : Buffer.concat(lines));
      },
      end: () => {
        output.end();
        linger = setTimeout(() => output.destroy(), LINGER_MS).unref();
      },
    });
    const close = () => {
      subscription.close();
      output.end();
    };
    this.#closers.add(close);
    output.on('drain', () => subscription.drained());
    output.once('close', () => {
      clearTimeout(linger);
      this.#closers.delete(close);
      subscription.close();
    });
  }

  close(): void {
    for (const close of this.#closers) {
      close();
    }
  }

  #line(event: WatchEvent): Buffer {
    const known = this.#lines.get(event);
    if (known !== undefined) {
      return known;
    }
    const line = Buffer.from(`${JSON.stringify(lineOf(event))}\n`);
    this.#lines.set(event, line);
    return line;
  }
}

function lineOf(event: WatchEvent): IdentityLine {
  const { epoch, revision } = event;
  switch (event.kind) {
    case 'upsert':
      return { type: 'UPSERT', epoch, revision, workload: event.workload };
    case 'removed':
      return { type: 'REMOVED', epoch, revision, uid: event.uid, generation: event.generation };
    case 'snapshot':
      return { type: 'SNAPSHOT', epoch, revision };
    case 'snapshotDone':
      return { type: 'SNAPSHOT_DONE', epoch, revision };
    case 'heartbeat':
      return { type: 'HEARTBEAT', epoch, revision };
    case 'lost':
      return { type: 'LOST', epoch, revision };
  }
}
