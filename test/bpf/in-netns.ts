/** Runs functions that call `nft` in a network namespace: a process of its own, for a process acts in its own. */

import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import {
  type EnsuredTable,
  ensureTable,
  type NftSettings,
  removeTable,
} from '../../src/kernel/notrack-table.js';

interface Request {
  readonly id: number;
  readonly settings: NftSettings | undefined;
  readonly seen: EnsuredTable['rules'] | undefined;
}

type Reply = { readonly id: number } & (
  | { readonly value: unknown }
  | { readonly error: { readonly code: string | undefined; readonly message: string } }
);

export class NftInside {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>();
  #lastId = 0;

  /** `environment` is added to that of the process, such as another PATH. */
  constructor(netnsPath: string, environment: NodeJS.ProcessEnv = {}) {
    this.#child = fork(fileURLToPath(import.meta.url), ['serve'], {
      execPath: '/usr/bin/nsenter', // whatever PATH the child is to have
      execArgv: [`--net=${netnsPath}`, process.execPath, '--import', 'tsx'],
      env: { ...process.env, ...environment },
    });
    this.#child.on('message', (reply: Reply) => this.#settle(reply));
    this.#child.on('exit', (code) => {
      for (const { reject } of this.#waiting.values()) {
        reject(new Error(`the process in ${netnsPath} ended with ${code}`));
      }
    });
  }

  async ensure(settings: NftSettings): Promise<readonly string[]> {
    return (await this.look(settings)).repaired;
  }

  async look(settings: NftSettings, seen?: EnsuredTable['rules']): Promise<EnsuredTable> {
    return (await this.#call(settings, seen)) as EnsuredTable;
  }

  async remove(): Promise<string[]> {
    return (await this.#call(undefined)) as string[];
  }

  async close(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      const ended = once(this.#child, 'exit');
      this.#child.kill('SIGKILL');
      await ended;
    }
  }

  #call(settings: NftSettings | undefined, seen?: EnsuredTable['rules']): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const id = ++this.#lastId;
      this.#waiting.set(id, { resolve, reject });
      this.#child.send({ id, settings, seen } satisfies Request);
    });
  }

  #settle(reply: Reply): void {
    const waiting = this.#waiting.get(reply.id);
    this.#waiting.delete(reply.id);
    if ('error' in reply) {
      waiting?.reject(Object.assign(new Error(reply.error.message), { code: reply.error.code }));
    } else {
      waiting?.resolve(reply.value);
    }
  }
}

if (process.argv[2] === 'serve' && process.send !== undefined) {
  const answer = async ({ id, settings, seen }: Request): Promise<Reply> => {
    try {
      return { id, value: settings === undefined ? await removeTable() : await ensureTable(settings, seen) };
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      return { id, error: { code, message } };
    }
  };
  process.on('message', async (request: Request) => process.send?.(await answer(request)));
}
