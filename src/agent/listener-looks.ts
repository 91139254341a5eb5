/** When the agent looks for listeners: soon after the kernel has told of some, and seldom otherwise. */

/** The kernel tells before the socket is in its table, and a proxy opens several. */
const SOON_MS = 5;
/** Between two looks, however many sockets come and go. */
const GAP_MS = 20;
/** What follows tells nobody: a socket that is handed on to a worker has another holder. Looked for so often, and so long. */
const AFTER_MS = 100;
const ATTENTIVE_MS = 2_000;
/** The net under what is told. */
const SELDOM_MS = 1_000;

export interface ListenerLooksOptions {
  readonly look: () => void;
  /** False: the kernel does not tell. */
  readonly isTold: boolean;
}

export class ListenerLooks {
  readonly #options: ListenerLooksOptions;
  #timer: NodeJS.Timeout | undefined;
  #dueMs = 0;
  #lookedMs = Number.NEGATIVE_INFINITY;
  #attentiveUntilMs: number;

  /** Attentive from the start: whoever has just been started with us may open its sockets now. */
  constructor(options: ListenerLooksOptions) {
    this.#options = options;
    this.#attentiveUntilMs = performance.now() + ATTENTIVE_MS;
    this.#await(AFTER_MS);
  }

  /** Sockets have come or gone. */
  told(): void {
    const now = performance.now();
    this.#attentiveUntilMs = now + ATTENTIVE_MS;
    const waitMs = Math.max(SOON_MS, this.#lookedMs + GAP_MS - now);
    if (now + waitMs < this.#dueMs) {
      this.#await(waitMs);
    }
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#dueMs = 0;
  }

  #await(waitMs: number): void {
    clearTimeout(this.#timer);
    this.#dueMs = performance.now() + waitMs;
    this.#timer = setTimeout(() => {
      this.#lookedMs = performance.now();
      const isAttentive = !this.#options.isTold || this.#lookedMs < this.#attentiveUntilMs;
      this.#await(isAttentive ? AFTER_MS : SELDOM_MS);
      this.#options.look();
    }, waitMs);
  }
}
