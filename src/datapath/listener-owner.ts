/** Who may hold an instance's listeners: anybody can bind a free port, and would get all that its pods send. */

import { readFileSync, readlinkSync } from 'node:fs';
import type { ListeningSocket } from '../native/sockets.js';
import { processName, readable, type SocketOwner } from './proxy-sockets.js';

/** All that are given must match. */
export interface OwnerRule {
  /** Who opened the socket, by the kernel's word. */
  readonly uid?: number | undefined;
  /** The other three are of the process that holds it. */
  readonly gid?: number | undefined;
  /** Absolute path. */
  readonly exe?: string | undefined;
  /** A control group, or one above it: as in /proc/<pid>/cgroup. */
  readonly cgroup?: string | undefined;
}

/** Of a socket that is being closed, most likely. */
export const UNKNOWN_HOLDER = 'no process is found that holds it, so its owner cannot be told';

/** Whether the socket's uid is allowed: the part of the rule that needs no process. */
export function opensAs({ uid }: OwnerRule, socket: ListeningSocket): boolean {
  return uid === undefined || uid === socket.uid;
}

/** Who connected a Unix socket. */
export interface ProcessCredentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/** Why one of these is not the instance's own: the kernel may hand a connection to any of them. */
export function refusalOfGroup(
  rule: OwnerRule,
  group: readonly ListeningSocket[],
  owners: ReadonlyMap<number, SocketOwner>,
): string | undefined {
  for (const socket of group) {
    const refusal = refusalOf(rule, socket, owners.get(socket.inode));
    if (refusal !== undefined) {
      return refusal;
    }
  }
  return undefined;
}

/** Why a process may not speak for the instance; undefined where it may. */
export function refusalOfProcess(rule: OwnerRule, { pid, uid, gid }: ProcessCredentials): string | undefined {
  const exe = rule.exe === undefined ? undefined : exeOf(pid);
  const { cgroup } = rule;
  const wrong = [
    rule.uid !== undefined && rule.uid !== uid && `uid ${uid}`,
    rule.gid !== undefined && rule.gid !== gid && `gid ${gid}`,
    rule.exe !== exe && `exe ${exe ?? 'unknown'}`,
    cgroup !== undefined &&
      !cgroupsOf(pid).some((path) => isWithin(path, cgroup)) &&
      `cgroup ${cgroupsOf(pid)[0] ?? 'unknown'}`,
  ].find((part) => part !== false);
  return wrong === undefined
    ? undefined
    : `${processName(pid)}, pid ${pid}, with ${wrong} is not the owner of this instance`;
}

/** Why this socket is not the instance's, with what would allow it; undefined where it is. */
export function refusalOf(
  rule: OwnerRule,
  socket: ListeningSocket,
  owner: SocketOwner | undefined,
): string | undefined {
  const who = owner === undefined ? 'an unknown process' : `${processName(owner.pid)}, pid ${owner.pid}`;
  if (!opensAs(rule, socket)) {
    return `it is held by uid ${socket.uid} (${who}), who is not its owner: "owner: {uid: ${socket.uid}}" would allow it`;
  }
  const { gid, exe, cgroup } = rule;
  if (gid === undefined && exe === undefined && cgroup === undefined) {
    return undefined;
  }
  if (owner === undefined) {
    return UNKNOWN_HOLDER;
  }
  const is = { gid: gidOf(owner.pid), exe: exeOf(owner.pid), cgroups: cgroupsOf(owner.pid) };
  const allow = (key: string, value: unknown) =>
    `it is held by ${who} with ${key} ${value ?? 'unknown'}, which is not its owner: "owner: {${key}: ${value ?? '…'}}" would allow it`;
  if (gid !== undefined && gid !== is.gid) {
    return allow('gid', is.gid);
  }
  if (exe !== undefined && exe !== is.exe) {
    return allow('exe', is.exe);
  }
  if (cgroup !== undefined && !is.cgroups.some((path) => isWithin(path, cgroup))) {
    return allow('cgroup', is.cgroups[0]);
  }
  return undefined;
}

function isWithin(path: string, cgroup: string): boolean {
  const above = cgroup.replace(/\/+$/, '');
  return path === above || path.startsWith(`${above}/`);
}

/** The effective one: proc_pid_status(5). */
function gidOf(pid: number): number | undefined {
  const status = readable(() => readFileSync(`/proc/${pid}/status`, 'utf8')) ?? '';
  const gid = /^Gid:\s+\d+\s+(\d+)/m.exec(status)?.[1];
  return gid === undefined ? undefined : Number(gid);
}

function exeOf(pid: number): string | undefined {
  return readable(() => readlinkSync(`/proc/${pid}/exe`));
}

/** Of every hierarchy: cgroups(7). */
function cgroupsOf(pid: number): string[] {
  const text = readable(() => readFileSync(`/proc/${pid}/cgroup`, 'utf8')) ?? '';
  return text.split('\n').flatMap((line) => line.split(':').slice(2).join(':') || []);
}
