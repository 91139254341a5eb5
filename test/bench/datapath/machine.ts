/** The machine that is measured on, and what it works. */

import { readFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { run } from '../../lab/exec.js';

export interface Machine {
  readonly cpu: string;
  readonly cpus: number;
  readonly memoryBytes: number;
  readonly kernel: string;
  /** Of what took part, as each says of itself. */
  readonly versions: Readonly<Record<string, string>>;
  /** ISO 8601. */
  readonly date: string;
  /** Of NodeSentry; `-dirty` where files were changed. */
  readonly commit: string;
}

const ROOT = new URL('../../..', import.meta.url).pathname;

export async function describeMachine(tools: Readonly<Record<string, readonly string[]>>): Promise<Machine> {
  const versions: Record<string, string> = { Node: process.version };
  for (const [name, [command = '', ...words]] of Object.entries(tools)) {
    versions[name] = /\d+\.\d[\w.+~-]*/.exec(await run(command, words))?.[0] ?? 'unknown';
  }
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cpus: cpus().length,
    memoryBytes: totalmem(),
    kernel: release(),
    versions,
    date: new Date().toISOString(),
    commit: (await run('git', ['-C', ROOT, 'describe', '--always', '--dirty'])).trim(),
  };
}

/** In ticks of proc(5): a hundredth of a second on every kernel that there is. */
const TICKS_PER_SECOND = 100;

/**
 * Seconds that the processors had nothing to do, or were taken by the host of this virtual machine: `idle`, `iowait` and
 * `steal` of the first line of /proc/stat (proc_stat(5)).
 */
export function idleSeconds(stat: string): number {
  const [, , , , idle = 0, iowait = 0, , , steal = 0] = (stat.split('\n')[0] ?? '').split(/\s+/).map(Number);
  return (idle + iowait + steal) / TICKS_PER_SECOND;
}

/** Seconds of CPU that the whole machine has worked since, of all its processors, kernel and interrupts included. */
export function startWork(): () => number {
  const [startedMs, idle] = [performance.now(), idleSeconds(readFileSync('/proc/stat', 'utf8'))];
  return () => {
    const seconds = (performance.now() - startedMs) / 1_000;
    return Math.max(0, cpus().length * seconds - (idleSeconds(readFileSync('/proc/stat', 'utf8')) - idle));
  };
}

/** What part of all processors is at work, of one second. */
export async function busyNow(): Promise<number> {
  const startedMs = performance.now();
  const worked = startWork();
  await delay(1_000);
  return worked() / ((cpus().length * (performance.now() - startedMs)) / 1_000);
}
