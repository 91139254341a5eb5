/**
 * Which number an instance has in the kernel. Endpoints and flows refer to it, so it belongs to a name and not to a place
 * in the configuration: it is kept in a pinned map, over restarts and over every change of the list.
 */

import { DatapathError } from '../kernel/errors.js';
import { u32 } from '../kernel/struct.js';
import type { BpfMap } from '../native/bpf.js';
import type { Layouts } from './layouts.js';

/** The most that a name may have, as the kernel keeps it. */
const NAME_BYTES = 64;
/** What follows it is ours: whoever reads the name as a string of C does not see it. */
const SEPARATOR = '\0';

/** The name of an instance's other set of listeners, which takes turns with the first when its proxy is upgraded. */
export function secondGeneration(name: string): string {
  return `${name}${SEPARATOR}2`;
}

export interface InstanceSlotsOptions {
  readonly instances: BpfMap;
  readonly layouts: Pick<Layouts, 'instance'>;
  /** Numbers that an endpoint or a flow refers to; asked only where a name has none yet. */
  readonly referred: () => ReadonlySet<number>;
}

export class InstanceSlots {
  readonly #options: InstanceSlotsOptions;
  readonly #names = new Map<number, string>();
  readonly #numbers = new Map<string, number>();

  constructor(options: InstanceSlotsOptions) {
    this.#options = options;
    for (const [key, value] of options.instances.entries()) {
      const text = options.layouts.instance.bytes(value, 'name').toString('utf8').replace(/\0+$/, '');
      this.#remember(key.readUInt32LE(0), text);
    }
  }

  /**
   * Gives each of these a number: the one it has, else the lowest that is free. A name that is not among them keeps its
   * own until no other is left and nothing refers to it. DatapathError LISTENER_LIMIT where that is not enough.
   */
  assign(names: readonly string[]): void {
    const most = this.#options.instances.maxEntries;
    if (names.length > most) {
      throw new DatapathError(
        'LISTENER_LIMIT',
        `instances: at most ${most} are possible, ${names.length} are configured`,
      );
    }
    const missing = names.filter((name) => !this.#numbers.has(name));
    if (missing.length === 0) {
      return;
    }
    // Before there was a table an instance had the number of its place in the list: what refers to one means that.
    const referred = this.#names.size === 0 ? new Set<number>() : this.#options.referred();
    if (missing.length > most - new Set([...this.#names.keys(), ...referred]).size) {
      this.#release(new Set(names), referred);
    }
    for (const name of missing) {
      this.#give(name, this.#lowestFree(referred));
    }
  }

  /** Writes rows again that have been taken away or changed. Returns what was wrong, in words. */
  ensure(): string[] {
    const { instances } = this.#options;
    const held = new Map(instances.entries().map(([key, value]) => [key.readUInt32LE(0), value]));
    const wrong: string[] = [];
    for (const [number, name] of this.#names) {
      const value = this.#encode(name);
      if (held.get(number)?.equals(value) !== true) {
        instances.set(u32(number), value);
        wrong.push(`the number of instance ${name}`);
      }
    }
    return wrong;
  }

  /** Throws where `assign` was not told the name. `name`: of an instance, or `secondGeneration` of it. */
  numberOf(name: string): number {
    const number = this.#numbers.get(name);
    if (number === undefined) {
      throw new Error(`the instance ${name} has no number`);
    }
    return number;
  }

  /** Also of one that is not configured any more. */
  nameOf(number: number): string {
    return this.#names.get(number)?.split(SEPARATOR, 1)[0] ?? `#${number}`;
  }

  #release(kept: ReadonlySet<string>, referred: ReadonlySet<number>): void {
    for (const [number, name] of [...this.#names]) {
      if (!kept.has(name) && !referred.has(number)) {
        this.#options.instances.delete(u32(number));
        this.#names.delete(number);
        this.#numbers.delete(name);
      }
    }
  }

  #lowestFree(referred: ReadonlySet<number>): number {
    const most = this.#options.instances.maxEntries;
    for (let number = 0; number < most; number++) {
      if (!this.#names.has(number) && !referred.has(number)) {
        return number;
      }
    }
    throw new DatapathError(
      'LISTENER_LIMIT',
      `instances: all ${most} numbers are taken by instances that pods or flows still refer to`,
    );
  }

  #give(name: string, number: number): void {
    if (Buffer.byteLength(name) > NAME_BYTES) {
      throw new RangeError(`instance name "${name}" is longer than ${NAME_BYTES} bytes`);
    }
    this.#options.instances.set(u32(number), this.#encode(name));
    this.#remember(number, name);
  }

  #encode(name: string): Buffer {
    return this.#options.layouts.instance.encode({ name: Buffer.from(name) });
  }

  #remember(number: number, name: string): void {
    this.#names.set(number, name);
    this.#numbers.set(name, number);
  }
}
