/** Errors as the API tells them: RFC 9457 problem details with a stable `reason`. */

import type { IdentityReason } from '../identity/errors.js';
import { IdentityError } from '../identity/errors.js';
import { InstanceError, type InstanceErrorCode } from '../instances/errors.js';

export type ApiReason =
  | IdentityReason
  | InstanceErrorCode
  | 'HEADER_MISSING'
  | 'CALLER_NOT_ALLOWED'
  | 'NOT_FOUND'
  | 'NOT_READY'
  | 'RATE_LIMITED'
  | 'INTERNAL';

export const PROBLEM_TYPE = 'application/problem+json';

export interface Problem {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly detail: string;
  readonly reason: ApiReason;
  /** With NOT_READY: what has to happen first. */
  readonly blockers?: readonly string[];
}

const TITLES: Readonly<Record<ApiReason, string>> = {
  KEY_INVALID: 'The request is malformed',
  WORKLOAD_NOT_FOUND: 'No pod of this node is known for this',
  WORKLOAD_UNCONFIRMED: 'No source knows the service account of this pod',
  AMBIGUOUS: 'More than one pod could be meant',
  ASSURANCE_TOO_LOW: 'The evidence is weaker than asked for',
  NOT_SYNCED: 'The agent does not know all pods yet',
  HEADER_MISSING: 'A header is missing',
  CALLER_NOT_ALLOWED: 'This process may not ask',
  INSTANCE_NOT_FOUND: 'No instance of this name is configured',
  INSTANCE_BUSY: 'The instance is not in the state for this',
  PROCESS_NOT_FOUND: 'There is no such process',
  NOT_TCP: 'The descriptor is no TCP socket',
  NOT_LISTENING: 'The socket does not listen',
  WRONG_NAMESPACE: 'The socket is of another network namespace',
  NOT_OWNER: 'The listener is not of the owner of the instance',
  LISTENER_TAKEN: 'Another listener has this place',
  NOT_ADOPTED: 'The kernel does not take the listener',
  NOT_FOUND: 'No such resource',
  NOT_READY: 'The agent is not ready',
  RATE_LIMITED: 'Too many at once',
  INTERNAL: 'The agent failed to answer',
};

export class ApiProblem extends Error {
  override readonly name = 'ApiProblem';

  constructor(
    readonly status: number,
    readonly reason: ApiReason,
    detail: string,
    /** With RATE_LIMITED: when to ask again. */
    readonly retryAfterSeconds?: number,
  ) {
    super(detail);
  }
}

/** RFC 9457. */
export function problem(status: number, reason: ApiReason, detail: string): Problem {
  return { type: `urn:nodesentry:problem:${reason}`, title: TITLES[reason], status, detail, reason };
}

/** Undefined for an error that is a fault of ours rather than of the request. */
export function problemOf(error: unknown): Problem | undefined {
  if (error instanceof IdentityError || error instanceof InstanceError) {
    return problem(error.status, error.code, error.message);
  }
  if (error instanceof ApiProblem) {
    return problem(error.status, error.reason, error.message);
  }
  // Fastify's own refusals: a body too large, of another type, or not JSON.
  const { statusCode, message } = error as { statusCode?: unknown; message?: unknown };
  return typeof statusCode === 'number' && statusCode >= 400 && statusCode < 500
    ? problem(statusCode, 'KEY_INVALID', String(message))
    : undefined;
}
