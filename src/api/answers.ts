/** Questions about identity, answered the same whichever door they came by, and counted. */

import { performance } from 'node:perf_hooks';
import { IdentityError } from '../identity/errors.js';
import type { PastIdentity, PastResolution } from '../identity/past.js';
import type { IdentityService, PodResolution, Resolution } from '../identity/resolve.js';
import type { Metrics } from '../telemetry/metrics.js';
import type { Question } from './question.js';

export interface AnswersOptions {
  readonly identity: Pick<IdentityService, 'resolve'>;
  readonly past: Pick<PastIdentity, 'resolve'>;
  readonly metrics: Pick<Metrics, 'observeResolve'>;
}

export type Answer = Resolution | PodResolution | PastResolution;

export class Answers {
  readonly #options: AnswersOptions;

  constructor(options: AnswersOptions) {
    this.#options = options;
  }

  /** Throws IdentityError, and what `parse` throws. */
  to(parse: () => Question): Answer {
    const { identity, past, metrics } = this.#options;
    const startedMs = performance.now();
    let result = 'INTERNAL';
    try {
      const question = parse();
      const answer = 'past' in question ? past.resolve(question.past) : identity.resolve(question.now);
      result = answer.assurance ?? 'POD';
      return answer;
    } catch (error) {
      result = error instanceof IdentityError ? error.code : result;
      throw error;
    } finally {
      metrics.observeResolve(result, (performance.now() - startedMs) / 1_000);
    }
  }
}
