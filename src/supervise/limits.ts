/** Limits of an instance: a cgroup of version 2 of its own, beside its supervisor's. */

import { existsSync, mkdirSync, openSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { InstanceLimits } from '../config/config.js';
import { InstanceStartError } from './errors.js';

const MOUNTS = ['/sys/fs/cgroup', '/sys/fs/cgroup/unified'];
const PERIOD_US = 100_000;

/** Whether anything is limited at all. */
export function isLimited(limits: InstanceLimits): boolean {
  return Object.values(limits).some((limit) => limit !== undefined);
}

/** Makes the cgroup, or sets it right; returns its folder. Throws InstanceStartError. */
export function limitedCgroup(instance: string, limits: InstanceLimits): string {
  const controllers = (['memory', 'cpu', 'pids'] as const).filter((key) => limits[key] !== undefined);
  const parent = parentCgroup();
  for (const controller of controllers) {
    if (parent === undefined || !enabled(parent, controller)) {
      throw new InstanceStartError(
        'LIMITS_UNAVAILABLE',
        `limits: this node has no cgroup v2 with the controller ${controller}`,
      );
    }
  }
  const folder = join(parent ?? '', `nodesentry-${instance}`);
  mkdirSync(folder, { recursive: true });
  const { memory = 'max', cpu, pids = 'max' } = limits;
  const values = {
    memory: ['memory.max', `${memory}`],
    cpu: ['cpu.max', `${cpu === undefined ? 'max' : cpu * (PERIOD_US / 1_000)} ${PERIOD_US}`],
    pids: ['pids.max', `${pids}`],
  } as const;
  for (const controller of controllers) {
    const [file, value] = values[controller];
    writeFileSync(join(folder, file), value);
  }
  return folder;
}

/** Who writes 0 to it, by this descriptor, is in the cgroup: whose permission counts is who opened it. */
export function openMembers(cgroup: string): number {
  return openSync(join(cgroup, 'cgroup.procs'), 'w');
}

/** How often the kernel has ended a process of it for want of memory. */
export function oomKills(cgroup: string): number {
  try {
    const events = readFileSync(join(cgroup, 'memory.events'), 'utf8');
    return Number(/^oom_kill (\d+)$/m.exec(events)?.[1] ?? 0);
  } catch {
    return 0; // memory is not limited
  }
}

/** Where nobody is in it any more. */
export function removeCgroup(cgroup: string): void {
  try {
    rmdirSync(cgroup);
  } catch {
    // somebody who left the process group: it stays as it is, and is taken again at the next start
  }
}

function parentCgroup(): string | undefined {
  const mount = MOUNTS.find((candidate) => existsSync(join(candidate, 'cgroup.controllers')));
  const [, own] = /^0::(.*)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8')) ?? [];
  return mount === undefined || own === undefined ? undefined : join(mount, dirname(own));
}

function enabled(folder: string, controller: string): boolean {
  const file = join(folder, 'cgroup.subtree_control');
  const listed = () => readFileSync(file, 'utf8').split(/\s+/).includes(controller);
  try {
    if (!listed()) {
      writeFileSync(file, `+${controller}`);
    }
    return listed();
  } catch {
    return false; // the controller is not there, or is not ours to give on
  }
}
