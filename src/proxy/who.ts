/** Asks whose flow it is, and keeps asking while the agent restarts; who is at its other end the client knows by itself. */

import { setTimeout as delay } from 'node:timers/promises';
import { ApiError, type IdentityClient, type Resolution } from '../client/identity-client.js';
import type { SocketAddress } from '../net/socket-address.js';

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
): Promise<Resolution> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    try {
      return await client.resolve({ proto: 'tcp', src, dst }, signal);
    } catch (error) {
      const passing = error instanceof ApiError && PASSING.has(error.code);
      if (!passing || signal.aborted || performance.now() + RETRY_MS > deadline) {
        throw error;
      }
    }
    await delay(RETRY_MS, undefined, { signal });
  }
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

export function namesOf({ namespace, podName, spiffeId }: Resolution['workload']): object {
  return { workload: `${namespace}/${podName}`, spiffeId };
}
