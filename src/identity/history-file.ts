/** Lines that outlive the process: appended, and written anew as a whole before they become too many. */

import {
  appendFileSync,
  closeSync,
  fstatSync,
  futimesSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import type { Log } from '../base/log.js';

export interface HistoryFileOptions {
  readonly path: string;
  /** The file never grows much beyond. */
  readonly maxBytes: number;
  readonly log: Pick<Log, 'warn' | 'info'>;
}

const LEAST_BYTES = 64 << 10;

export class HistoryFile {
  readonly #options: HistoryFileOptions;
  /** Undefined: it could not be written, or not to its end, and has to be replaced. */
  #fd: number | undefined;
  #bytes = 0;
  #limit = 0;
  #failed = false;

  constructor(options: HistoryFileOptions) {
    this.#options = options;
  }

  /** What an agent before us left, and when it last lived (Unix time, milliseconds); undefined where nothing did. Never throws. */
  read(): { readonly lines: readonly string[]; readonly aliveMs: number } | undefined {
    const { path, maxBytes, log } = this.#options;
    try {
      const { size, mtimeMs } = statSync(path);
      if (size > 2 * maxBytes) {
        throw new Error(`${size} bytes, which is more than ${2 * maxBytes}`);
      }
      // What stands after the last newline was not written to its end.
      const lines = readFileSync(path, 'utf8').split('\n').slice(0, -1);
      return { lines, aliveMs: Math.floor(mtimeMs) };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
        log.warn({ err: error, path }, 'who had which address before this start cannot be read');
      }
      return undefined;
    }
  }

  /** It holds much that does not count any more: `replace` is due. */
  get isFull(): boolean {
    return this.#fd !== undefined && this.#bytes > this.#limit;
  }

  get isBroken(): boolean {
    return this.#fd === undefined;
  }

  /** Nothing while it is broken: what is to be kept comes with `replace`. Never throws. */
  append(text: string): void {
    this.#guarded((fd) => {
      appendFileSync(fd, text);
      this.#bytes += Buffer.byteLength(text);
    });
  }

  /** All or nothing. Never throws. */
  replace(text: string): void {
    const { path, maxBytes, log } = this.#options;
    this.#release();
    try {
      rmSync(`${path}.new`, { force: true });
      writeFileSync(`${path}.new`, text, { flag: 'wx', mode: 0o600 });
      renameSync(`${path}.new`, path);
      this.#fd = openSync(path, 'a');
      this.#bytes = fstatSync(this.#fd).size;
    } catch (error) {
      this.#fail(error);
      return;
    }
    this.#limit = Math.min(maxBytes, Math.max(LEAST_BYTES, 2 * this.#bytes));
    if (this.#failed) {
      this.#failed = false;
      log.info({ path }, 'who has which address is noted again');
    }
  }

  /** The agent lives. Never throws. */
  touch(nowMs: number): void {
    this.#guarded((fd) => futimesSync(fd, nowMs / 1_000, nowMs / 1_000));
  }

  close(): void {
    this.#release();
  }

  #guarded(step: (fd: number) => void): void {
    if (this.#fd === undefined) {
      return;
    }
    try {
      step(this.#fd);
    } catch (error) {
      this.#release();
      this.#fail(error);
    }
  }

  #release(): void {
    if (this.#fd !== undefined) {
      closeSync(this.#fd);
      this.#fd = undefined;
    }
  }

  #fail(error: unknown): void {
    const { path, log } = this.#options;
    rmSync(`${path}.new`, { force: true });
    if (!this.#failed) {
      this.#failed = true;
      log.warn({ err: error, path }, 'who has which address cannot be noted for the next start');
    }
  }
}
