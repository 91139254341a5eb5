/**
 * How long the node's agent is away when it is started anew: from the start of its process until it is ready, with so
 * many pods pinned in the kernel from the agent before it.
 *
 *   make bench-start [PODS="10 1000"] [TIMES=5]      prints a table; raw data in build/bench/start.json
 */

import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { join } from 'node:path';
import { TestAgent, TestProxy } from '../e2e/agent.js';
import { waitFor } from '../lab/exec.js';
import { Lab } from '../lab/lab.js';
import { NamespacePods } from '../lab/namespaces.js';

const LEVELS = (process.env.PODS ?? '10 1000').split(' ').map(Number);
const TIMES = Number(process.env.TIMES ?? 5);
const OUT = join(import.meta.dirname, '../../build/bench');
const LOOK_MS = 10;

interface Start {
  readonly pods: number;
  /** From the start of the process, in milliseconds: programs are taken over. */
  readonly programsMs: number;
  /** It says that it runs: the first whole round has ended. */
  readonly runningMs: number;
  /** `status` says that it is ready. */
  readonly readyMs: number;
  /** Every pod is intercepted, and proven anew. */
  readonly provenMs: number;
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1] ?? Number.NaN;
}

/** Milliseconds of Unix time at which this agent has said so. */
function saidMs(log: string, message: string): number {
  const line = log.split('\n').find((candidate) => candidate.includes(`"msg":"${message}"`)) ?? '{}';
  return new Date((JSON.parse(line) as { time: string | number }).time).getTime();
}

async function measure(agent: TestAgent, pods: number): Promise<Start> {
  await agent.stop();
  const startedMs = Date.now();
  const since = () => Date.now() - startedMs;
  await agent.start({ ready: false });
  const isReady = () =>
    agent.client.status().then(
      ({ ready }) => ready,
      () => false,
    );
  await waitFor('the agent to be ready', isReady, 60_000, LOOK_MS);
  const readyMs = since();
  const intercepted = async () => {
    const { workloads } = await agent.client.workloads();
    return workloads.filter(({ interception }) => interception.state === 'INTERCEPTED').length;
  };
  await waitFor('every pod to be proven', async () => (await intercepted()) === pods, 60_000, LOOK_MS);
  const provenMs = since();
  const log = agent.log();
  return {
    pods,
    programsMs: saidMs(log, 'BPF programs ready') - startedMs,
    runningMs: saidMs(log, 'agent running') - startedMs,
    readyMs,
    provenMs,
  };
}

mkdirSync(OUT, { recursive: true });
const lab = await Lab.create();
try {
  const agent = new TestAgent(lab, { sources: { cni: {} }, interception: { enrol: 'all' } });
  await agent.start();
  await new TestProxy(lab, agent).start();
  await agent.adopted(2);
  const pods = new NamespacePods(lab, { socket: join(agent.runDir, 'cni.sock') });
  const starts: Start[] = [];
  for (const level of LEVELS.sort((a, b) => a - b)) {
    while (pods.live().length < level) {
      await Promise.all(Array.from({ length: Math.min(8, level - pods.live().length) }, () => pods.add()));
    }
    for (let time = 0; time < TIMES; time++) {
      starts.push(await measure(agent, level));
    }
  }
  const machine = { cpu: cpus()[0]?.model, cpus: cpus().length, kernel: release(), node: process.version };
  writeFileSync(join(OUT, 'start.json'), JSON.stringify({ machine, starts }, null, 1));
  console.log(`\n${JSON.stringify(machine)}, medians of ${TIMES} starts, the longest in brackets\n`);
  console.log('| pods | programs, ms | running | ready | every pod proven |');
  console.log('|---|---|---|---|---|');
  for (const level of LEVELS) {
    const own = starts.filter((start) => start.pods === level);
    const cells = (['programsMs', 'runningMs', 'readyMs', 'provenMs'] as const).map((name) => {
      const values = own.map((start) => start[name]);
      return `${median(values)} (${Math.max(...values)})`;
    });
    console.log(`| ${[level, ...cells].join(' | ')} |`);
  }
} finally {
  await lab.close();
}
