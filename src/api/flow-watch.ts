/** Flow events to whoever follows them, each at its own pace: a slow reader loses events and is told how many. */

import type { Writable } from 'node:stream';
import type { FlowEvent, FlowListener } from '../datapath/flows.js';
import type { FlowMessage } from './messages.js';

export interface FlowWatchOptions {
  readonly onFlowEvent: (listener: FlowListener) => () => void;
  readonly describe: (event: FlowEvent) => FlowMessage;
  /** Events kept for a reader that is behind. */
  readonly queueLimit?: number;
  readonly maxWatchers?: number;
}

const QUEUE_LIMIT = 4_096;
const MAX_WATCHERS = 16;

export class FlowWatch {
  readonly #options: FlowWatchOptions;
  readonly #watchers = new Set<Watcher>();
  #unsubscribe: (() => void) | undefined;

  constructor(options: FlowWatchOptions) {
    this.#options = options;
  }

  get full(): boolean {
    return this.#watchers.size >= (this.#options.maxWatchers ?? MAX_WATCHERS);
  }

  /** Writes NDJSON until `output` closes. */
  follow(output: Writable): void {
    const watcher = new Watcher(output, this.#options.queueLimit ?? QUEUE_LIMIT);
    this.#watchers.add(watcher);
    output.once('close', () => {
      this.#watchers.delete(watcher);
      if (this.#watchers.size === 0) {
        this.#unsubscribe?.();
        this.#unsubscribe = undefined;
      }
    });
    this.#unsubscribe ??= this.#options.onFlowEvent({
      event: (event) => this.#publish(event),
      leftOut: (count) => this.#leaveOut(count),
    });
  }

  close(): void {
    for (const watcher of this.#watchers) {
      watcher.end();
    }
    this.#unsubscribe?.();
    this.#unsubscribe = undefined;
  }

  #leaveOut(count: number): void {
    for (const watcher of this.#watchers) {
      watcher.lose(count);
    }
  }

  #publish(event: FlowEvent): void {
    const line = `${JSON.stringify(this.#options.describe(event))}\n`;
    for (const watcher of this.#watchers) {
      watcher.push(line);
    }
  }
}

class Watcher {
  readonly #output: Writable;
  readonly #queueLimit: number;
  readonly #queue: string[] = [];
  /** Dropped after what is in the queue; nothing is queued behind a gap until the gap has been told. */
  #lost = 0;
  #writable = true;

  constructor(output: Writable, queueLimit: number) {
    this.#output = output;
    this.#queueLimit = queueLimit;
    output.on('error', () => output.destroy()); // the reader went away: nobody to tell
    output.on('drain', () => {
      this.#writable = true;
      this.#flush();
    });
  }

  push(line: string): void {
    if (this.#lost > 0 || this.#queue.length >= this.#queueLimit) {
      this.#lost += 1;
    } else {
      this.#queue.push(line);
    }
    this.#flush();
  }

  lose(count: number): void {
    this.#lost += count;
    this.#flush();
  }

  end(): void {
    this.#output.end();
  }

  #flush(): void {
    while (this.#writable && this.#queue.length > 0) {
      this.#writable = this.#output.write(this.#queue.splice(0, 64).join(''));
    }
    if (this.#writable && this.#lost > 0) {
      const line = `${JSON.stringify({ lost: this.#lost })}\n`;
      this.#lost = 0;
      this.#writable = this.#output.write(line);
    }
  }
}
