/**
 * What somebody else takes away as often as we put it back. Right after each repair all looks well, and in between it is
 * not: such a part does not count as in place, however often it is repaired.
 */

/** So many repairs of one thing are a dispute: one is an accident, and so can be the second. */
const REPAIRS = 3;
/** Looks that find nothing to repair, one after the other, end it. */
const QUIET_LOOKS = 2;

export class Contested {
  readonly #disputed = new Map<string, { repairs: number; quietLooks: number }>();

  /** What a look has found missing or changed, in words; once per look. */
  note(repaired: ReadonlySet<string>): void {
    for (const [what, dispute] of this.#disputed) {
      dispute.quietLooks = repaired.has(what) ? 0 : dispute.quietLooks + 1;
      if (dispute.quietLooks >= QUIET_LOOKS) {
        this.#disputed.delete(what);
      }
    }
    for (const what of repaired) {
      const { repairs = 0 } = this.#disputed.get(what) ?? {};
      this.#disputed.set(what, { repairs: repairs + 1, quietLooks: 0 });
    }
  }

  has(what: string): boolean {
    return (this.#disputed.get(what)?.repairs ?? 0) >= REPAIRS;
  }

  /** In the order in which they were first repaired. */
  list(): string[] {
    return [...this.#disputed.keys()].filter((what) => this.has(what));
  }
}
