/**
 * Who takes the new flows of an instance: its own listeners, those of its second generation, a share of both, or nobody. One
 * row of a map each, so that all of an instance's new flows change over at once.
 */

import { u32 } from '../kernel/struct.js';
import type { BpfMap } from '../native/bpf.js';
import type { Layouts } from './layouts.js';

export interface Serving {
  /** The number whose listeners take new flows. */
  readonly serving: number;
  /** Takes a share of them, from 0 to 1, as long as it has a listener. */
  readonly canary?: { readonly number: number; readonly share: number } | undefined;
  /** Nobody takes them: the failure policy is what they meet. */
  readonly resting: boolean;
}

export interface InstanceCounts {
  /** New flows, and resets by the proxy; of the latter only those that were watched for. */
  readonly started: number;
  readonly reset: number;
}

export interface GenerationsOptions {
  readonly generations: BpfMap;
  readonly instance_counts: BpfMap;
  readonly layouts: Pick<Layouts, 'generation' | 'instanceCount' | 'limits'>;
}

export class Generations {
  readonly #options: GenerationsOptions;
  readonly #wanted = new Map<number, Buffer>();

  constructor(options: GenerationsOptions) {
    this.#options = options;
  }

  /** `number`: the instance's own. */
  set(number: number, { serving, canary, resting }: Serving): void {
    const { generation, limits } = this.#options.layouts;
    if (serving === number && canary === undefined && !resting) {
      this.#wanted.delete(number);
      this.#options.generations.delete(u32(number));
      return;
    }
    const row = generation.encode({
      serving,
      canary: canary?.number ?? 0,
      share: Math.round((canary?.share ?? 0) * limits.shareWhole),
      resting: resting ? 1 : 0,
    });
    this.#wanted.set(number, row);
    this.#options.generations.set(u32(number), row);
  }

  /** Writes rows again that have been changed, and takes away those of nobody. Returns what was wrong, in words. */
  ensure(): string[] {
    const { generations } = this.#options;
    const held = new Map(generations.entries().map(([key, value]) => [key.readUInt32LE(0), value]));
    const wrong = new Set<number>();
    for (const [number, row] of this.#wanted) {
      if (held.get(number)?.equals(row) !== true) {
        generations.set(u32(number), row);
        wrong.add(number);
      }
    }
    for (const number of held.keys()) {
      if (!this.#wanted.has(number)) {
        generations.delete(u32(number));
        wrong.add(number);
      }
    }
    return [...wrong].map((number) => `who serves instance number ${number}`);
  }

  counts(number: number): InstanceCounts {
    const { instanceCount } = this.#options.layouts;
    const cpus = this.#options.instance_counts.get(u32(number)) ?? Buffer.alloc(0);
    let [started, reset] = [0, 0];
    for (let at = 0; at + instanceCount.size <= cpus.length; at += instanceCount.size) {
      started += Number(instanceCount.number(cpus, 'started', at));
      reset += Number(instanceCount.number(cpus, 'reset', at));
    }
    return { started, reset };
  }
}
