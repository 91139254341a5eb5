/** The processes of a container, by the control group that its runtime gave it. */

import { readdirSync, readFileSync } from 'node:fs';

/** Of the processes that this mount of proc shows: in a pod, with hostPID. Empty where there is none. */
export function processesOf(containerId: string, proc = '/proc'): readonly number[] {
  return containerId === ''
    ? []
    : readdirSync(proc)
        .filter((name) => /^\d+$/.test(name) && cgroupsOf(`${proc}/${name}`).includes(containerId))
        .map(Number);
}

function cgroupsOf(path: string): string {
  try {
    return readFileSync(`${path}/cgroup`, 'utf8');
  } catch {
    return ''; // it has gone
  }
}
