/** So many of something a second, and after a while with fewer as many at once: a token bucket, filled to its brim every second. */

export class Allowance {
  readonly #perSecond: number;
  readonly #nowMs: () => number;
  #left: number;
  #atMs: number;

  /** `nowMs`: of a clock that only goes forward. */
  constructor(perSecond: number, nowMs: () => number = () => performance.now()) {
    this.#perSecond = perSecond;
    this.#nowMs = nowMs;
    this.#left = perSecond;
    this.#atMs = nowMs();
  }

  /** How many of these there are left for; they are gone then. */
  take(wanted: number): number {
    const now = this.#nowMs();
    this.#left = Math.min(this.#perSecond, this.#left + ((now - this.#atMs) * this.#perSecond) / 1_000);
    this.#atMs = now;
    const taken = Math.min(wanted, Math.floor(this.#left));
    this.#left -= taken;
    return taken;
  }
}
