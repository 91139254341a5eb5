/** What a proxy's processes hold of the node's memory. */

import { readFileSync } from 'node:fs';

/** Proportional set size of these processes, bytes: proc_pid_smaps(5). Undefined where none can be read. */
export function memoryOf(pids: Iterable<number>): number | undefined {
  let sum: number | undefined;
  for (const pid of new Set(pids)) {
    const kib = pssOf(pid);
    sum = kib === undefined ? sum : (sum ?? 0) + kib * 1_024;
  }
  return sum;
}

function pssOf(pid: number): number | undefined {
  try {
    const found = /^Pss:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'));
    return found?.[1] === undefined ? undefined : Number(found[1]);
  } catch {
    return undefined; // it has gone
  }
}
