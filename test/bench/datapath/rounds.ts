/** Rounds in which every variant is measured once, in the same order, and the first one again in the end. */

import { setTimeout as delay } from 'node:timers/promises';
import { startWork } from './machine.js';
import type { Standing, VariantName } from './variants.js';
import { type Metrics, metricsOf, type Told, type Workload, wordsOf } from './workloads.js';

export interface Run {
  readonly workload: string;
  readonly variant: VariantName;
  readonly round: number;
  /** Of the first variant: the second time in this round. What it differs by is the machine's own drift. */
  readonly repeated?: true;
  readonly metrics: Metrics;
  /** Seconds of CPU that the whole machine worked meanwhile. */
  readonly cpuSeconds: number;
  readonly told: Told;
}

/** For what the run before has left to be done: ended connections, buffers. */
const SETTLE_MS = 150;

async function measure(
  variant: Standing,
  workload: Workload,
  seconds: number,
): Promise<Pick<Run, 'metrics' | 'cpuSeconds' | 'told'>> {
  variant.wake();
  try {
    await delay(SETTLE_MS + variant.catchUpMs);
    const worked = startWork();
    const words = wordsOf(workload, variant.target, seconds);
    const { stdout, stderr } = await variant.client.load(words);
    const cpuSeconds = worked();
    if (!stdout.startsWith('{')) {
      throw new Error(`${stdout}${stderr}`);
    }
    const told = JSON.parse(stdout) as Told;
    return { metrics: metricsOf(workload, told, cpuSeconds), cpuSeconds, told };
  } catch (error) {
    throw new Error(`${variant.name}, ${workload.name}\n${variant.log()}`, { cause: error });
  } finally {
    variant.sleep();
  }
}

export interface RoundsOptions {
  readonly rounds: number;
  /** Of each run, without its warming up. */
  readonly seconds: number;
  readonly said?: (line: string) => void;
}

/** Workload by workload, so that what is compared was measured within the shortest time. */
export async function runRounds(
  variants: readonly Standing[],
  workloads: readonly Workload[],
  { rounds, seconds, said = () => undefined }: RoundsOptions,
): Promise<Run[]> {
  const runs: Run[] = [];
  const [first] = variants;
  if (first === undefined) {
    return runs;
  }
  for (const workload of workloads) {
    for (let round = 0; round < rounds; round++) {
      for (const variant of variants) {
        const measured = await measure(variant, workload, seconds);
        runs.push({ workload: workload.name, variant: variant.name, round, ...measured });
      }
      const again = await measure(first, workload, seconds);
      runs.push({ workload: workload.name, variant: first.name, round, repeated: true, ...again });
    }
    said(`${workload.title}: ${rounds} rounds`);
  }
  return runs;
}
