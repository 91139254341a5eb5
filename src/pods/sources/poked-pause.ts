/** The pause between two lists, which a poke cuts short. */

type State =
  /** Not poked since the list under way began. */
  | { readonly kind: 'quiet' }
  /** Poked: the next pause is short, and the one under way has been made so. */
  | { readonly kind: 'poked' }
  | { readonly kind: 'pausing'; readonly hurry: () => void };

/** Pokes come in bursts; one list answers those of this long. */
const POKE_GAP_MS = 20;

export class PokedPause {
  #state: State = { kind: 'quiet' };

  /** Ends the pause under way soon, or else the next one. */
  poke(): void {
    const before = this.#state;
    this.#state = { kind: 'poked' };
    if (before.kind === 'pausing') {
      before.hurry();
    }
  }

  /** A list begins: it answers every poke until now. */
  answer(): void {
    this.#state = { kind: 'quiet' };
  }

  /** Resolves after `delayMs`, soon after a poke, or at once when `signal` aborts. */
  wait(delayMs: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const soonMs = Math.min(delayMs, POKE_GAP_MS);
      const done = (): void => {
        clearTimeout(timer);
        signal.removeEventListener('abort', done);
        if (this.#state.kind === 'pausing') {
          this.#state = { kind: 'quiet' };
        }
        resolve();
      };
      let timer = setTimeout(done, this.#state.kind === 'poked' ? soonMs : delayMs);
      if (this.#state.kind === 'quiet') {
        const hurry = (): void => {
          clearTimeout(timer);
          timer = setTimeout(done, soonMs);
        };
        this.#state = { kind: 'pausing', hurry };
      }
      signal.addEventListener('abort', done, { once: true });
      if (signal.aborted) {
        done();
      }
    });
  }
}
