/**
 * What interception costs: the same proxy dialled by the pod, and given its connections by NodeSentry and by what else
 * there is.
 *
 *   make bench [QUICK=1] [ROUNDS=5] [SECONDS=2] [VARIANTS="explicit ours"] [WORKLOADS="connects-64"]
 *
 * A report with its plots and its raw data (data.json): in docs/benchmarks, or of QUICK in build/bench/quick. How to read it:
 * docs/benchmarks/README.md
 */

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describeMachine, type Machine } from './machine.js';
import { writeReport } from './report.js';
import type { Results, Section } from './results.js';
import { runRounds } from './rounds.js';
import { Stand, VARIANTS, type VariantName } from './variants.js';
import { QUICK_WORKLOADS, WORKLOADS } from './workloads.js';

const QUICK = process.env.QUICK === '1';
const ROUNDS = Number(process.env.ROUNDS ?? (QUICK ? 2 : 5));
const SECONDS = Number(process.env.SECONDS ?? (QUICK ? 1 : 2));
const ROOT = join(import.meta.dirname, '../../..');
/** What a look tells is not what the documentation shows. */
const OUT = join(ROOT, QUICK ? 'build/bench/quick' : 'docs/benchmarks');

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
  console.log(`${join(OUT, 'report.md')} is written`);
}

const variants = named('VARIANTS', Object.keys(VARIANTS) as VariantName[], (name) => name);
const workloads = named('WORKLOADS', QUICK ? QUICK_WORKLOADS : WORKLOADS, ({ name }) => name);
const machine: Machine = await describeMachine({
  HAProxy: ['haproxy', '-v'],
  nftables: ['nft', '--version'],
  iptables: ['iptables', '--version'],
});
const sections: Section[] = [];
const stand = new Stand();
try {
  await stand.build('HAProxy', variants);
  const runs = await runRounds(stand.variants, workloads, {
    rounds: ROUNDS,
    seconds: SECONDS,
    said: (line) => console.log(line),
  });
  sections.push({ name: 'haproxy-runc', title: 'HAProxy, runc', runs });
} finally {
  await stand.close();
}
save({ machine, rounds: ROUNDS, seconds: SECONDS, sections });
