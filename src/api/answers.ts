/** Questions about identity, answered the same whichever door they came by, and counted. */

import { performance } from 'node:perf_hooks';
import { IdentityError } from '../identity/errors.js';
import type { PastIdentity, PastResolution } from '../identity/past.js';
import type { IdentityService, PodResolution, Resolution, ResolveQuery } from '../identity/resolve.js';
import { Revisions } from '../identity/revisions.js';
import type { SocketLookups } from '../identity/socket-ends.js';
import type { PodStore } from '../pods/pod-store.js';
import type { Metrics } from '../telemetry/metrics.js';
import type { Question, SocketQuery } from './question.js';

export interface AnswersOptions {
  readonly store: Pick<PodStore, 'epoch' | 'revision' | 'subscribe'>;
  readonly identity: Pick<IdentityService, 'resolve'>;
  readonly past: Pick<PastIdentity, 'resolve'>;
  readonly sockets: Pick<SocketLookups, 'byCookie'>;
  readonly metrics: Pick<Metrics, 'observeResolve'>;
}

export type Answer = Resolution | PodResolution | PastResolution;

export class Answers {
  readonly #options: AnswersOptions;
  readonly #revisions: Revisions;

  constructor(options: AnswersOptions) {
    this.#options = options;
    this.#revisions = new Revisions(options.store);
  }

  /** Rejects with IdentityError, and with what `parse` throws. `gone` is asked for where there is something to wait for. */
  async to(parse: () => Question, gone: () => AbortSignal): Promise<Answer> {
    const { identity, past, metrics } = this.#options;
    const startedMs = performance.now();
    let result = 'INTERNAL';
    try {
      const question = parse();
      if ('now' in question && question.atLeast !== undefined) {
        await this.#revisions.reached(question.atLeast, gone());
      }
      const answer =
        'past' in question
          ? past.resolve(question.past)
          : identity.resolve(
              'socketCookie' in question.now ? await this.#flowOf(question.now) : question.now,
            );
      result = answer.assurance ?? 'POD';
      return answer;
    } catch (error) {
      result = error instanceof IdentityError ? error.code : result;
      throw error;
    } finally {
      metrics.observeResolve(result, (performance.now() - startedMs) / 1_000);
    }
  }

  /** A proxy accepts from the flow's source, at its destination. */
  async #flowOf({ socketCookie, ...assured }: SocketQuery): Promise<ResolveQuery> {
    const ends = await this.#options.sockets.byCookie(socketCookie);
    if (ends === undefined) {
      throw new IdentityError(
        'WORKLOAD_NOT_FOUND',
        `no connection of this node has the socket cookie ${socketCookie}`,
      );
    }
    return { proto: 'tcp', src: ends.peer, dst: ends.local, ...assured };
  }
}
