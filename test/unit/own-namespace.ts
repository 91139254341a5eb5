/** A process in a network namespace of its own. */

import { spawn } from 'node:child_process';
import { readFileSync, readlinkSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';

export interface OwnNamespace {
  readonly path: string;
  readonly process: { readonly pid: number; readonly startTime: number };
  end(): void;
}

/** Error where it does not come up within 5 s; needs CAP_SYS_ADMIN. */
export async function ownNamespace(): Promise<OwnNamespace> {
  const child = spawn('unshare', ['--net', 'sleep', '60'], { stdio: 'ignore' });
  const { pid } = child;
  if (pid === undefined) {
    throw new Error('unshare does not start');
  }
  const path = `/proc/${pid}/ns/net`;
  const end = () => void child.kill('SIGKILL');
  for (const untilMs = Date.now() + 5_000; readlinkSync(path) === readlinkSync('/proc/self/ns/net'); ) {
    if (Date.now() > untilMs || child.exitCode !== null) {
      end();
      throw new Error('unshare --net gives no namespace of its own');
    }
    await pause(2);
  }
  return { path, process: { pid, startTime: startTimeOf(pid) }, end };
}

/** proc_pid_stat(5), field 22. */
export function startTimeOf(pid: number | 'self'): number {
  return Number(
    readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /s, '')
      .split(' ')[19],
  );
}
