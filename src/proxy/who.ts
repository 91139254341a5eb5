/** Asks whose flow it is, and keeps asking while the agent restarts. */

import { setTimeout as delay } from 'node:timers/promises';
import { type ApiClient, ApiError } from '../api/client.js';
import type { SocketAddress } from '../net/socket-address.js';

export type Resolved = Awaited<ReturnType<ApiClient['resolve']>>;

/** Answers that a restarted agent gives differently a moment later. */
const PASSING: ReadonlySet<string> = new Set(['NO_AGENT', 'CONNECTION_FAILED', 'NOT_SYNCED']);
const RETRY_MS = 50;

/** Throws ApiError: the last answer, where none was better within `timeoutMs`. */
export async function whoIs(
  client: Pick<ApiClient, 'resolve'>,
  src: SocketAddress,
  dst: SocketAddress,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<Resolved> {
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
