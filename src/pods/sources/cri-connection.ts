/** Who answers at a CRI socket, and whether its events tell when to list again. */

import type { Log } from '../../base/log.js';
import type { CriClient, CriVersion } from './cri-client.js';

type State =
  /** Nobody has answered since the last failure: whoever does may be another runtime, upgraded. */
  | { readonly kind: 'unknown' }
  /** It tells no events, or not to everyone: we do not ask for them until somebody new answers. */
  | { readonly kind: 'eventless' }
  /** No stream of events is open; the next `open` tries. */
  | { readonly kind: 'greeted'; readonly version: CriVersion }
  /** A stream is open that has brought nothing yet: it may never do. */
  | { readonly kind: 'listening'; readonly stop: () => void }
  | { readonly kind: 'flowing'; readonly stop: () => void };

export class CriConnection {
  readonly #log: Log;
  readonly #onNews: () => void;
  #state: State = { kind: 'unknown' };
  /** That events are missing is said once until one comes, however often the runtime is restarted meanwhile. */
  #saidMissing = false;

  /** `onNews` is called when an event came, and when no more will: something may have happened on the node. */
  constructor(log: Log, onNews: () => void) {
    this.#log = log;
    this.#onNews = onNews;
  }

  /** Whether events can be relied on: one has come, and the stream is still open. */
  get eventsFlow(): boolean {
    return this.#state.kind === 'flowing';
  }

  /** Greets who has not answered yet, and listens to its events where nobody does. Throws CriError. */
  async open(client: CriClient, signal: AbortSignal): Promise<void> {
    if (this.#state.kind === 'unknown') {
      const version = await client.version();
      this.#log.info(version, 'cri: connected');
      this.#state = tellsEveryone(version) ? { kind: 'greeted', version } : { kind: 'eventless' };
    }
    if (this.#state.kind === 'greeted' && !signal.aborted) {
      this.#listen(client, this.#state.version);
    }
  }

  /** After a failure, or for good: ends the stream. */
  lose(): void {
    if (this.#state.kind === 'listening' || this.#state.kind === 'flowing') {
      this.#state.stop();
    }
    this.#state = { kind: 'unknown' };
  }

  /** An event is only a reason to list again: its content is not read. */
  #listen(client: CriClient, version: CriVersion): void {
    const stop = client.containerEvents(
      () => {
        this.#state = { kind: 'flowing', stop };
        this.#saidMissing = false;
        this.#onNews();
      },
      (error) => {
        const flowed = this.eventsFlow;
        const isRefused = error.code === 'UNIMPLEMENTED';
        this.#state = isRefused ? { kind: 'eventless' } : { kind: 'greeted', version };
        if (!isRefused && !this.#saidMissing) {
          this.#saidMissing = true;
          this.#log.warn({ err: error, ...version }, 'cri: no events, polling until they come back');
        }
        if (flowed) {
          this.#onNews();
        }
      },
    );
    this.#state = { kind: 'listening', stop };
  }
}

/**
 * Before containerd 2 all callers of GetContainerEvents share one queue, and each event reaches one of them
 * (containerd issue 7318): listening would take events from the kubelet.
 */
function tellsEveryone({ runtimeName, runtimeVersion }: CriVersion): boolean {
  return runtimeName === 'containerd' && Number(/^v?(\d+)\./.exec(runtimeVersion)?.[1] ?? 0) >= 2;
}
