/**
 * Which listeners each instance has and which of them take its new flows. An instance has two sets of them, called
 * generations: its proxy's upgrade brings the one that is free into service, and the next upgrade the other. What an upgrade
 * has changed is kept in a file until the configuration of the instance changes, which then holds.
 */

import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { z } from 'zod';
import type { Log } from '../base/log.js';
import type { Generations } from '../datapath/generations.js';
import { type InstanceSlots, secondGeneration } from '../datapath/instance-slots.js';
import type { OwnerRule } from '../datapath/listener-owner.js';
import type { WantedInstance, WantedListener } from '../datapath/listener-slots.js';

export type GenerationNumber = 1 | 2;

export interface Addresses {
  readonly outbound: readonly WantedListener[];
  readonly inbound: readonly WantedListener[];
  readonly owner: OwnerRule;
}

export interface ConfiguredInstance extends Addresses {
  readonly name: string;
  /** Directions for which its proxy may announce listeners, whether they have an address or not. */
  readonly announced?: WantedInstance['announced'];
}

const listener = z.object({
  host: z.string(),
  port: z.number(),
  family: z.union([z.literal(4), z.literal(6)]),
});
const addresses = z.object({
  outbound: z.array(listener),
  inbound: z.array(listener),
  owner: z.object({
    uid: z.number().optional(),
    gid: z.number().optional(),
    exe: z.string().optional(),
    cgroup: z.string().optional(),
  }),
});
/** Of one instance, where it is not simply what the configuration says. */
const kept = z.object({
  serving: z.union([z.literal(1), z.literal(2)]),
  /** How many upgrades it has had. */
  upgrades: z.number(),
  /** Of a generation; the first one's are the configuration's where they are left out. */
  addresses: z.object({ 1: addresses.optional(), 2: addresses.optional() }),
  /** What the configuration said at its last upgrade; once that says something else, that holds. */
  configured: addresses.optional(),
});
const file = z.record(z.string(), kept);
type Kept = z.infer<typeof kept>;

export interface InstanceGenerationsOptions {
  readonly path: string;
  readonly slots: Pick<InstanceSlots, 'assign' | 'numberOf'>;
  readonly kernel: Pick<Generations, 'set'>;
  readonly log: Pick<Log, 'warn'>;
}

export class InstanceGenerations {
  readonly #options: InstanceGenerationsOptions;
  readonly #kept: Map<string, Kept>;
  /** By instance: a share of new flows, from 0 to 1, that goes to the generation that does not serve. Not kept. */
  readonly #canaries = new Map<string, number>();
  readonly #resting = new Set<string>();
  /** The free generation is being brought into service, or the former one still has open flows. */
  readonly #inTransit = new Set<string>();

  constructor(options: InstanceGenerationsOptions) {
    this.#options = options;
    this.#kept = new Map(Object.entries(this.#read()));
  }

  /** Gives them their numbers, and says what is to be adopted for each. */
  wanted(instances: readonly ConfiguredInstance[]): WantedInstance[] {
    for (const instance of instances) {
      this.#settle(instance);
    }
    const names = instances.flatMap(({ name }) =>
      this.generationsOf(name).includes(2) ? [name, secondGeneration(name)] : [name],
    );
    this.#options.slots.assign(names);
    return instances.flatMap((instance) =>
      this.generationsOf(instance.name).map((generation) => ({
        name: instance.name,
        generation,
        number: this.numberOf(instance.name, generation),
        base: this.numberOf(instance.name, 1),
        announced: instance.announced,
        ...this.addressesOf(instance, generation),
      })),
    );
  }

  /** Writes into the kernel who takes the new flows of each. */
  apply(instances: readonly Pick<ConfiguredInstance, 'name'>[]): void {
    for (const { name } of instances) {
      const serving = this.servingOf(name);
      const share = this.#canaries.get(name);
      const other = serving === 1 ? 2 : 1;
      this.#options.kernel.set(this.numberOf(name, 1), {
        serving: this.numberOf(name, serving),
        canary: share === undefined ? undefined : { number: this.numberOf(name, other), share },
        resting: this.#resting.has(name),
      });
    }
  }

  /** Of every generation that has listeners. */
  portsOf(instances: readonly ConfiguredInstance[]): number[] {
    return instances.flatMap((instance) =>
      this.generationsOf(instance.name).flatMap((generation) => {
        const { outbound, inbound } = this.addressesOf(instance, generation);
        return [...outbound, ...inbound].map(({ port }) => port);
      }),
    );
  }

  servingOf(name: string): GenerationNumber {
    return this.#kept.get(name)?.serving ?? 1;
  }

  /** Those that have listeners: the one that serves, and the other one while an upgrade is under way. */
  generationsOf(name: string): readonly GenerationNumber[] {
    return this.#inTransit.has(name) ? [1, 2] : [this.servingOf(name)];
  }

  upgradesOf(name: string): number {
    return this.#kept.get(name)?.upgrades ?? 0;
  }

  numberOf(name: string, generation: GenerationNumber): number {
    return this.#options.slots.numberOf(generation === 1 ? name : secondGeneration(name));
  }

  isResting(name: string): boolean {
    return this.#resting.has(name);
  }

  /** Until it is called off its failure policy is what new flows meet. For `apply` to bring into force, as all that follows. */
  rest(name: string, rests: boolean): void {
    if (rests) {
      this.#resting.add(name);
    } else {
      this.#resting.delete(name);
    }
  }

  /** The generation that does not serve gets these listeners. Returns which it is. */
  begin(instance: ConfiguredInstance, found: Addresses): GenerationNumber {
    const { name } = instance;
    const serving = this.servingOf(name);
    const next = serving === 1 ? 2 : 1;
    const before = this.#kept.get(name) ?? { serving, upgrades: 0, addresses: {} };
    this.#kept.set(name, {
      ...before,
      addresses: { ...before.addresses, [next]: copyOf(found) },
      configured: copyOf(instance),
    });
    this.#inTransit.add(name);
    return next;
  }

  canary(name: string, share: number | undefined): void {
    if (share === undefined) {
      this.#canaries.delete(name);
    } else {
      this.#canaries.set(name, share);
    }
  }

  /** The other generation takes all new flows from now on. */
  change(name: string): void {
    const before = this.#kept.get(name);
    if (before !== undefined) {
      const serving = before.serving === 1 ? 2 : 1;
      this.#kept.set(name, { ...before, serving, upgrades: before.upgrades + 1 });
      this.#canaries.delete(name);
      this.#write();
    }
  }

  /** The generation that does not serve has no listeners any more. */
  end(name: string): void {
    const before = this.#kept.get(name);
    this.#canaries.delete(name);
    this.#inTransit.delete(name);
    if (before !== undefined) {
      const { serving } = before;
      this.#kept.set(name, { ...before, addresses: { [serving]: before.addresses[serving] } });
      this.#write();
    }
  }

  /** Where a generation of it listens, and whose that is. */
  addressesOf(instance: ConfiguredInstance, generation: GenerationNumber): Addresses {
    const own = { outbound: instance.outbound, inbound: instance.inbound, owner: instance.owner };
    return this.#kept.get(instance.name)?.addresses[generation] ?? own;
  }

  #settle(instance: ConfiguredInstance): void {
    const before = this.#kept.get(instance.name);
    if (before === undefined || this.#inTransit.has(instance.name)) {
      return;
    }
    if (before.configured !== undefined && !isDeepStrictEqual(before.configured, copyOf(instance))) {
      this.#kept.set(instance.name, { serving: 1, upgrades: before.upgrades, addresses: {} });
      this.#write();
    }
  }

  #read(): Record<string, Kept> {
    const { path, log } = this.#options;
    try {
      return file.parse(JSON.parse(readFileSync(path, 'utf8')));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
        log.warn({ path, err: error }, 'what upgrades of instances have changed cannot be read');
      }
      return {};
    }
  }

  #write(): void {
    const { path } = this.#options;
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(`${path}.new`, JSON.stringify(Object.fromEntries(this.#kept)), { mode: 0o600 });
    renameSync(`${path}.new`, path);
  }
}

/** As the file has it. */
function copyOf({ outbound, inbound, owner }: Addresses): z.infer<typeof addresses> {
  const plain = ({ host, port, family }: WantedListener) => ({ host, port, family });
  return JSON.parse(JSON.stringify({ outbound: outbound.map(plain), inbound: inbound.map(plain), owner }));
}
