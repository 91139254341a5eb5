/**
 * How long a starting pod waits for us: from the start of the CNI plugin's process to its end, with the pod's datapath
 * in place and proven, on a node with few and with many pods. The levels take turns: few, many, few, many.
 *
 *   make bench-enrolment [PODS=1000] [SAMPLES=300]      prints a table; raw data in build/bench/enrolment.json
 */

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { TestAgent } from '../e2e/agent.js';
import { Lab } from '../lab/lab.js';
import { type NamespacePod, NamespacePods } from '../lab/namespaces.js';

const FEW = 10;
const MANY = Number(process.env.PODS ?? 1_000);
const SAMPLES = Number(process.env.SAMPLES ?? 300);
const PER_SECOND = 20;
const OUT = join(import.meta.dirname, '../../build/bench');

interface Round {
  readonly standing: number;
  /** Milliseconds, in the order of measurement. */
  readonly addMs: readonly number[];
  readonly agentCpuShare: number;
  readonly agentBytes: number;
}

function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(q * sorted.length) - 1)] ?? Number.NaN;
}

/** Seconds of CPU that a process has used: proc(5), fields 14 and 15, in ticks of 10 ms. */
function cpuSeconds(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? [];
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

function residentBytes(pid: number): number {
  return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024;
}

async function stand(pods: NamespacePods, count: number): Promise<void> {
  while (pods.live().length < count) {
    await Promise.all(Array.from({ length: Math.min(8, count - pods.live().length) }, () => pods.add()));
  }
  while (pods.live().length > count) {
    const going = pods.live().slice(count, count + 8);
    await Promise.all(going.map((pod) => pods.remove(pod)));
  }
}

async function measure(agent: TestAgent, pods: NamespacePods, standing: number): Promise<Round> {
  await stand(pods, standing);
  await delay(3_000);
  const before = cpuSeconds(agent.pid);
  await delay(5_000);
  const agentCpuShare = (cpuSeconds(agent.pid) - before) / 5;
  const addMs: number[] = [];
  const running: Promise<void>[] = [];
  for (let i = 0; i < SAMPLES; i++) {
    running.push(
      (async () => {
        const pod: NamespacePod = await pods.add();
        addMs.push(pod.addMs);
        await delay(500);
        await pods.remove(pod);
      })(),
    );
    await delay(1_000 / PER_SECOND);
  }
  await Promise.all(running);
  return { standing, addMs, agentCpuShare, agentBytes: residentBytes(agent.pid) };
}

const lab = await Lab.create();
try {
  const agent = new TestAgent(lab, { sources: { cni: {} }, interception: { enrol: 'all' } });
  await agent.start();
  const pods = new NamespacePods(lab, { socket: join(agent.runDir, 'cni.sock') });
  const rounds: Round[] = [];
  for (const standing of [FEW, MANY, FEW, MANY]) {
    rounds.push(await measure(agent, pods, standing));
    console.log(`measured at ${standing} pods`);
  }
  mkdirSync(OUT, { recursive: true });
  const machine = { cpu: cpus()[0]?.model, cpus: cpus().length, kernel: release(), node: process.version };
  writeFileSync(join(OUT, 'enrolment.json'), JSON.stringify({ machine, rounds }, null, 1));
  console.log(`\n${JSON.stringify(machine)}\n`);
  console.log(
    '| pods on the node | ADD p50 ms | p90 | p99 | max | agent idle, % of a core | agent resident, MiB |',
  );
  console.log('|---|---|---|---|---|---|---|');
  for (const { standing, addMs, agentCpuShare, agentBytes } of rounds) {
    const cells = [0.5, 0.9, 0.99, 1].map((q) => quantile(addMs, q).toFixed(1));
    console.log(
      `| ${standing} | ${cells.join(' | ')} | ${(agentCpuShare * 100).toFixed(1)} | ${(agentBytes / 2 ** 20).toFixed(0)} |`,
    );
  }
  const all = (standing: number) =>
    rounds.filter((round) => round.standing === standing).flatMap(({ addMs }) => addMs);
  const [few, many] = [quantile(all(FEW), 0.99), quantile(all(MANY), 0.99)];
  console.log(
    `\np99 at ${MANY} pods: ${many.toFixed(1)} ms; of that at ${FEW}: ${(many / few).toFixed(2)} times`,
  );
} finally {
  await lab.close();
}
