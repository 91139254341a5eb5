/**
 * One agent per run directory: a locked file that names its holder. The lock ends with its process, the name may stay.
 */

import {
  closeSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { tryLock } from '../native/locks.js';

export class AlreadyRunningError extends Error {
  override readonly name = 'AlreadyRunningError';
  readonly code = 'ALREADY_RUNNING';
  constructor(runDir: string, pid: number | undefined, who: string) {
    super(`${who} is already running on ${runDir}${pid === undefined ? '' : ` (pid ${pid})`}`);
  }
}

export class RunDirError extends Error {
  override readonly name = 'RunDirError';
  readonly code = 'RUN_DIR';
  constructor(runDir: string, cause: unknown) {
    const why = cause instanceof Error ? cause.message : String(cause);
    super(`the run directory ${runDir} cannot be written to: ${why}`, { cause });
  }
}

/** The pid of the live agent that holds `runDir`; undefined where there is none. */
export function lockHolder(runDir: string): number | undefined {
  const named = namedIn(join(runDir, 'agent.pid'));
  return named !== undefined && startTime(named.pid) === named.started ? named.pid : undefined;
}

/** Throws AlreadyRunningError while another agent has the lock, and RunDirError. */
export function takeLock(runDir: string, who = 'an agent'): { release(): void } {
  try {
    return lock(runDir, who);
  } catch (error) {
    throw error instanceof AlreadyRunningError ? error : new RunDirError(runDir, error);
  }
}

function lock(runDir: string, who: string): { release(): void } {
  mkdirSync(runDir, { recursive: true, mode: 0o755 });
  const path = join(runDir, 'agent.pid');
  for (;;) {
    const fd = openSync(path, 'a+', 0o644);
    try {
      const isLocked = tryLock(fd);
      if (isLocked && !isFileAt(path, fd)) {
        closeSync(fd); // its holder took it away while we waited for nothing: another file is the lock now
        continue;
      }
      // An agent of before this lock names itself, and holds none.
      const holder = lockHolder(runDir);
      if (!isLocked || holder !== undefined) {
        throw new AlreadyRunningError(runDir, holder ?? namedIn(path)?.pid, who);
      }
      ftruncateSync(fd);
      writeSync(fd, `${process.pid} ${startTime(process.pid) ?? ''}\n`);
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    return {
      release: () => {
        rmSync(path, { force: true });
        closeSync(fd);
      },
    };
  }
}

function namedIn(path: string): { readonly pid: number; readonly started: string } | undefined {
  try {
    const [pid, started] = readFileSync(path, 'utf8').trim().split(' ');
    return pid === undefined || started === undefined ? undefined : { pid: Number(pid), started };
  } catch {
    return undefined;
  }
}

function isFileAt(path: string, fd: number): boolean {
  const there = statSync(path, { throwIfNoEntry: false });
  const { dev, ino } = fstatSync(fd);
  return there?.dev === dev && there.ino === ino;
}

/** Start time in clock ticks since boot tells a process from a later one with its pid (proc(5), field 22). */
function startTime(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined;
  }
}
