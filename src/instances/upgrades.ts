/** The upgrades of this node's instances: at most one of each at a time; the last one of each is told until the next. */

import { InstanceError } from './errors.js';
import type { ConfiguredInstance, InstanceGenerations } from './generations.js';
import { Upgrade, type UpgradeParts, type UpgradeStatus } from './upgrade.js';
import { parseUpgrade } from './upgrade-request.js';

export interface UpgradesOptions extends UpgradeParts {
  readonly instances: () => readonly ConfiguredInstance[];
  readonly generations: InstanceGenerations;
}

export class Upgrades {
  readonly #options: UpgradesOptions;
  readonly #last = new Map<string, Upgrade>();

  constructor(options: UpgradesOptions) {
    this.#options = options;
  }

  /** `body`: as it was sent. Begins it, and says how it stands. Throws InstanceError. */
  start(name: string, body: unknown): UpgradeStatus {
    const instance = this.#instance(name);
    if (this.#last.get(name)?.isOver === false) {
      throw new InstanceError('INSTANCE_BUSY', `an upgrade of the instance ${name} is under way`);
    }
    const { generations } = this.#options;
    const serving = generations.servingOf(name);
    const request = parseUpgrade(body, generations.addressesOf(instance, serving));
    const upgrade = new Upgrade(this.#options, instance, request);
    this.#last.set(name, upgrade);
    void upgrade.run();
    return upgrade.status();
  }

  /** Throws InstanceError where none is under way. */
  abort(name: string): UpgradeStatus {
    this.#instance(name);
    const upgrade = this.#last.get(name);
    if (upgrade === undefined || upgrade.isOver) {
      throw new InstanceError('INSTANCE_BUSY', `no upgrade of the instance ${name} is under way`);
    }
    upgrade.abort();
    return upgrade.status();
  }

  of(name: string): UpgradeStatus | undefined {
    return this.#last.get(name)?.status();
  }

  close(): void {
    for (const upgrade of this.#last.values()) {
      upgrade.abort();
    }
  }

  #instance(name: string): ConfiguredInstance {
    const found = this.#options.instances().find((instance) => instance.name === name);
    if (found === undefined) {
      throw new InstanceError('INSTANCE_NOT_FOUND', `there is no instance ${name} in the configuration`);
    }
    return found;
  }
}
