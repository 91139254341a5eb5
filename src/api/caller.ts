/** The process at the other end of a connection: what it may ask, how much, and whether it is still there. */

import { readFileSync } from 'node:fs';
import type { Scope } from '../config/config.js';
import { ApiProblem } from './problem.js';
import type { RateLimits } from './rate-limits.js';

export interface CallerOptions {
  readonly pid: number;
  readonly uid: number;
  /** Undefined: all. */
  readonly scopes: ReadonlySet<Scope> | undefined;
  /** Who shares a bucket. */
  readonly limitedAs: string;
  readonly limits: RateLimits;
  /** Told of each refusal; the log decides what of it to write. */
  readonly onRefusal: (why: string) => void;
}

export class Caller {
  readonly #options: CallerOptions;
  /** Undefined: the kernel gives us no number of the process, which is in another pid namespace. */
  readonly #started: string | undefined;

  /** Throws ApiProblem CALLER_NOT_ALLOWED where the process has ended already. */
  constructor(options: CallerOptions) {
    this.#options = options;
    this.#started = options.pid === 0 ? undefined : startOf(options.pid);
    if (options.pid !== 0 && this.#started === undefined) {
      throw this.#ended();
    }
  }

  /** Undefined: whoever may ask anything may ask this. Throws ApiProblem CALLER_NOT_ALLOWED. */
  require(scope: Scope | undefined): void {
    const { uid, pid, scopes } = this.#options;
    if (scope !== undefined && scopes?.has(scope) === false) {
      throw this.#refused(
        'outside its scopes',
        `uid ${uid} (pid ${pid}) may not ask this: it needs the scope ${scope}, and api.allow gives it ${[...scopes].join(', ')}`,
      );
    }
  }

  /** For so many questions. Throws ApiProblem RATE_LIMITED. */
  charge(questions: number): void {
    const { limits, limitedAs, onRefusal } = this.#options;
    const inMs = limits.take(limitedAs, questions);
    if (inMs !== undefined) {
      onRefusal('more than api.rateLimit');
      const seconds = Math.max(1, Math.ceil(inMs / 1_000));
      const detail = `more questions than api.rateLimit allows: ask again in ${seconds} s`;
      throw new ApiProblem(429, 'RATE_LIMITED', detail, seconds);
    }
  }

  /** Throws ApiProblem CALLER_NOT_ALLOWED where it has ended, or its number is another process's by now. */
  checkAgain(): void {
    if (this.#started !== undefined && startOf(this.#options.pid) !== this.#started) {
      throw this.#ended();
    }
  }

  #ended(): ApiProblem {
    return this.#refused('its process has ended', `process ${this.#options.pid}, which connected, has ended`);
  }

  #refused(why: string, detail: string): ApiProblem {
    this.#options.onRefusal(why);
    return new ApiProblem(403, 'CALLER_NOT_ALLOWED', detail);
  }
}

/** proc_pid_stat(5), field 22. Undefined where the process has ended, also while nobody has waited for it (state Z, X). */
function startOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' || fields[0] === 'X' ? undefined : fields[19];
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ESRCH') {
      return undefined;
    }
    throw error;
  }
}
