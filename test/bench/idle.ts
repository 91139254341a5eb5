/**
 * What the agent costs while nothing happens: CPU and memory with so many enrolled pods and one proxy, once all of them
 * are intercepted and the agent has been left alone for a while.
 *
 *   make bench-idle [PODS="10 1000"] [SECONDS=30] [ONLY=1000] [PROFILE=1]
 *
 * Prints a table; raw data in build/bench/idle.json. ONLY: that level alone, of those in PODS. PROFILE: the agent's
 * CPU profile of the measured time as build/bench/idle-<pods>.cpuprofile; measuring costs, so the table is not to be used.
 */

import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { TestAgent, TestProxy } from '../e2e/agent.js';
import { waitFor } from '../lab/exec.js';
import { Lab } from '../lab/lab.js';
import { NamespacePods } from '../lab/namespaces.js';

const LEVELS = (process.env.PODS ?? '10 1000')
  .split(' ')
  .map(Number)
  .filter((pods) => process.env.ONLY === undefined || pods === Number(process.env.ONLY));
const SECONDS = Number(process.env.SECONDS ?? 30);
/** What was started for the last pod has ended by then, and a collection of garbage has had its chance. */
const SETTLE_MS = 15_000;
/** Of `utime` and `stime`: USER_HZ, which is 100 on every architecture that Node runs on. */
const TICKS_PER_SECOND = 100;
const OUT = join(import.meta.dirname, '../../build/bench');
const PROFILER = join(import.meta.dirname, 'profile-on-signal.mjs');

interface Idle {
  readonly pods: number;
  /** Percent of one core: all threads of the process, in user mode and in the kernel. */
  readonly user: number;
  readonly system: number;
  readonly residentMiB: number;
  /** Times a second that a thread of the process gave up the CPU by itself, after it had been woken. */
  readonly wakeUps: number;
}

/** proc_pid_stat(5): utime and stime. */
function cpuTicks(pid: number): { user: number; system: number } {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? [];
  return { user: Number(fields[11]), system: Number(fields[12]) };
}

function residentMiB(pid: number): number {
  return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1_024;
}

function wakeUps(pid: number): number {
  return readdirSync(`/proc/${pid}/task`)
    .map((task) => readFileSync(`/proc/${pid}/task/${task}/status`, 'utf8'))
    .reduce((sum, status) => sum + Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(status)?.[1]), 0);
}

async function profiled(pid: number, path: string, measure: () => Promise<Idle>): Promise<Idle> {
  process.kill(pid, 'SIGUSR2');
  try {
    return await measure();
  } finally {
    process.kill(pid, 'SIGUSR2');
    await waitFor('the profile', () => existsSync(path));
  }
}

async function measure(pid: number, pods: number): Promise<Idle> {
  const [cpu, woken, startedMs] = [cpuTicks(pid), wakeUps(pid), performance.now()];
  await delay(SECONDS * 1_000);
  const [cpuAfter, wokenAfter] = [cpuTicks(pid), wakeUps(pid)];
  const seconds = (performance.now() - startedMs) / 1_000;
  const percent = (ticks: number) => ((ticks / TICKS_PER_SECOND) * 100) / seconds;
  return {
    pods,
    user: percent(cpuAfter.user - cpu.user),
    system: percent(cpuAfter.system - cpu.system),
    residentMiB: residentMiB(pid),
    wakeUps: (wokenAfter - woken) / seconds,
  };
}

mkdirSync(OUT, { recursive: true });
const lab = await Lab.create();
try {
  const agent = new TestAgent(lab, { sources: { cni: {} }, interception: { enrol: 'all' } });
  const profile = join(OUT, 'idle.cpuprofile');
  if (process.env.PROFILE !== undefined) {
    process.env.NODE_OPTIONS = `--import=${PROFILER}`;
    process.env.PROFILE_TO = profile;
  }
  await agent.start();
  delete process.env.NODE_OPTIONS;
  await new TestProxy(lab, agent).start();
  await agent.adopted(2);
  const pods = new NamespacePods(lab, { socket: join(agent.runDir, 'cni.sock') });
  const measured: Idle[] = [];
  for (const level of LEVELS.sort((a, b) => a - b)) {
    while (pods.live().length < level) {
      await Promise.all(Array.from({ length: Math.min(8, level - pods.live().length) }, () => pods.add()));
    }
    await waitFor(
      `${level} intercepted pods`,
      async () => {
        const { workloads } = await agent.client.workloads();
        return workloads.filter(({ interception }) => interception.state === 'INTERCEPTED').length === level;
      },
      60_000,
      500,
    );
    await delay(SETTLE_MS);
    rmSync(profile, { force: true });
    const look = () => measure(agent.pid, level);
    measured.push(
      process.env.PROFILE === undefined ? await look() : await profiled(agent.pid, profile, look),
    );
    if (existsSync(profile)) {
      writeFileSync(join(OUT, `idle-${level}.cpuprofile`), readFileSync(profile));
      rmSync(profile);
    }
  }
  const machine = { cpu: cpus()[0]?.model, cpus: cpus().length, kernel: release(), node: process.version };
  writeFileSync(join(OUT, 'idle.json'), JSON.stringify({ machine, seconds: SECONDS, measured }, null, 1));
  console.log(`\n${JSON.stringify(machine)}, ${SECONDS} s each\n`);
  console.log('| pods | CPU, % of a core | user | system | resident, MiB | wake-ups a second |');
  console.log('|---|---|---|---|---|---|');
  for (const idle of measured) {
    const [user, system] = [idle.user, idle.system];
    const shares = [user + system, user, system].map((share) => share.toFixed(2));
    const rest = [idle.residentMiB.toFixed(1), idle.wakeUps.toFixed(0)];
    console.log(`| ${[idle.pods, ...shares, ...rest].join(' | ')} |`);
  }
} finally {
  await lab.close();
}
