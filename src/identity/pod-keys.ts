/** Pods by what the kernel calls what is theirs: an interface on the host, a network namespace by a process in it. */

import { readFileSync, statSync } from 'node:fs';
import type { PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { DatapathView } from '../reconcile/datapath-view.js';
import { IdentityError } from './errors.js';

export interface ProcessKey {
  readonly pid: number;
  /** Field 22 of proc_pid_stat(5): with it a number that another process has got since is noticed. */
  readonly startTime: bigint;
}

/** The pods whose interface on the host has this name. */
export function podsByInterface(name: string, datapath: Pick<DatapathView, 'endpoints'>): readonly PodUid[] {
  return datapath
    .endpoints()
    .filter(({ interfaces }) => interfaces.some((one) => one.name === name))
    .map(({ podUid }) => podUid);
}

/**
 * The pods in whose network namespace the process is; none for one in the agent's own, which is also that of pods on the
 * host's network. Throws IdentityError WORKLOAD_NOT_FOUND where there is no such process.
 */
export function podsByProcess(
  { pid, startTime }: ProcessKey,
  store: Pick<PodStore, 'list'>,
): readonly PodUid[] {
  const started = () => vanishing(() => startTimeOf(readFileSync(`/proc/${pid}/stat`, 'utf8')));
  const isSame = () => started() === startTime;
  const namespace = isSame() ? namespaceAt(`/proc/${pid}/ns/net`) : undefined;
  if (namespace === undefined || !isSame()) {
    throw new IdentityError(
      'WORKLOAD_NOT_FOUND',
      `no process ${pid} that started at ${startTime} is there: field 22 of /proc/${pid}/stat says ${started() ?? 'nothing'}`,
    );
  }
  if (namespace === namespaceAt('/proc/self/ns/net')) {
    return [];
  }
  return store
    .list()
    .filter(
      ({ hostNetwork, netns }) => !hostNetwork && netns !== undefined && namespaceAt(netns) === namespace,
    )
    .map(({ uid }) => uid);
}

/** The pods in the network namespace that SO_NETNS_COOKIE of their sockets names. `cookieAt`: of the namespace at a path. */
export function podsByNetnsCookie(
  cookie: bigint,
  store: Pick<PodStore, 'list'>,
  cookieAt: (path: string) => bigint | undefined,
): readonly PodUid[] {
  return store
    .list()
    .filter(({ hostNetwork, netns }) => !hostNetwork && netns !== undefined && cookieAt(netns) === cookie)
    .map(({ uid }) => uid);
}

/** What a namespace is, whatever path it was reached by: device and inode. */
function namespaceAt(path: string): string | undefined {
  const found = vanishing(() => statSync(path, { bigint: true }));
  return found === undefined ? undefined : `${found.dev}:${found.ino}`;
}

/** The name of the program, field 2, may have spaces and brackets of its own. */
function startTimeOf(stat: string): bigint | undefined {
  const text = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  return text === undefined ? undefined : BigInt(text);
}

/** Undefined where it has gone. */
function vanishing<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ESRCH' || code === 'ENOTDIR') {
      return undefined;
    }
    throw error;
  }
}
