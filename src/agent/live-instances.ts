/**
 * The list of instances, which changes while the agent runs: read again at SIGHUP, and where the file has changed (a config
 * map is a symbolic link that is swapped, so the text is what is compared). Each change touches the apps that it is about.
 */

import { readFileSync } from 'node:fs';
import { isDeepStrictEqual } from 'node:util';
import type { Log } from '../base/log.js';
import { type Config, type Instance, instanceFor, instancesFor } from '../config/config.js';
import { ConfigError } from '../config/errors.js';
import { parseConfig } from '../config/load.js';
import { DatapathError } from '../kernel/errors.js';

export interface LiveInstancesOptions {
  readonly path: string;
  readonly nodeName: string | undefined;
  /** As it was read at the start. */
  readonly config: Config;
  /** Makes room for them in the kernel and adopts their listeners, before any pod goes to them. Throws DatapathError. */
  readonly prepare: (instances: readonly Instance[]) => Promise<void>;
  /** Moves the pods. */
  readonly changed: () => void;
  readonly log: Pick<Log, 'info' | 'warn'>;
}

export class LiveInstances {
  readonly #options: LiveInstancesOptions;
  #current: readonly Instance[];
  /** What was read last, right or wrong; undefined: nothing yet, or it could not be read, or is to be tried again. */
  #text: string | undefined;
  #problem: string | undefined;
  #applied = 0;
  #working: Promise<void> = Promise.resolve();

  constructor(options: LiveInstancesOptions) {
    this.#options = options;
    this.#current = options.config.instances;
  }

  /** In order of precedence. */
  get current(): readonly Instance[] {
    return this.#current;
  }

  servedBy(app: string): Instance | undefined {
    return instanceFor({ instances: this.#current }, app);
  }

  /** That and those that take certain ports. */
  allServing(app: string): readonly Instance[] {
    return instancesFor({ instances: this.#current }, app);
  }

  /** How often the list has changed since the start, and why what the file says now does not hold, if so. */
  status(): { readonly applied: number; readonly problem: string | undefined } {
    return { applied: this.#applied, problem: this.#problem };
  }

  /** Where the file has changed. */
  look(): Promise<void> {
    const text = this.#read();
    return text === this.#text ? this.#working : this.reload();
  }

  /** Never rejects: what is wrong with the file is told, and the list stays as it was. */
  reload(): Promise<void> {
    this.#working = this.#working.then(() => this.#reload());
    return this.#working;
  }

  async #reload(): Promise<void> {
    const { path, nodeName, prepare, changed, log } = this.#options;
    this.#text = this.#read();
    try {
      if (this.#text === undefined) {
        throw new Error(`${path} cannot be read`);
      }
      const config = parseConfig(this.#text, path, nodeName);
      const later = differing(this.#options.config, config);
      if (!isDeepStrictEqual(config.instances, this.#current)) {
        const before = this.#current;
        await prepare(config.instances);
        this.#current = config.instances;
        this.#applied += 1;
        log.info(namesOf(before, config.instances), 'instances changed');
        changed();
      }
      this.#tell(
        later.length === 0
          ? undefined
          : `${later.join(', ')}: what changed there holds after a restart of the agent`,
      );
    } catch (error) {
      if (!(error instanceof ConfigError || error instanceof DatapathError)) {
        this.#text = undefined; // it may be over in a moment: the next look tries again
      }
      this.#tell(`${(error as Error).message}; the instances stay as they were`);
    }
  }

  /** Once, until it is another. */
  #tell(problem: string | undefined): void {
    if (problem !== undefined && problem !== this.#problem) {
      this.#options.log.warn({ path: this.#options.path, reason: problem }, 'configuration not taken over');
    }
    this.#problem = problem;
  }

  #read(): string | undefined {
    try {
      return readFileSync(this.#options.path, 'utf8');
    } catch {
      return undefined;
    }
  }
}

/** The keys, but for the instances, that are not the same. */
function differing(one: Config, other: Config): string[] {
  const keys = Object.keys({ ...one, ...other }) as (keyof Config)[];
  return keys.filter((key) => key !== 'instances' && !isDeepStrictEqual(one[key], other[key]));
}

function namesOf(before: readonly Instance[], after: readonly Instance[]) {
  const old = new Map(before.map((instance) => [instance.name, instance]));
  const names = new Set(after.map(({ name }) => name));
  return {
    added: after.filter(({ name }) => !old.has(name)).map(({ name }) => name),
    changed: after
      .filter((instance) => old.has(instance.name) && !isDeepStrictEqual(old.get(instance.name), instance))
      .map(({ name }) => name),
    removed: before.filter(({ name }) => !names.has(name)).map(({ name }) => name),
  };
}
