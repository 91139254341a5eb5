/** Pods from a YAML file, watched: for machines without a kubelet, and for tests. */

import { watch } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Log } from '../../base/log.js';
import type { PodStore } from '../pod-store.js';
import type { PodSource } from '../source.js';
import { parseStaticPods, StaticPodsError } from './static-file.js';

/** An editor's truncate, write, rename: read once they are over. */
const SETTLE_MS = 30;

export interface StaticSourceOptions {
  readonly file: string;
  readonly store: PodStore;
  readonly log: Log;
  /** How often the file is looked at besides being watched; network file systems tell nothing. Default 1000. */
  readonly pollMs?: number;
}

export class StaticSource implements PodSource {
  readonly name = 'static';
  readonly #options: StaticSourceOptions;
  #seen = '';
  #lastError: string | undefined;
  #checking = false;
  #checkAgain = false;

  constructor(options: StaticSourceOptions) {
    this.#options = options;
  }

  get lastError(): string | undefined {
    return this.#lastError;
  }

  /** Rejects with StaticPodsError where the file cannot be read or is wrong at the start. */
  async start(signal: AbortSignal): Promise<void> {
    await this.#load();
    if (!signal.aborted) {
      this.#follow(signal);
    }
  }

  #follow(signal: AbortSignal): void {
    const check = (): void => void this.#check(signal);
    let settling: NodeJS.Timeout | undefined;
    const poll = setInterval(check, this.#options.pollMs ?? 1000).unref();
    // The folder, not the file: an atomic rename puts another inode under the name.
    const watcher = watch(dirname(this.#options.file), { persistent: false }, () => {
      settling ??= setTimeout(() => {
        settling = undefined;
        check();
      }, SETTLE_MS).unref();
    });
    watcher.on('error', (error) => {
      this.#options.log.warn(
        { err: error, file: this.#options.file },
        'static pods: watching failed, polling only',
      );
      watcher.close();
    });
    const stop = (): void => {
      clearInterval(poll);
      clearTimeout(settling);
      watcher.close();
    };
    signal.addEventListener('abort', stop, { once: true });
    check();
  }

  /** Loads the file if it is another than the one last seen; never two at a time. */
  async #check(signal: AbortSignal): Promise<void> {
    this.#checkAgain = true;
    if (this.#checking) {
      return;
    }
    this.#checking = true;
    while (this.#checkAgain && !signal.aborted) {
      this.#checkAgain = false;
      if ((await signatureOf(this.#options.file)) !== this.#seen) {
        await this.#reload(signal);
      }
    }
    this.#checking = false;
  }

  async #reload(signal: AbortSignal): Promise<void> {
    const { file, store, log } = this.#options;
    try {
      await this.#load(signal);
      this.#lastError = undefined;
      log.info({ file, revision: store.revision }, 'static pods: file loaded');
    } catch (error) {
      this.#lastError = error instanceof Error ? error.message : String(error);
      log.error({ err: error, file }, 'static pods: file refused, the last good state stays in force');
    }
  }

  async #load(signal?: AbortSignal): Promise<void> {
    const { file, store } = this.#options;
    const pods = parseStaticPods(await this.#read(), file);
    if (signal?.aborted !== true) {
      store.replaceSource('static', pods);
    }
  }

  /** Reads again if the file was written to meanwhile: what was read may be half of it. */
  async #read(): Promise<string> {
    const { file } = this.#options;
    for (;;) {
      this.#seen = await signatureOf(file);
      const text = await readFile(file, 'utf8').catch((error: unknown) => {
        throw unreadable(file, error);
      });
      if ((await signatureOf(file)) === this.#seen) {
        return text;
      }
    }
  }
}

function unreadable(file: string, error: unknown): StaticPodsError {
  const message = `the pods cannot be read: ${(error as Error).message}`;
  return new StaticPodsError([{ file, line: 0, field: '', message }], { cause: error });
}

/** Changes whenever the file is written, replaced, removed or becomes readable; a text that says why if it is not. */
async function signatureOf(file: string): Promise<string> {
  try {
    const { dev, ino, size, mtimeNs, ctimeNs } = await stat(file, { bigint: true });
    return [dev, ino, size, mtimeNs, ctimeNs].join(' ');
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}
