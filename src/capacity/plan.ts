/** What the target's container is to have next: more at once, less only after a while, never less than it holds. */

import type { Clock } from '../base/clock.js';
import type { CapacityConfig } from '../config/config.js';
import { plus, type Resources } from '../pods/quantity.js';
import type { TargetContainer } from './container.js';
import type { Allotments } from './report.js';

export type Terms = Pick<CapacityConfig, 'base' | 'headroomPercent' | 'hysteresis' | 'limit'>;

const NAMES = ['cpuMillis', 'memoryBytes'] as const;
type Name = (typeof NAMES)[number];
/** So that a use that wavers is not a new number at each look. */
const STEP_BYTES = 2 ** 20;

/** What its requests are to be: what is added and the sum, below the limit. */
export function wantedOf(sum: Resources, { base, limit }: Terms): Resources {
  const all = plus(base, sum);
  return {
    cpuMillis: Math.min(all.cpuMillis, limit.cpuMillis ?? all.cpuMillis),
    memoryBytes: Math.min(all.memoryBytes, limit.memoryBytes ?? all.memoryBytes),
  };
}

export class Plan {
  readonly #terms: Terms;
  readonly #nowMs: Clock;
  /** Since when each quantity is larger than is wanted. */
  readonly #largeSince = new Map<string, number>();

  constructor(terms: Terms, nowMs: Clock) {
    this.#terms = terms;
    this.#nowMs = nowMs;
  }

  /** When something that is too large by now may be made smaller; undefined: nothing is. */
  get dueMs(): number | undefined {
    const since = [...this.#largeSince.values()];
    return since.length === 0 ? undefined : Math.min(...since) + this.#downMs;
  }

  /** Undefined where nothing is to change. `usedBytes` undefined: it cannot be read, so memory is taken from nobody. */
  next(
    { now, guaranteed }: Pick<TargetContainer, 'now' | 'guaranteed'>,
    wanted: Resources,
    usedBytes: number | undefined,
  ): Allotments | undefined {
    const used = roundedUp(usedBytes ?? Number.POSITIVE_INFINITY);
    const held = { cpuMillis: 0, memoryBytes: used };
    // What the kernel holds for its processes counts against a limit, too.
    const spared = { cpuMillis: 0, memoryBytes: Math.max(used, this.#withHeadroom(used, 'memoryBytes')) };
    const requests = { ...now.requests };
    const limits = { ...now.limits };
    for (const name of NAMES) {
      const most = Math.max(wanted[name], this.#withHeadroom(wanted[name], name));
      const request = this.#moved(
        `requests.${name}`,
        now.requests[name],
        guaranteed ? most : wanted[name],
        (guaranteed ? spared : held)[name],
      );
      requests[name] = request;
      if (now.limits[name] !== null) {
        const limit = this.#moved(`limits.${name}`, now.limits[name], most, spared[name]);
        limits[name] = guaranteed ? request : Math.max(limit ?? 0, request ?? 0);
      }
    }
    const isSame = NAMES.every(
      (name) => requests[name] === now.requests[name] && limits[name] === now.limits[name],
    );
    return isSame ? undefined : { requests, limits };
  }

  #withHeadroom(value: number, name: Name): number {
    const { headroomPercent, limit } = this.#terms;
    return Math.min(
      Math.ceil((value * (100 + headroomPercent)) / 100),
      limit[name] ?? Number.POSITIVE_INFINITY,
    );
  }

  /** `floor` keeps what is there, and asks for no more. */
  #moved(key: string, now: number | null, wanted: number, floor: number): number | null {
    const has = now ?? 0;
    const to = Math.max(wanted, Math.min(has, floor));
    const { percent } = this.#terms.hysteresis;
    if (to >= has || to >= has * (1 - percent / 100)) {
      this.#largeSince.delete(key);
      return to > has ? to : now;
    }
    const sinceMs = this.#largeSince.get(key) ?? this.#nowMs();
    this.#largeSince.set(key, sinceMs);
    return this.#nowMs() - sinceMs >= this.#downMs ? to : now;
  }

  get #downMs(): number {
    return this.#terms.hysteresis.downSeconds * 1_000;
  }
}

function roundedUp(bytes: number): number {
  return Math.ceil(bytes / STEP_BYTES) * STEP_BYTES;
}
