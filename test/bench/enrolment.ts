/**
 * How long a starting pod waits for us: from the start of the CNI plugin's process to its end, with the pod's datapath
 * in place and proven, on a node with few and with many pods. The levels take turns: few, many, few, many.
 *
 *   make bench-enrolment [PODS=1000] [SAMPLES=300] [TURNS=2] [RATE=20]      prints tables; raw data in build/bench/enrolment.json
 *
 * Where the time goes: the agent says what each pod waited for in it (src/reconcile/starting-pods.ts, at log level debug). What
 * is left is outside of it: the plugin's process, its connection, the wait for the agent's event loop, the way back. What
 * a process costs that asks nobody is measured in between, by the same plugin's VERSION.
 */

import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { START_PARTS, type StartPart, type StartTimes } from '../../src/reconcile/starting-pods.js';
import { TestAgent } from '../e2e/agent.js';
import { Lab } from '../lab/lab.js';
import { NamespacePods, PLUGIN } from '../lab/namespaces.js';

const FEW = 10;
const MANY = Number(process.env.PODS ?? 1_000);
const SAMPLES = Number(process.env.SAMPLES ?? 300);
const TURNS = Number(process.env.TURNS ?? 2);
const PER_SECOND = Number(process.env.RATE ?? 20);
/** A process that asks nobody is measured for so many pods once. */
const PROCESS_EVERY = 10;
const OUT = join(import.meta.dirname, '../../build/bench');

interface Add {
  readonly uid: string;
  /** From the start of the plugin's process to its end. */
  readonly ms: number;
  /** Of these, what the agent tells of. */
  times: StartTimes;
}

interface Round {
  readonly standing: number;
  /** In the order of measurement. */
  readonly adds: readonly Add[];
  /** From the start of a plugin's process that asks nobody to its end. */
  readonly processMs: readonly number[];
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
  const adds: Add[] = [];
  const processMs: number[] = [];
  const running: Promise<void>[] = [];
  for (let i = 0; i < SAMPLES; i++) {
    running.push(
      (async () => {
        const pod = await pods.add();
        adds.push({ uid: pod.uid, ms: pod.addMs, times: {} });
        await delay(500);
        await pods.remove(pod);
      })(),
    );
    await delay(1_000 / PER_SECOND / 2);
    if (i % PROCESS_EVERY === 0) {
      running.push(askNobody().then((ms) => void processMs.push(ms)));
    }
    await delay(1_000 / PER_SECOND / 2);
  }
  await Promise.all(running);
  return { standing, adds, processMs, agentCpuShare, agentBytes: residentBytes(agent.pid) };
}

function askNobody(): Promise<number> {
  return new Promise((resolve, reject) => {
    const startedMs = performance.now();
    const child = spawn(PLUGIN, [], {
      env: { CNI_COMMAND: 'VERSION' },
      stdio: ['pipe', 'ignore', 'inherit'],
    });
    child.once('error', reject);
    child.once('close', () => resolve(performance.now() - startedMs));
    child.stdin.end('{"cniVersion":"1.0.0"}');
  });
}

/** What the agent has logged of each pod, by UID. */
function toldTimes(log: string): ReadonlyMap<string, StartTimes> {
  const told = log
    .split('\n')
    .filter((line) => line.includes('"what a pod waited for"'))
    .map((line) => JSON.parse(line) as { uid: string; ms: StartTimes });
  return new Map(told.map(({ uid, ms }) => [uid, ms]));
}

function outsideMs({ ms, times }: Add): number {
  return ms - Object.values(times).reduce((sum, part) => sum + part, 0);
}

function row(name: string, byLevel: readonly (readonly number[])[]): string {
  const cells = byLevel.flatMap((values) => [0.5, 0.99].map((q) => quantile(values, q).toFixed(1)));
  return `| ${[name, ...cells].join(' | ')} |`;
}

function printParts(rounds: readonly Round[]): void {
  const levels = [FEW, MANY].map((standing) => rounds.filter((round) => round.standing === standing));
  const adds = levels.map((level) => level.flatMap((round) => round.adds));
  const part = (name: StartPart) => adds.map((level) => level.map(({ times }) => times[name] ?? 0));
  console.log(`\n| ms | ${[FEW, MANY].map((n) => `p50, ${n} pods | p99, ${n} pods`).join(' | ')} |`);
  console.log('|---|---|---|---|---|');
  console.log(
    row(
      'a process that asks nobody',
      levels.map((level) => level.flatMap((r) => r.processMs)),
    ),
  );
  console.log(
    row(
      'outside the agent, process included',
      adds.map((level) => level.map(outsideMs)),
    ),
  );
  for (const name of START_PARTS) {
    console.log(row(name, part(name)));
  }
  console.log(
    row(
      'ADD',
      adds.map((level) => level.map(({ ms }) => ms)),
    ),
  );
  const ratio = (q: number) => {
    const [few = Number.NaN, many = Number.NaN] = adds.map((level) =>
      quantile(
        level.map(({ ms }) => ms),
        q,
      ),
    );
    return (many / few).toFixed(2);
  };
  console.log(`\nAt ${MANY} pods of that at ${FEW}: p50 ${ratio(0.5)} times, p99 ${ratio(0.99)} times`);
}

const lab = await Lab.create();
try {
  const agent = new TestAgent(lab, { sources: { cni: {} }, interception: { enrol: 'all' } });
  agent.writeConfig({ log: { level: 'debug' } });
  await agent.start();
  const pods = new NamespacePods(lab, { socket: join(agent.runDir, 'cni.sock') });
  const rounds: Round[] = [];
  for (const standing of Array.from({ length: TURNS }, () => [FEW, MANY]).flat()) {
    rounds.push(await measure(agent, pods, standing));
    console.log(`measured at ${standing} pods`);
  }
  const told = toldTimes(agent.log());
  for (const add of rounds.flatMap(({ adds }) => adds)) {
    add.times = told.get(add.uid) ?? {};
  }
  mkdirSync(OUT, { recursive: true });
  const machine = { cpu: cpus()[0]?.model, cpus: cpus().length, kernel: release(), node: process.version };
  writeFileSync(join(OUT, 'enrolment.json'), JSON.stringify({ machine, rounds }, null, 1));
  console.log(`\n${JSON.stringify(machine)}\n`);
  console.log(
    '| pods on the node | ADD p50 ms | p90 | p99 | max | agent idle, % of a core | agent resident, MiB |',
  );
  console.log('|---|---|---|---|---|---|---|');
  for (const { standing, adds, agentCpuShare, agentBytes } of rounds) {
    const all = adds.map(({ ms }) => ms);
    const cells = [0.5, 0.9, 0.99, 1].map((q) => quantile(all, q).toFixed(1));
    console.log(
      `| ${standing} | ${cells.join(' | ')} | ${(agentCpuShare * 100).toFixed(1)} | ${(agentBytes / 2 ** 20).toFixed(0)} |`,
    );
  }
  printParts(rounds);
} finally {
  await lab.close();
}
