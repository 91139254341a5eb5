/** Runs the instances that have a command, while their apps have pods on the node. */

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import type { Instance } from '../config/config.js';
import { InstanceProcess, type Renewal } from './instance-process.js';
import { type ProcessMessage, readStates } from './state.js';

/**
 * With processes to look after: the first try to start one again is due 100 ms after it has ended, and how one ends that an
 * agent before us has started nobody tells.
 */
const LOOK_MS = 100;
/** Without any. Pods that come are told of, and are a look of their own. */
const IDLE_LOOK_MS = 1_000;

export interface SupervisorOptions {
  /** Where states and output are kept: `instancesFolder`. */
  readonly folder: string;
  readonly instances: () => readonly Instance[];
  /** Whose apps have pods here; undefined: not known yet, and nothing is stopped. */
  readonly wanted: (instances: readonly Instance[]) => ReadonlySet<string> | undefined;
  readonly nowMs: Clock;
  /** Called when listeners were opened. */
  readonly listening: () => void;
  readonly log: Log;
}

export function instancesFolder(runDir: string): string {
  return join(runDir, 'instances');
}

export class Supervisor {
  readonly #options: SupervisorOptions;
  readonly #processes: Map<string, InstanceProcess>;
  readonly #troubled = new Map<string, string>();
  #timer: NodeJS.Timeout | undefined;
  #isStarted = false;

  /** Takes over what another has left running. */
  constructor(options: SupervisorOptions) {
    mkdirSync(options.folder, { recursive: true, mode: 0o700 });
    this.#options = options;
    this.#processes = new Map(
      readStates(options.folder).map((kept) => [kept.name, new InstanceProcess(kept.name, options, kept)]),
    );
  }

  start(): void {
    this.#isStarted = true;
    this.look();
  }

  /** Once at all of them; one that is in trouble is no reason to leave out the others. */
  look(instances = this.#options.instances()): void {
    const declared = new Map(
      instances.flatMap((instance) => (instance.run === undefined ? [] : [[instance.name, instance]])),
    );
    const names = new Set([...declared.keys(), ...this.#processes.keys()]);
    // Who is wanted takes a look at every pod, and most nodes have no such instance.
    const wanted = names.size > 0 ? this.#options.wanted(instances) : undefined;
    for (const name of names) {
      try {
        this.#lookAt(name, declared.get(name), wanted);
        this.#troubled.delete(name);
      } catch (error) {
        this.#tell(name, error as Error);
      }
    }
    this.#await();
  }

  #await(): void {
    clearTimeout(this.#timer);
    if (this.#isStarted) {
      this.#timer = setTimeout(() => this.look(), this.#processes.size > 0 ? LOOK_MS : IDLE_LOOK_MS);
    }
  }

  #lookAt(name: string, declared: Instance | undefined, wanted: ReadonlySet<string> | undefined): void {
    const process = this.#processes.get(name) ?? new InstanceProcess(name, this.#options);
    this.#processes.set(name, process);
    if (!process.look(declared, wanted?.has(name))) {
      process.remove();
      this.#processes.delete(name);
    }
  }

  /** Once, until it is another. */
  #tell(instance: string, error: Error): void {
    if (this.#troubled.get(instance) !== error.message) {
      this.#options.log.error({ err: error, instance }, 'looking after an instance failed');
      this.#troubled.set(instance, error.message);
    }
  }

  /** See InstanceProcess.renew; `undefined`: it has begun. */
  renew(name: string, deadlineMs: number): string | undefined {
    const declared = this.#options.instances().find((instance) => instance.name === name);
    const process = this.#processes.get(name);
    return declared === undefined || process === undefined
      ? 'it has no process'
      : process.renew(declared, deadlineMs);
  }

  renewalOf(name: string): Renewal | undefined {
    return this.#processes.get(name)?.renewal();
  }

  messages(): ProcessMessage[] {
    return [...this.#processes.values()].map((process) => process.message());
  }

  /** What runs goes on: for the next supervisor. */
  close(): void {
    this.#isStarted = false;
    clearTimeout(this.#timer);
    for (const process of this.#processes.values()) {
      process.close();
    }
  }
}
