/** What is made of runs: medians and their spread, and ratios within a round. */

/** Of an odd or even count; NaN of none. */
export interface Summary {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  /** How many values there were. */
  readonly runs: number;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  const [below, above] = [sorted[Math.ceil(middle) - 1], sorted[Math.floor(middle)]];
  return below === undefined || above === undefined ? Number.NaN : (below + above) / 2;
}

export function summarise(values: readonly number[]): Summary {
  if (values.length === 0) {
    return { median: Number.NaN, min: Number.NaN, max: Number.NaN, runs: 0 };
  }
  return {
    median: median(values),
    min: Math.min(...values),
    max: Math.max(...values),
    runs: values.length,
  };
}

/** A value of one variant in one round. */
export interface Sample {
  readonly round: number;
  readonly value: number;
}

/**
 * Each value by that of the other in the same round: what a noisy machine does to both of them falls out. A round that only
 * one of the two has is left out, and so is one in which the other had nothing.
 */
export function ratios(of: readonly Sample[], to: readonly Sample[]): Summary {
  const other = new Map(to.map(({ round, value }) => [round, value]));
  return summarise(
    of.flatMap(({ round, value }) => {
      const by = other.get(round);
      return by === undefined || by === 0 ? [] : [value / by];
    }),
  );
}
