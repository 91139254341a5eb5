/** The report of a benchmark: Markdown, and the plots beside it. */

import { outcomes } from './goals.js';
import { type Bars, drawBars } from './plots.js';
import {
  BASE,
  type Compared,
  compare,
  drift,
  metricsMeasured,
  type Results,
  type Section,
  variantsOf,
  workloadsOf,
} from './results.js';
import type { Summary } from './statistics.js';
import { VARIANTS, type VariantName } from './variants.js';
import { METRICS, type MetricName, WORKLOADS } from './workloads.js';

/** Files by name, beside each other. */
export type Report = Readonly<Record<string, string>>;

/** In three digits, or all of those before the point. */
export function inDigits(value: number): string {
  if (Number.isNaN(value)) {
    return '–';
  }
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function inRatio({ median, min, max, runs }: Summary): string {
  return runs === 0 ? '–' : `**${median.toFixed(2)}** (${min.toFixed(2)}–${max.toFixed(2)})`;
}

function cell(compared: Compared | undefined): string {
  return compared === undefined ? '–' : `${inDigits(compared.value.median)} · ${inRatio(compared.ratio)}`;
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  return [line(head), `|${'---|'.repeat(head.length)}`, ...rows.map(line)].join('\n');
}

const titleOf = (workload: string) => WORKLOADS.find(({ name }) => name === workload)?.title ?? workload;

function workloadTable(section: Section, workload: string): string {
  const metrics = metricsMeasured(section, workload);
  const unit = WORKLOADS.find(({ name }) => name === workload)?.unit ?? 'one';
  const head = metrics.map((metric) =>
    metric === 'cpuUs' ? `CPU per ${unit}, µs` : `${METRICS[metric].title}, ${METRICS[metric].unit}`,
  );
  const rows = variantsOf(section).map((variant) => [
    VARIANTS[variant],
    ...metrics.map((metric) => cell(compare(section, workload, variant, metric))),
  ]);
  const steady = [
    'the first one again, in the end',
    ...metrics.map((metric) => inRatio(drift(section, workload, metric))),
  ];
  return `### ${capital(titleOf(workload))}\n\n${table(['', ...head], [...rows, steady])}`;
}

function capital(text: string): string {
  return `${text[0]?.toUpperCase() ?? ''}${text.slice(1)}`;
}

/** What is plotted of a workload: the first of its numbers. */
function mainMetric(section: Section, workload: string): MetricName | undefined {
  return metricsMeasured(section, workload).find((metric) => METRICS[metric].more);
}

function plotsOf(section: Section): Record<string, Bars> {
  const variants = variantsOf(section);
  const workloads = workloadsOf(section);
  const grouped = (
    groups: readonly { readonly title: string; readonly workload: string; readonly metric: MetricName }[],
    pick: (compared: Compared) => Summary,
  ) => ({
    groups: groups.map(({ title }) => title),
    series: variants.map((variant) => ({
      name: inShort(variant),
      values: groups.map(({ workload, metric }) => {
        const compared = compare(section, workload, variant, metric);
        return compared === undefined ? undefined : pick(compared);
      }),
    })),
  });
  const throughput = workloads.flatMap((workload) => {
    const metric = mainMetric(section, workload);
    return metric === undefined ? [] : [{ title: shortTitle(workload), workload, metric }];
  });
  const cpu = workloads.map((workload) => ({
    title: shortTitle(workload),
    workload,
    metric: 'cpuUs' as const,
  }));
  const latency = workloads.includes('paced')
    ? (['p50Us', 'p99Us', 'p999Us'] as const).map((metric) => ({
        title: METRICS[metric].title,
        workload: 'paced',
        metric,
      }))
    : [];
  const unit = 'ratio to explicit';
  const plots: Record<string, Bars> = {
    throughput: {
      title: `${section.title}: throughput, more is better`,
      unit,
      line: 1,
      ...grouped(throughput, ({ ratio }) => ratio),
    },
    cpu: {
      title: `${section.title}: CPU of the whole machine for each, less is better`,
      unit,
      line: 1,
      ...grouped(cpu, ({ ratio }) => ratio),
    },
    latency: {
      title: `${section.title}: ${titleOf('paced')}, less is better`,
      unit: 'µs',
      ...grouped(latency, ({ value }) => value),
    },
  };
  return Object.fromEntries(Object.entries(plots).filter(([, { groups }]) => groups.length > 0));
}

function inShort(variant: VariantName): string {
  return VARIANTS[variant].split(/[:,]/)[0] ?? variant;
}

function shortTitle(workload: string): string {
  const [kind = '', clients] = workload.split('-');
  const names: Record<string, string> = {
    connects: 'new connections',
    requests: 'requests',
    bulk: 'bulk',
    paced: 'fixed rate',
  };
  return clients === undefined ? (names[kind] ?? kind) : `${names[kind] ?? kind} × ${clients}`;
}

function goalsTable(section: Section): string {
  const rows = outcomes(section).map(({ what, wanted, measured, verdict }) => [
    what,
    wanted,
    inRatio(measured),
    verdict,
  ]);
  return rows.length === 0
    ? ''
    : `### Goals\n\nAs ratios to explicit.\n\n${table(['', 'goal', 'measured', 'reached'], rows)}\n`;
}

function machineLines({ machine, rounds, seconds }: Results): string {
  const versions = Object.entries(machine.versions).map(([name, version]) => `${name} ${version}`);
  const gibibytes = (machine.memoryBytes / 2 ** 30).toFixed(0);
  return [
    `- ${machine.date.slice(0, 10)}, NodeSentry at \`${machine.commit}\``,
    `- ${machine.cpus} × ${machine.cpu}, ${gibibytes} GiB, Linux ${machine.kernel}`,
    `- ${versions.join(', ')}`,
    `- ${rounds} rounds, each run ${seconds} s after it was warm`,
  ].join('\n');
}

/** `report.md`, and one SVG per plot. */
export function writeReport(results: Results): Report {
  const files: Record<string, string> = {};
  const parts: string[] = [];
  for (const section of results.sections) {
    const pictures = Object.entries(plotsOf(section)).map(([name, bars]) => {
      const file = `${section.name}-${name}.svg`;
      files[file] = drawBars(bars);
      return `![${bars.title}](${file})`;
    });
    const busy = (section.busyBefore * 100).toFixed(0);
    parts.push(
      `## ${section.title}`,
      `Before the first run, ${busy} % of the machine was at work with something else.`,
      ...pictures,
      goalsTable(section),
      ...workloadsOf(section).map((workload) => workloadTable(section, workload)),
    );
  }
  const base = inShort(BASE);
  files['report.md'] = `${[
    '# What interception costs',
    'Written by `make bench`. How to repeat it, and how to read it: [README.md](README.md).',
    machineLines(results),
    `A cell is a median, and behind it the **ratio** to ${base} in the same round, with the least and the most that a round had.`,
    ...parts,
  ]
    .filter((part) => part !== '')
    .join('\n\n')}\n`;
  return files;
}
