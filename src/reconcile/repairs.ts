/** What was found missing or changed in the kernel and put right: counted for metrics, logged with what it was. */

import type { Log } from '../base/log.js';

/** What a repair concerned; the label of the metric. */
export const REPAIR_KINDS = [
  'policy-route',
  'nftables',
  'ipvs',
  'socket-lookup',
  'pin',
  'map',
  'attachment',
  'inbound',
  'sysctl',
] as const;
export type RepairKind = (typeof REPAIR_KINDS)[number];

export class Repairs {
  readonly #counts = new Map<RepairKind, number>(REPAIR_KINDS.map((kind) => [kind, 0]));
  readonly #log: Pick<Log, 'warn'>;

  constructor(log: Pick<Log, 'warn'>) {
    this.#log = log;
  }

  /** `isNews`: false where a log line for each would drown the rest, and the whole is told otherwise. */
  note(kind: RepairKind, what: string, fields: object = {}, isNews = true): void {
    this.#counts.set(kind, (this.#counts.get(kind) ?? 0) + 1);
    if (isNews) {
      this.#log.warn({ kind, what, ...fields }, 'repaired');
    }
  }

  counts(): Readonly<Record<RepairKind, number>> {
    return Object.fromEntries(this.#counts) as Record<RepairKind, number>;
  }
}
