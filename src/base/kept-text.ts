/** A text that outlives the process, in a file for its owner alone. */

import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Log } from './log.js';

export class KeptText {
  readonly path: string;
  readonly #failure: string;
  readonly #log: Pick<Log, 'warn'>;
  #written: string | undefined;
  #failed = false;

  /** `failure` is logged, once, where it cannot be written. */
  constructor(path: string, failure: string, log: Pick<Log, 'warn'>) {
    this.path = path;
    this.#failure = failure;
    this.#log = log;
  }

  /** All or nothing: a reader finds the file as it was, or as it is to be. Only where it is another. Never throws. */
  write(text: string): void {
    const { path } = this;
    if (text === this.#written) {
      return;
    }
    try {
      mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
      // One that was left half written may have another mode.
      rmSync(`${path}.new`, { force: true });
      writeFileSync(`${path}.new`, text, { flag: 'wx', mode: 0o600 });
      renameSync(`${path}.new`, path);
      this.#written = text;
      this.#failed = false;
    } catch (error) {
      if (!this.#failed) {
        this.#log.warn({ err: error, path }, this.#failure);
      }
      this.#failed = true;
    }
  }
}
