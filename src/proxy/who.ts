/** Asks whose flow it is, and keeps asking while the agent restarts; who is at its other end the client knows by itself. */

import type { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { ApiError, type FlowQuery, type IdentityClient, type Resolution } from '../client/identity-client.js';
import { identityOf, SocketIdentityError, spiffeIdOf } from '../client/socket-identity.js';
import type { SocketAddress } from '../net/socket-address.js';

export type Named = Pick<Resolution['workload'], 'namespace' | 'podName' | 'spiffeId'>;

/** Whose a flow is, whoever has said so. */
export interface Known {
  /** The pod that it was intercepted for. */
  readonly own: Named;
  /** Who has opened the connection; undefined where nothing proves it: always, of what a pod receives. */
  readonly sender: Named | undefined;
  readonly direction: Resolution['direction'];
  readonly assurance: Resolution['assurance'];
  readonly by: 'resolve' | 'getsockopt';
}

export type Asked = Pick<IdentityClient, 'resolve' | 'byAddress'>;

/** Answers that a restarted agent gives differently a moment later. */
const PASSING: ReadonlySet<string> = new Set(['NO_AGENT', 'CONNECTION_FAILED', 'NOT_SYNCED']);
const RETRY_MS = 50;

/** Throws ApiError: the last answer, where none was better within `timeoutMs`. */
export async function whoIs(
  client: Pick<Asked, 'resolve'>,
  src: SocketAddress,
  dst: SocketAddress,
  timeoutMs: number,
  signal: AbortSignal,
  proto: FlowQuery['proto'] = 'tcp',
): Promise<Resolution> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    try {
      return await client.resolve({ proto, src, dst }, signal);
    } catch (error) {
      const passing = error instanceof ApiError && PASSING.has(error.code);
      if (!passing || signal.aborted || performance.now() + RETRY_MS > deadline) {
        throw error;
      }
    }
    await delay(RETRY_MS, undefined, { signal });
  }
}

/** An agent of an older release names no ends, and has recorded what pods send alone. */
export function knownBy({ workload, direction, assurance, ...ends }: Resolution): Known {
  const { source = { workload, assurance } }: Partial<Pick<Resolution, 'source'>> = ends;
  return { own: workload, sender: source.workload ?? undefined, direction, assurance, by: 'resolve' };
}

/** What the kernel has recorded at an accepted connection; undefined where that names no pod. */
export function recordedAt(socket: Socket): Known | undefined {
  for (const end of ['peer', 'target'] as const) {
    try {
      const { namespace, podName, direction, assurance } = identityOf(socket, end);
      if (assurance === 'DATAPATH_RECORDED') {
        const own = { namespace, podName, spiffeId: spiffeIdOf(socket, end) };
        return { own, sender: end === 'peer' ? own : undefined, direction, assurance, by: 'getsockopt' };
      }
    } catch (error) {
      if (!(error instanceof SocketIdentityError || socket.destroyed)) {
        throw error;
      }
    }
  }
  return undefined;
}

/** The end that is not the flow's own pod, by its address: for the log, and never what decides. */
export function otherEnd(
  client: Pick<Asked, 'byAddress'>,
  { direction }: Pick<Resolution, 'direction'>,
  src: SocketAddress,
  dst: SocketAddress,
): object {
  const known = client.byAddress(direction === 'EGRESS' ? dst.ip : src.ip);
  return known.workload === undefined
    ? { reason: known.reason }
    : { ...namesOf(known.workload), assurance: known.assurance };
}

/** Such as WORKLOAD_NOT_FOUND or ECONNREFUSED. */
export function reasonOf(error: unknown): string {
  const { code, message } = error as { code?: unknown; message?: unknown };
  return error instanceof ApiError || typeof code === 'string' ? String(code) : String(message);
}

export function namesOf({ namespace, podName, spiffeId }: Named): object {
  return { workload: `${namespace}/${podName}`, spiffeId };
}
