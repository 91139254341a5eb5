/** What the README says of speed: the three best lines of the main part, and its plot. */

import { compare, type Results } from './results.js';
import type { Summary } from './statistics.js';
import { VARIANTS, type VariantName } from './variants.js';
import { METRICS, type MetricName, WORKLOADS } from './workloads.js';

const MAIN = 'haproxy-runc';
const LINES = 3;
/** Of the machine at work with something else: over that, its figures are for no README. */
const BUSY_AT_MOST = 0.05;
const [BEGIN, END] = ['<!-- make bench writes this -->', '<!-- up to here -->'];

interface Line {
  readonly text: string;
  /** Above 1 is better than explicit, whichever way is better for the metric. */
  readonly gain: number;
}

/** Undefined where the main part was not measured, or on a machine that was busy with something else. */
export function readmeLines({ sections, machine, rounds }: Results): string | undefined {
  const section = sections.find(({ name }) => name === MAIN);
  if (section === undefined || section.busyBefore > BUSY_AT_MOST) {
    return undefined;
  }
  const line = (variant: VariantName, workload: string, metric: MetricName): Line[] => {
    const compared = compare(section, workload, variant, metric);
    if (compared === undefined || compared.ratio.runs === 0) {
      return [];
    }
    const { median } = compared.ratio;
    return [
      {
        text: `- ${VARIANTS[variant]}, ${nameOf(workload, metric)}: ${spoken(compared.ratio)}`,
        gain: METRICS[metric].more ? median : 1 / median,
      },
    ];
  };
  // One line for each workload, by whichever of the two is better at it.
  const best = WORKLOADS.flatMap(({ name: workload, kind }) => {
    const metric: MetricName =
      kind === 'connects'
        ? 'connectionsPerSecond'
        : kind === 'requests'
          ? 'requestsPerSecond'
          : kind === 'bulk'
            ? 'megabytesPerSecond'
            : 'p99Us';
    const both = [...line('ours', workload, metric), ...line('splice', workload, metric)];
    return both.sort((a, b) => b.gain - a.gain).slice(0, 1);
  });
  const lines = best.sort((a, b) => b.gain - a.gain).slice(0, LINES);
  return lines.length === 0
    ? undefined
    : `${[
        'To a proxy that pods dial themselves, in the same round (median, least and most',
        `of ${rounds} rounds; ${machine.cpus} × ${machine.cpu}, Linux ${machine.kernel}, ${machine.date.slice(0, 10)}):`,
        '',
        ...lines.map(({ text }) => text),
        '',
        `![Throughput of each way to a proxy, as a ratio to dialling it](docs/benchmarks/${MAIN}-throughput.svg)`,
        '',
        'All of it, slower lines included: [docs/benchmarks/report.md](docs/benchmarks/report.md).',
      ].join('\n')}`;
}

function nameOf(workload: string, metric: MetricName): string {
  const title = WORKLOADS.find(({ name }) => name === workload)?.title ?? workload;
  return METRICS[metric].more ? title : `${METRICS[metric].title} ${title}`;
}

function spoken({ median, min, max }: Summary): string {
  return `${median.toFixed(2)} times (${min.toFixed(2)}–${max.toFixed(2)})`;
}

/** The README with these lines between its two marks; throws where it has none. */
export function withBenchmark(readme: string, lines: string): string {
  const [from, to] = [readme.indexOf(BEGIN), readme.indexOf(END)];
  if (from < 0 || to < from) {
    throw new Error(`the README has no place for the benchmark: ${BEGIN} … ${END}`);
  }
  return `${readme.slice(0, from + BEGIN.length)}\n${lines}\n${readme.slice(to)}`;
}
