/** Refusals as gRPC tells them: a status with google.rpc.ErrorInfo, whose reason is that of HTTP's problems. */

import { Metadata, type StatusObject, status } from '@grpc/grpc-js';
import { loadSync, type MessageTypeDefinition } from '@grpc/proto-loader';
import type { Logger } from 'pino';
import { PROTO_FOLDER } from './grpc-protos.js';
import { ApiProblem, type ApiReason, type Problem, problem, problemOf } from './problem.js';

const DOMAIN = 'nodesentry.io';

const CODES: Readonly<Record<ApiReason, status>> = {
  KEY_INVALID: status.INVALID_ARGUMENT,
  HEADER_MISSING: status.INVALID_ARGUMENT,
  WORKLOAD_NOT_FOUND: status.NOT_FOUND,
  INSTANCE_NOT_FOUND: status.NOT_FOUND,
  NOT_FOUND: status.NOT_FOUND,
  INSTANCE_BUSY: status.FAILED_PRECONDITION,
  PROCESS_NOT_FOUND: status.NOT_FOUND,
  NOT_TCP: status.FAILED_PRECONDITION,
  NOT_LISTENING: status.FAILED_PRECONDITION,
  WRONG_NAMESPACE: status.FAILED_PRECONDITION,
  NOT_OWNER: status.PERMISSION_DENIED,
  LISTENER_TAKEN: status.FAILED_PRECONDITION,
  NOT_ADOPTED: status.FAILED_PRECONDITION,
  WORKLOAD_UNCONFIRMED: status.FAILED_PRECONDITION,
  AMBIGUOUS: status.FAILED_PRECONDITION,
  ASSURANCE_TOO_LOW: status.FAILED_PRECONDITION,
  NOT_SYNCED: status.UNAVAILABLE,
  NOT_READY: status.UNAVAILABLE,
  CALLER_NOT_ALLOWED: status.PERMISSION_DENIED,
  RATE_LIMITED: status.RESOURCE_EXHAUSTED,
  INTERNAL: status.INTERNAL,
};

export class GrpcStatuses {
  readonly #log: Pick<Logger, 'error'>;
  readonly #status: MessageTypeDefinition<object, object>;
  readonly #errorInfo: MessageTypeDefinition<object, object>;

  constructor(log: Pick<Logger, 'error'>) {
    this.#log = log;
    const types = loadSync('google/rpc/status.proto', { includeDirs: [PROTO_FOLDER] });
    this.#status = types['google.rpc.Status'] as MessageTypeDefinition<object, object>;
    this.#errorInfo = types['google.rpc.ErrorInfo'] as MessageTypeDefinition<object, object>;
  }

  /** An error that is a fault of ours is logged, and nothing of it is told. */
  of(error: unknown, rpc: string): StatusObject {
    const known = problemOf(error);
    if (known === undefined) {
      this.#log.error({ err: error, rpc }, 'API request failed');
    }
    const status = this.ofProblem(
      known ?? problem(500, 'INTERNAL', 'the agent failed to answer; its log says why'),
    );
    if (error instanceof ApiProblem && error.retryAfterSeconds !== undefined) {
      status.metadata.set('retry-after', String(error.retryAfterSeconds));
    }
    return status;
  }

  ofProblem({ reason, detail }: Pick<Problem, 'reason' | 'detail'>): StatusObject {
    const code = CODES[reason];
    const info = this.#errorInfo.serialize({ reason, domain: DOMAIN });
    const metadata = new Metadata();
    metadata.set('nodesentry-reason', reason);
    metadata.set(
      'grpc-status-details-bin',
      this.#status.serialize({
        code,
        message: detail,
        details: [{ type_url: 'type.googleapis.com/google.rpc.ErrorInfo', value: info }],
      }),
    );
    return { code, details: detail, metadata };
  }
}
