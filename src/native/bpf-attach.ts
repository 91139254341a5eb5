/** Where programs run: tcx, clsact, socket lookup of a network namespace, cgroups, tracepoints. */

import { checkFd, checkOneOf, checkPositive } from './addon.js';
import { addon, type TcxEntry } from './bpf-addon.js';
import { BpfLink, type BpfMap, type BpfProgram, checkMap, checkProgram } from './bpf-handles.js';
import { isKernelError } from './errors.js';

const BPF_CGROUP_INET_INGRESS = 0;
const BPF_CGROUP_SOCK_OPS = 3;
const BPF_CGROUP_GETSOCKOPT = 21;
const BPF_CGROUP_SETSOCKOPT = 22;
const BPF_SK_LOOKUP = 36;
const TCX = { ingress: 46, egress: 47 } as const;

export type TcxDirection = keyof typeof TCX;

function checkDirection(direction: unknown): asserts direction is TcxDirection {
  checkOneOf(direction, 'direction', ['ingress', 'egress']);
}

/** Whether this kernel has tcx (6.6): a query of an interface that every namespace has answers it. */
export function tcxSupported(): boolean {
  try {
    addon.queryTcx(1, TCX.ingress);
    return true;
  } catch (error) {
    if (isKernelError(error) && error.code === 'EINVAL') {
      return false;
    }
    throw error;
  }
}

/** After whatever is attached already; a link stays beside others'. */
export function attachTcx(program: BpfProgram, ifindex: number, direction: TcxDirection): BpfLink {
  checkProgram(program);
  checkPositive(ifindex, 'ifindex');
  checkDirection(direction);
  const doing = `attaching ${program.name} to tcx ${direction} of ifindex ${ifindex}`;
  return new BpfLink(addon.linkCreate(program.fd, ifindex, TCX[direction], doing));
}

/** As `attachTcx`, without holding up the event loop for the grace period that the kernel waits. */
export async function attachTcxAsync(
  program: BpfProgram,
  ifindex: number,
  direction: TcxDirection,
): Promise<BpfLink> {
  checkProgram(program);
  checkPositive(ifindex, 'ifindex');
  checkDirection(direction);
  const doing = `attaching ${program.name} to tcx ${direction} of ifindex ${ifindex}`;
  return new BpfLink(await addon.linkCreateAsync(program.fd, ifindex, TCX[direction], doing));
}

/** In the order in which they run. */
export function queryTcx(ifindex: number, direction: TcxDirection): TcxEntry[] {
  checkPositive(ifindex, 'ifindex');
  checkDirection(direction);
  return addon.queryTcx(ifindex, TCX[direction]);
}

/**
 * The ids of the programs at each of these interfaces, in the order in which they run, by ifindex; none at one that is
 * gone. One call for a thousand interfaces: asked for one by one, the answers cost more than the questions.
 */
export function tcxPrograms(
  ifindexes: readonly number[],
  direction: TcxDirection,
): Map<number, readonly number[]> {
  for (const ifindex of ifindexes) {
    checkPositive(ifindex, 'ifindex');
  }
  checkDirection(direction);
  const flat = addon.tcxPrograms(Uint32Array.from(ifindexes), TCX[direction]);
  const found = new Map<number, readonly number[]>();
  let at = 0;
  for (const ifindex of ifindexes) {
    const count = flat[at] ?? 0;
    found.set(ifindex, [...flat.subarray(at + 1, at + 1 + count)]);
    at += 1 + count;
  }
  return found;
}

/** Where among the filters of a clsact hook: nobody else's filter is touched. */
export interface ClsactPlace {
  readonly priority: number;
  readonly handle: number;
}

function checkPlace(place: ClsactPlace): void {
  checkPositive(place?.priority, 'priority', 0xffff);
  checkPositive(place?.handle, 'handle', 0xffffffff);
}

/**
 * For kernels without tcx. Replaces a filter at the same place only. True where the clsact qdisc had to be created;
 * an `ingress` qdisc in its place serves for ingress, and is KernelError EEXIST for egress.
 */
export function attachClsact(
  program: BpfProgram,
  ifindex: number,
  direction: TcxDirection,
  place: ClsactPlace,
): boolean {
  checkProgram(program);
  checkPositive(ifindex, 'ifindex');
  checkDirection(direction);
  checkPlace(place);
  return addon.attachClsact(program.fd, ifindex, direction === 'ingress', place.priority, place.handle);
}

/** Undefined where no filter is at that place. KernelError ENODEV where the interface has gone. */
export function queryClsact(
  ifindex: number,
  direction: TcxDirection,
  place: ClsactPlace,
): { readonly programId: number } | undefined {
  checkPositive(ifindex, 'ifindex');
  checkDirection(direction);
  checkPlace(place);
  const programId = addon.queryClsact(ifindex, direction === 'ingress', place.priority, place.handle);
  return programId === undefined ? undefined : { programId };
}

/** False where no filter was there. `removeQdisc` takes the whole clsact qdisc along: only for who created it. */
export function detachClsact(
  ifindex: number,
  direction: TcxDirection,
  place: ClsactPlace & { readonly removeQdisc?: boolean },
): boolean {
  checkPositive(ifindex, 'ifindex');
  checkDirection(direction);
  checkPlace(place);
  return addon.detachClsact(
    ifindex,
    direction === 'ingress',
    place.priority,
    place.handle,
    place.removeQdisc === true,
  );
}

/** To the network namespace behind `netnsFd`, after whatever is attached already. */
export function attachSkLookup(program: BpfProgram, netnsFd: number): BpfLink {
  checkProgram(program);
  checkFd(netnsFd, 'netnsFd');
  return new BpfLink(
    addon.linkCreate(program.fd, netnsFd, BPF_SK_LOOKUP, `attaching ${program.name} to sk_lookup`),
  );
}

const CGROUP_HOOKS = {
  /** What its sockets receive. */
  skbIngress: BPF_CGROUP_INET_INGRESS,
  getsockopt: BPF_CGROUP_GETSOCKOPT,
  setsockopt: BPF_CGROUP_SETSOCKOPT,
  /** What becomes of TCP connections. */
  sockOps: BPF_CGROUP_SOCK_OPS,
} as const;

export type CgroupHook = keyof typeof CGROUP_HOOKS;

/** For sockets that were opened in the cgroup behind `cgroupFd` or below it, beside whatever is attached. */
export function attachCgroup(program: BpfProgram, cgroupFd: number, hook: CgroupHook): BpfLink {
  checkProgram(program);
  checkFd(cgroupFd, 'cgroupFd');
  checkOneOf(hook, 'hook', Object.keys(CGROUP_HOOKS));
  const doing = `attaching ${program.name} to a cgroup`;
  return new BpfLink(addon.linkCreate(program.fd, cgroupFd, CGROUP_HOOKS[hook], doing));
}

/** For each message that a socket of the SOCKMAP or SOCKHASH is about to send; the map keeps the program. */
export function attachSkMsg(program: BpfProgram, map: BpfMap): void {
  checkProgram(program);
  checkMap(map);
  addon.attachSkMsg(program.fd, map.fd, `attaching ${program.name} to the map ${map.name}`);
}

/**
 * Which of the things that applications do with sockets come out otherwise where another socket fills their queue: names
 * of trials, of native/bpf/splice_trial.cc. `program` and `map` of bpf/splice-trial.bpf.c. Takes some 100 ms, over the
 * loopback interface. KernelError where it cannot be tried.
 */
export function spliceFlaws(program: BpfProgram, map: BpfMap): string[] {
  checkProgram(program);
  checkMap(map);
  return addon.spliceFlaws(program.fd, map.fd);
}

/** To the tracepoint that a program of the kind `tp_btf` names itself. */
export function attachTracepoint(program: BpfProgram): BpfLink {
  checkProgram(program);
  return new BpfLink(addon.attachTracepoint(program.fd, `attaching ${program.name} to its tracepoint`));
}
