/** One agent per run directory: a lock file that names its holder, and does not outlive it. */

import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export class AlreadyRunningError extends Error {
  override readonly name = 'AlreadyRunningError';
  readonly code = 'ALREADY_RUNNING';
  constructor(runDir: string, pid: number) {
    super(`an agent is already running on ${runDir} (pid ${pid})`);
  }
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

/** The pid of the live agent that holds `runDir`, if any. */
export function lockHolder(runDir: string): number | undefined {
  try {
    const [pid, started] = readFileSync(join(runDir, 'agent.pid'), 'utf8').trim().split(' ');
    return started !== undefined && startTime(Number(pid)) === started ? Number(pid) : undefined;
  } catch {
    return undefined;
  }
}

export function takeLock(runDir: string): { release(): void } {
  mkdirSync(runDir, { recursive: true, mode: 0o755 });
  const path = join(runDir, 'agent.pid');
  const line = `${process.pid} ${startTime(process.pid) ?? ''}\n`;
  for (let attempt = 0; ; attempt++) {
    try {
      writeFileSync(path, line, { flag: 'wx', mode: 0o644 });
      return { release: () => rmSync(path, { force: true }) };
    } catch (error) {
      if ((error as { code?: string }).code !== 'EEXIST' || attempt > 3) {
        throw error;
      }
      const holder = lockHolder(runDir);
      if (holder !== undefined) {
        throw new AlreadyRunningError(runDir, holder);
      }
      rmSync(path, { force: true }); // of an agent that was killed
    }
  }
}
