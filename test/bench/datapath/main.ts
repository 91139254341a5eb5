/**
 * What interception costs: the same proxy dialled by the pod, and given its connections by NodeSentry and by what else
 * there is.
 *
 *   make bench [QUICK=1] [ROUNDS=5] [SECONDS=2] [VARIANTS="explicit ours"] [WORKLOADS="connects-64"]
 *
 * Raw data in build/bench/datapath.json. How to read it: docs/benchmarks/README.md
 */

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describeMachine, type Machine } from './machine.js';
import { type Run, runRounds } from './rounds.js';
import { ratios, type Sample, summarise } from './statistics.js';
import { Stand, VARIANTS, type VariantName } from './variants.js';
import { METRICS, type MetricName, QUICK_WORKLOADS, WORKLOADS, type Workload } from './workloads.js';

const QUICK = process.env.QUICK === '1';
const ROUNDS = Number(process.env.ROUNDS ?? (QUICK ? 2 : 5));
const SECONDS = Number(process.env.SECONDS ?? (QUICK ? 1 : 2));
const OUT = join(import.meta.dirname, '../../../build/bench');

/** Those of the list in the environment, all of them where there is none; throws for a name that nothing has. */
function named<T>(variable: string, all: readonly T[], nameOf: (one: T) => string): T[] {
  const wanted = process.env[variable]?.split(/[\s,]+/).filter((word) => word !== '');
  const unknown = wanted?.find((word) => !all.some((one) => nameOf(one) === word));
  if (unknown !== undefined) {
    throw new Error(`${variable}: there is no ${unknown}, but ${all.map(nameOf).join(', ')}`);
  }
  return all.filter((one) => wanted?.includes(nameOf(one)) ?? true);
}

function table(runs: readonly Run[], workload: Workload): string {
  const of = (variant: string, metric: MetricName): Sample[] =>
    runs
      .filter((run) => run.workload === workload.name && run.variant === variant && run.repeated !== true)
      .flatMap(({ round, metrics }) => {
        const value = metrics[metric];
        return value === undefined ? [] : [{ round, value }];
      });
  const variants = [...new Set(runs.map(({ variant }) => variant))];
  const metrics = (Object.keys(METRICS) as MetricName[]).filter((metric) =>
    variants.some((variant) => of(variant, metric).length > 0),
  );
  const lines = variants.map((variant) => {
    const cells = metrics.map((metric) => {
      const { median } = summarise(of(variant, metric).map(({ value }) => value));
      const ratio = ratios(of(variant, metric), of('explicit', metric));
      const spread = `${ratio.min.toFixed(2)}–${ratio.max.toFixed(2)}`;
      return `${median.toPrecision(4)} (${ratio.median.toFixed(2)}; ${spread})`;
    });
    return `| ${VARIANTS[variant]} | ${cells.join(' | ')} |`;
  });
  const head = metrics.map((metric) => `${METRICS[metric].title}, ${METRICS[metric].unit}`);
  return [
    workload.title,
    `| | ${head.join(' | ')} |`,
    `|---|${metrics.map(() => '---|').join('')}`,
    ...lines,
  ].join('\n');
}

const variants = named('VARIANTS', Object.keys(VARIANTS) as VariantName[], (name) => name);
const workloads = named('WORKLOADS', QUICK ? QUICK_WORKLOADS : WORKLOADS, ({ name }) => name);
const machine: Machine = await describeMachine({
  HAProxy: ['haproxy', '-v'],
  nftables: ['nft', '--version'],
  iptables: ['iptables', '--version'],
});
const stand = new Stand();
try {
  await stand.build('HAProxy', variants);
  const runs = await runRounds(stand.variants, workloads, {
    rounds: ROUNDS,
    seconds: SECONDS,
    said: (line) => console.log(line),
  });
  mkdirSync(OUT, { recursive: true });
  const path = join(OUT, 'datapath.json');
  writeFileSync(path, `${JSON.stringify({ machine, rounds: ROUNDS, seconds: SECONDS, runs })}\n`);
  console.log(`\n${JSON.stringify(machine)}\n`);
  for (const workload of workloads) {
    console.log(`${table(runs, workload)}\n`);
  }
} finally {
  await stand.close();
}
