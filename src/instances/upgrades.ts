/** The upgrades of this node's instances: at most one of each at a time; the last one of each is told until the next. */

import { InstanceError } from './errors.js';
import type { ConfiguredInstance, InstanceGenerations } from './generations.js';
import { Upgrade, type UpgradeParts, type UpgradeStatus } from './upgrade.js';
import { namesNoAddress, parseRenewal, parseUpgrade } from './upgrade-request.js';

export interface UpgradesOptions extends UpgradeParts {
  readonly instances: () => readonly ConfiguredInstance[];
  readonly generations: InstanceGenerations;
  /** Of instances with a command: another process with the same sockets. */
  readonly processes: {
    renew(name: string, deadlineMs: number): string | undefined;
    renewalOf(name: string): Pick<UpgradeStatus, 'phase' | 'detail'> | undefined;
  };
  /** Whether it is started by its command. */
  readonly isStarted: (name: string) => boolean;
}

export class Upgrades {
  readonly #options: UpgradesOptions;
  readonly #last = new Map<string, Upgrade>();
  /** When the last process of each was begun to be exchanged; Unix time, milliseconds. */
  readonly #renewedMs = new Map<string, number>();

  constructor(options: UpgradesOptions) {
    this.#options = options;
  }

  /** `body`: as it was sent. Begins it, and says how it stands. Throws InstanceError. */
  start(name: string, body: unknown): UpgradeStatus {
    const instance = this.#instance(name);
    if (this.#last.get(name)?.isOver === false) {
      throw new InstanceError('INSTANCE_BUSY', `an upgrade of the instance ${name} is under way`);
    }
    if (this.#options.isStarted(name) && namesNoAddress(body)) {
      return this.#renew(name, body);
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
    const renewal = this.#options.processes.renewalOf(name);
    return renewal === undefined
      ? this.#last.get(name)?.status()
      : { instance: name, startedMs: this.#renewedMs.get(name) ?? 0, ...renewal };
  }

  #renew(name: string, body: unknown): UpgradeStatus {
    const problem = this.#options.processes.renew(name, parseRenewal(body));
    if (problem !== undefined) {
      throw new InstanceError('INSTANCE_BUSY', `the instance ${name} cannot be renewed: ${problem}`);
    }
    this.#renewedMs.set(name, Math.round(this.#options.nowMs()));
    return this.of(name) ?? { instance: name, phase: 'CHECKING', detail: '', startedMs: 0 };
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
