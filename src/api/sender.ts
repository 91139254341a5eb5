/** Who has sent a flow, for the doors that let it pass or do not. */

import { IdentityError, type IdentityReason } from '../identity/errors.js';
import type { FlowQuery } from '../identity/resolve.js';
import type { Workload } from '../identity/workload.js';
import type { Answers } from './answers.js';
import { ApiProblem } from './problem.js';

export const SPIFFE_HEADER = 'x-spiffe-id';
export const REASON_HEADER = 'x-nodesentry-reason';

/** What an answer without a body says of the sender. */
export const SENDER_HEADERS = {
  [SPIFFE_HEADER]: 'Its SPIFFE ID.',
  'x-nodesentry-namespace': 'Its namespace.',
  'x-nodesentry-pod': 'Its name.',
} as const;

/** Nobody is named, and asking again would not help. */
const NOBODY: ReadonlySet<string> = new Set<IdentityReason>([
  'WORKLOAD_NOT_FOUND',
  'WORKLOAD_UNCONFIRMED',
  'AMBIGUOUS',
  'ASSURANCE_TOO_LOW',
]);

/**
 * Of an INGRESS flow that is not the pod it is recorded for, but the other end, which no record proves. Rejects with
 * ApiProblem 403 where nobody is named, and with IdentityError KEY_INVALID and NOT_SYNCED.
 */
export async function senderOf(answers: Answers, parse: () => FlowQuery): Promise<Workload> {
  const neverWaits = () => new AbortController().signal;
  try {
    const answer = await answers.to(() => ({ now: parse(), atLeast: undefined }), neverWaits);
    if (!('source' in answer)) {
      throw new TypeError('a flow was asked about, and the answer names no source');
    }
    const { source } = answer;
    if (source.workload === null) {
      const { src } = answer.original;
      throw new ApiProblem(403, source.reason, `nothing proves which pod of this node sends from ${src}`);
    }
    return source.workload;
  } catch (error) {
    throw error instanceof IdentityError && NOBODY.has(error.code)
      ? new ApiProblem(403, error.code, error.message)
      : error;
  }
}

export function senderHeaders(sender: Workload): Readonly<Record<keyof typeof SENDER_HEADERS, string>> {
  return {
    [SPIFFE_HEADER]: sender.spiffeId,
    'x-nodesentry-namespace': sender.namespace,
    'x-nodesentry-pod': sender.podName,
  };
}
