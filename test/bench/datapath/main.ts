/**
 * What interception costs: the same proxy dialled by the pod, and given its connections by NodeSentry and by what else
 * there is.
 *
 *   make bench [QUICK=1] [ROUNDS=5] [SECONDS=2] [SECTIONS="haproxy-runc"] [VARIANTS="explicit ours"] [WORKLOADS="paced"]
 *
 * A report with its plots and its raw data (data.json): in docs/benchmarks, and the README's lines; of QUICK, or of a
 * part, in build/bench/datapath. How to read it: docs/benchmarks/README.md
 */

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { busyNow, describeMachine } from './machine.js';
import { ENVOY } from './proxies.js';
import { readmeLines, withBenchmark } from './readme.js';
import { writeReport } from './report.js';
import type { Results, Section } from './results.js';
import { runRounds } from './rounds.js';
import { SECTIONS, type SectionPlan } from './sections.js';
import { Stand } from './stand.js';
import { VARIANTS, type VariantName } from './variants.js';
import { QUICK_WORKLOADS, WORKLOADS } from './workloads.js';

const QUICK = process.env.QUICK === '1';
const ROUNDS = Number(process.env.ROUNDS ?? (QUICK ? 2 : 5));
const SECONDS = Number(process.env.SECONDS ?? (QUICK ? 1 : 2));
const ROOT = join(import.meta.dirname, '../../..');
const DOCUMENTED = join(ROOT, 'docs/benchmarks');
const PARTIAL = ['SECTIONS', 'VARIANTS', 'WORKLOADS'].some((name) => process.env[name] !== undefined);
/** What a look tells, or a part, is not what the documentation shows. */
const OUT = process.env.OUT ?? (QUICK || PARTIAL ? join(ROOT, 'build/bench/datapath') : DOCUMENTED);

/** Those of the list in the environment, all of them where there is none; throws for a name that nothing has. */
function named<T>(variable: string, all: readonly T[], nameOf: (one: T) => string): T[] {
  const wanted = process.env[variable]?.split(/[\s,]+/).filter((word) => word !== '');
  const unknown = wanted?.find((word) => !all.some((one) => nameOf(one) === word));
  if (unknown !== undefined) {
    throw new Error(`${variable}: there is no ${unknown}, but ${all.map(nameOf).join(', ')}`);
  }
  return all.filter((one) => wanted?.includes(nameOf(one)) ?? true);
}

function save(results: Results): void {
  mkdirSync(OUT, { recursive: true });
  writeFileSync(join(OUT, 'data.json'), `${JSON.stringify(results)}\n`);
  for (const [name, text] of Object.entries(writeReport(results))) {
    writeFileSync(join(OUT, name), text);
  }
  const lines = readmeLines(results);
  if (OUT === DOCUMENTED && lines !== undefined) {
    const path = join(ROOT, 'README.md');
    writeFileSync(path, withBenchmark(readFileSync(path, 'utf8'), lines));
  }
  console.log(`${join(OUT, 'report.md')} is written`);
}

const plans = named('SECTIONS', QUICK ? SECTIONS.slice(0, 1) : SECTIONS, ({ name }) => name);
const variants = named('VARIANTS', Object.keys(VARIANTS) as VariantName[], (name) => name);
const workloads = named('WORKLOADS', QUICK ? QUICK_WORKLOADS : WORKLOADS, ({ name }) => name);
const machine = await describeMachine({
  HAProxy: ['haproxy', '-v'],
  Envoy: [ENVOY, '--version'],
  nftables: ['nft', '--version'],
  iptables: ['iptables', '--version'],
});

let stand = new Stand();
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    void stand.close().finally(() => process.exit(1));
  });
}

async function measure(plan: SectionPlan): Promise<Section> {
  stand = new Stand();
  try {
    await stand.build(
      plan,
      plan.variants.filter((name) => variants.includes(name)),
    );
    const busyBefore = await busyNow();
    if (busyBefore > 0.05) {
      console.log(
        `${plan.title}: this machine is busy with something else (${(busyBefore * 100).toFixed(0)} %)`,
      );
    }
    const runs = await runRounds(
      stand.variants,
      plan.workloads.filter(({ name }) => workloads.some((wanted) => wanted.name === name)),
      {
        rounds: Math.ceil(ROUNDS * plan.share),
        seconds: SECONDS,
        said: (line) => console.log(`${plan.title}: ${line}`),
      },
    );
    return { name: plan.name, title: plan.title, busyBefore, runs };
  } finally {
    await stand.close();
  }
}

const sections: Section[] = [];
for (const plan of plans) {
  try {
    sections.push(await measure(plan));
    save({ machine, rounds: ROUNDS, seconds: SECONDS, sections });
  } catch (error) {
    // What the other parts say is none the worse for it.
    console.error(`${plan.title} could not be measured:`, error);
    process.exitCode = 1;
  }
}
