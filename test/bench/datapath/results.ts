/** What a whole benchmark found, and how its variants compare. */

import type { Machine } from './machine.js';
import type { Run } from './rounds.js';
import { ratios, type Sample, type Summary, summarise } from './statistics.js';
import type { VariantName } from './variants.js';
import { METRICS, type MetricName } from './workloads.js';

/** Runs that were interleaved, and may be compared. */
export interface Section {
  /** Short, for names of files. */
  readonly name: string;
  readonly title: string;
  /** What part of all processors was at work before the first run, with everything standing and nothing asked. */
  readonly busyBefore: number;
  readonly runs: readonly Run[];
}

export interface Results {
  readonly machine: Machine;
  readonly rounds: number;
  /** Of each run, without its warming up. */
  readonly seconds: number;
  readonly sections: readonly Section[];
}

export interface Compared {
  readonly value: Summary;
  /** To the base, which is the explicit proxy if no other is named, in the same round. */
  readonly ratio: Summary;
}

export const BASE: VariantName = 'explicit';

function samples(runs: readonly Run[], metric: MetricName): Sample[] {
  return runs.flatMap(({ round, metrics }) => {
    const value = metrics[metric];
    return value === undefined ? [] : [{ round, value }];
  });
}

/** Undefined where the variant was not measured so. */
export function compare(
  { runs }: Pick<Section, 'runs'>,
  workload: string,
  variant: VariantName,
  metric: MetricName,
  base: VariantName = BASE,
): Compared | undefined {
  const of = (name: VariantName) =>
    samples(
      runs.filter((run) => run.workload === workload && run.variant === name && run.repeated !== true),
      metric,
    );
  const own = of(variant);
  return own.length === 0
    ? undefined
    : { value: summarise(own.map(({ value }) => value)), ratio: ratios(own, of(base)) };
}

/** What the first variant had in the end of each round, by what it had in the beginning: 1 on a machine that is steady. */
export function drift({ runs }: Pick<Section, 'runs'>, workload: string, metric: MetricName): Summary {
  const of = (repeated: boolean) =>
    samples(
      runs.filter(
        (run) =>
          run.workload === workload &&
          run.variant === runs[0]?.variant &&
          (run.repeated === true) === repeated,
      ),
      metric,
    );
  return ratios(of(true), of(false));
}

/** In the order in which they were measured. */
export function variantsOf({ runs }: Pick<Section, 'runs'>): VariantName[] {
  return [...new Set(runs.map(({ variant }) => variant))];
}

export function workloadsOf({ runs }: Pick<Section, 'runs'>): string[] {
  return [...new Set(runs.map(({ workload }) => workload))];
}

/** Those that any run of the workload has, in the order of `METRICS`. */
export function metricsMeasured({ runs }: Pick<Section, 'runs'>, workload: string): MetricName[] {
  const found = runs.filter((run) => run.workload === workload);
  return (Object.keys(METRICS) as MetricName[]).filter((metric) =>
    found.some(({ metrics }) => metrics[metric] !== undefined),
  );
}
