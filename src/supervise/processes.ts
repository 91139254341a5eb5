/** Processes as /proc tells of them. */

import { readdirSync, readFileSync } from 'node:fs';

/** A pid alone is soon another's. */
export interface ProcessId {
  readonly pid: number;
  /** In clock ticks since boot: proc_pid_stat(5), field 22. */
  readonly startTime: number;
}

/** Undefined where there is none, or only what its parent has not asked for. */
export function processIdOf(pid: number): ProcessId | undefined {
  const fields = statOf(pid);
  return fields === undefined || fields[0] === 'Z' || fields[0] === 'X'
    ? undefined
    : { pid, startTime: Number(fields[19]) };
}

export function isAlive({ pid, startTime }: ProcessId): boolean {
  return processIdOf(pid)?.startTime === startTime;
}

/** Bytes of all processes of a group, what they share counted by its share (PSS). */
export function memoryOfGroup(group: number): number {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(statOf(Number(name))?.[2]) === group)
    .map((name) => /^Pss:\s+(\d+) kB$/m.exec(textOf(`/proc/${name}/smaps_rollup`) ?? '')?.[1])
    .reduce((sum, kibibytes) => sum + Number(kibibytes ?? 0) * 1024, 0);
}

/** Returns whether there was anybody to tell. */
export function signalGroup(group: number, signal: NodeJS.Signals): boolean {
  try {
    return process.kill(-group, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') {
      return false;
    }
    throw error;
  }
}

/** From field 3 on: what stands before it may contain anything. */
function statOf(pid: number): string[] | undefined {
  return textOf(`/proc/${pid}/stat`)
    ?.replace(/^.*\) /s, '')
    .split(' ');
}

function textOf(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined; // it has ended meanwhile
  }
}
