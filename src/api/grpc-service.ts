/** The rpcs of nodesentry.identity.v1.Identity: thin, every answer comes from the service that HTTP asks too. */

import type { ServerUnaryCall, sendUnaryData, UntypedServiceImplementation } from '@grpc/grpc-js';
import type { Answers } from './answers.js';
import { refused } from './checks.js';
import {
  type BatchResolveRequest,
  problemMessage,
  type ResolveRequest,
  resolutionMessage,
} from './grpc-messages.js';
import { questionOf } from './grpc-question.js';
import type { GrpcStatuses } from './grpc-status.js';
import type { IdentityCalls, WatchCall } from './grpc-watch.js';
import { problemOf } from './problem.js';
import { MAX_BATCH } from './query.js';
import type { Views } from './views.js';

export interface IdentityHandlersOptions {
  readonly answers: Answers;
  readonly views: Pick<Views, 'status'>;
  readonly statuses: GrpcStatuses;
  readonly calls: Pick<IdentityCalls, 'follow'>;
}

export function identityHandlers(options: IdentityHandlersOptions): UntypedServiceImplementation {
  const { answers, statuses } = options;
  const unary =
    <Request>(answer: (request: Request, signal: AbortSignal) => object | Promise<object>) =>
    async (call: ServerUnaryCall<Request, object>, callback: sendUnaryData<object>): Promise<void> => {
      const gone = new AbortController();
      call.once('cancelled', () => gone.abort());
      try {
        callback(null, await answer(call.request, gone.signal));
      } catch (error) {
        callback(statuses.of(error, call.getPath()));
      }
    };
  return {
    Resolve: unary(async (request: ResolveRequest, signal) => ({
      resolution: resolutionMessage(
        await answers.to(
          () => questionOf(request, ''),
          () => signal,
        ),
      ),
    })),
    BatchResolve: unary(({ requests }: BatchResolveRequest, signal) => batch(answers, requests, signal)),
    Watch: (call: WatchCall) => {
      try {
        options.calls.follow(call);
      } catch (error) {
        call.emit('error', statuses.of(error, call.getPath()));
      }
    },
    GetStatus: unary(() => options.views.status()),
  };
}

async function batch(
  answers: Answers,
  requests: readonly ResolveRequest[],
  signal: AbortSignal,
): Promise<object> {
  if (requests.length > MAX_BATCH) {
    throw refused('requests', `expected a list of at most ${MAX_BATCH} requests, got ${requests.length}`);
  }
  const answered = async (request: ResolveRequest, place: string): Promise<object> => {
    try {
      return {
        resolution: resolutionMessage(
          await answers.to(
            () => questionOf(request, place),
            () => signal,
          ),
        ),
      };
    } catch (error) {
      const known = problemOf(error);
      if (known === undefined) {
        throw error;
      }
      return { problem: problemMessage(known) };
    }
  };
  return {
    results: await Promise.all(requests.map((request, index) => answered(request, `requests[${index}].`))),
  };
}
