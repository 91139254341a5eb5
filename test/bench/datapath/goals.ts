/** What NodeSentry is to reach, as ratios to the explicit proxy, and whether it did. */

import { compare, type Section, variantsOf } from './results.js';
import type { Summary } from './statistics.js';
import { VARIANTS, type VariantName } from './variants.js';
import type { MetricName } from './workloads.js';

interface Goal {
  readonly variant: 'ours' | 'splice';
  readonly workload: string;
  readonly metric: MetricName;
  readonly what: string;
  readonly atLeast?: number;
  readonly atMost?: number;
}

const GOALS: readonly Goal[] = [
  goal('ours', 'connects-64', 'connectionsPerSecond', 'new connections', { atLeast: 1 }),
  goal('ours', 'requests-64', 'requestsPerSecond', 'keep-alive requests', { atLeast: 1 }),
  goal('ours', 'bulk-1', 'megabytesPerSecond', 'bulk', { atLeast: 1 }),
  goal('ours', 'paced', 'p99Us', 'p99 at a fixed rate', { atMost: 1.05 }),
  goal('splice', 'requests-64', 'requestsPerSecond', 'keep-alive requests', { atLeast: 1.5 }),
  goal('splice', 'bulk-1', 'megabytesPerSecond', 'bulk', { atLeast: 1.5 }),
  goal('splice', 'paced', 'p99Us', 'p99 at a fixed rate', { atMost: 1 }),
];

function goal(
  variant: Goal['variant'],
  workload: string,
  metric: MetricName,
  what: string,
  limit: Pick<Goal, 'atLeast' | 'atMost'>,
): Goal {
  return { variant, workload, metric, what, ...limit };
}

/** What else intercepts, and is to be slower. */
const OTHERS: readonly VariantName[] = ['iptables-tproxy', 'nftables-tproxy', 'redirect'];

/** `within its spread`: the median says so, and a round says otherwise. */
export type Verdict = 'yes' | 'yes, within its spread' | 'no, within its spread' | 'no';

export interface Outcome {
  readonly what: string;
  readonly wanted: string;
  readonly measured: Summary;
  readonly verdict: Verdict;
}

export function judge({ median, min, max }: Summary, limit: Pick<Goal, 'atLeast' | 'atMost'>): Verdict {
  const { atLeast = Number.NEGATIVE_INFINITY, atMost = Number.POSITIVE_INFINITY } = limit;
  const reached = (value: number) => value >= atLeast && value <= atMost;
  if (reached(median)) {
    return reached(min) && reached(max) ? 'yes' : 'yes, within its spread';
  }
  return reached(min) || reached(max) ? 'no, within its spread' : 'no';
}

/** Those that this section can tell of. */
export function outcomes(section: Section): Outcome[] {
  const single = GOALS.flatMap((one): Outcome[] => {
    const found = compare(section, one.workload, one.variant, one.metric);
    if (found === undefined) {
      return [];
    }
    const wanted = one.atLeast === undefined ? `≤ ${one.atMost}` : `≥ ${one.atLeast}`;
    const what = `${VARIANTS[one.variant]}: ${one.what}`;
    return [{ what, wanted, measured: found.ratio, verdict: judge(found.ratio, one) }];
  });
  return [...single, ...ahead(section), ...steady(section)];
}

/** New connections, and the CPU of each: against every other way to intercept. */
function ahead(section: Section): Outcome[] {
  const ours = (metric: MetricName) => compare(section, 'connects-64', 'ours', metric);
  return variantsOf(section)
    .filter((variant) => OTHERS.includes(variant))
    .flatMap((variant): Outcome[] => {
      const rows = [
        { metric: 'connectionsPerSecond', what: 'new connections', more: true },
        { metric: 'cpuUs', what: 'CPU per connection', more: false },
      ] as const;
      return rows.flatMap(({ metric, what, more }): Outcome[] => {
        const own = ours(metric)?.ratio;
        const other = compare(section, 'connects-64', variant, metric)?.ratio;
        if (own === undefined || other === undefined) {
          return [];
        }
        const limit = more ? { atLeast: other.median } : { atMost: other.median };
        const wanted = `${more ? '≥' : '≤'} ${other.median.toFixed(2)}`;
        const label = `${VARIANTS.ours}: ${what}, against ${VARIANTS[variant]}`;
        return [{ what: label, wanted, measured: own, verdict: judge(own, limit) }];
      });
    });
}

/** What does not change with the size of the node: to the smaller one in the same round. */
const SIZES = [
  { many: 'pods-1000', few: 'pods-10', within: 0.05 },
  { many: 'flows-100000', few: 'flows-10', within: 0.1 },
] as const;

function steady(section: Section): Outcome[] {
  const rows = [
    { workload: 'connects-64', metric: 'connectionsPerSecond', what: 'new connections', more: true },
    { workload: 'requests-64', metric: 'requestsPerSecond', what: 'keep-alive requests', more: true },
    { workload: 'bulk-1', metric: 'megabytesPerSecond', what: 'bulk', more: true },
    { workload: 'paced', metric: 'p99Us', what: 'p99 at a fixed rate', more: false },
  ] as const;
  return SIZES.flatMap(({ many, few, within }) =>
    rows.flatMap(({ workload, metric, what, more }): Outcome[] => {
      const measured = compare(section, workload, many, metric, few)?.ratio;
      if (measured === undefined || measured.runs === 0) {
        return [];
      }
      const limit = more ? { atLeast: 1 - within } : { atMost: 1 + within };
      const wanted = more ? `≥ ${limit.atLeast}` : `≤ ${limit.atMost}`;
      const label = `${VARIANTS[many]}: ${what}, to ${VARIANTS[few]}`;
      return [{ what: label, wanted, measured, verdict: judge(measured, limit) }];
    }),
  );
}
