/** Pods from a container runtime over its CRI socket: containerd, CRI-O. */

import { isDeepStrictEqual } from 'node:util';
import type { Log } from '../../base/log.js';
import type { Pod } from '../pod.js';
import type { PodStore } from '../pod-store.js';
import type { HandlerTable } from '../runtime-kind.js';
import type { PodSource } from '../source.js';
import { CriClient, CriError, type ListedSandbox } from './cri-client.js';
import { CriConnection } from './cri-connection.js';
import { readSandbox, type SandboxStatus } from './cri-sandbox.js';
import { PokedPause } from './poked-pause.js';

export interface CriSourceOptions {
  /** As in `unix:///run/containerd/containerd.sock`. */
  readonly endpoint: string;
  /** What the configuration adds to the built-in handler names. */
  readonly handlers: HandlerTable;
  readonly store: PodStore;
  readonly log: Log;
  /** Between two lists where the runtime tells no events. Default 500. */
  readonly pollMs?: number;
  /** Between two lists where it does: what an event that got lost costs at most. Default 10 000. */
  readonly resyncMs?: number;
  /** Time limit of one call. Default 5000. */
  readonly deadlineMs?: number;
}

const BACKOFF_FIRST_MS = 250;
const BACKOFF_MAX_MS = 5000;
const STATUS_CALLS_AT_ONCE = 8;
/** How often a first snapshot is tried before one without the sandboxes that fail is taken. */
const INCOMPLETE_ROUNDS = 3;

/** A sandbox of the last list, and what its status came to. */
interface Known {
  readonly listed: ListedSandbox;
  readonly status: SandboxStatus['status'];
  readonly pod: Pod | undefined;
}

export class CriSource implements PodSource {
  readonly name = 'cri';
  readonly #options: CriSourceOptions;
  readonly #connection: CriConnection;
  readonly #pause = new PokedPause();
  #known: ReadonlyMap<string, Known> = new Map();
  #lastError: string | undefined;
  #published = false;
  #incompleteRounds = 0;
  readonly #unknownHandlers = new Set<string>();

  constructor(options: CriSourceOptions) {
    this.#options = options;
    this.#connection = new CriConnection(options.log, () => this.poke());
  }

  get lastError(): string | undefined {
    return this.#lastError;
  }

  /** Lists again at once, or right after the list under way: something happened on the node. */
  poke(): void {
    this.#pause.poke();
  }

  async start(signal: AbortSignal): Promise<void> {
    const client = new CriClient(this.#options.endpoint, this.#options.deadlineMs ?? 5000);
    const stop = (): void => {
      this.#connection.lose();
      client.close();
    };
    if (signal.aborted) {
      stop();
      return;
    }
    signal.addEventListener('abort', stop, { once: true });
    let failures = (await this.#round(client, signal)) ? 0 : 1;
    const follow = async (): Promise<void> => {
      while (!signal.aborted) {
        await this.#pause.wait(this.#delayMs(failures), signal);
        if (!signal.aborted) {
          failures = (await this.#round(client, signal)) ? 0 : failures + 1;
        }
      }
    };
    void follow();
  }

  #delayMs(failures: number): number {
    if (failures > 0) {
      return Math.min(BACKOFF_FIRST_MS * 2 ** (failures - 1), BACKOFF_MAX_MS);
    }
    return this.#connection.eventsFlow ? (this.#options.resyncMs ?? 10_000) : (this.#options.pollMs ?? 500);
  }

  /** One list, from the runtime to the store; false if the store is behind afterwards. Never throws. */
  async #round(client: CriClient, signal: AbortSignal): Promise<boolean> {
    this.#pause.answer();
    try {
      await this.#connection.open(client, signal);
      const failed = await this.#sync(client, signal);
      if (failed === undefined && this.#lastError !== undefined) {
        this.#options.log.info({ endpoint: this.#options.endpoint }, 'cri: following again');
      }
      this.#setError(failed, signal);
    } catch (error) {
      this.#connection.lose();
      this.#setError(error, signal);
    }
    return this.#lastError === undefined;
  }

  /**
   * Returns the first error of a single sandbox: the others are in the store all the same. Not so at the start: an
   * empty or thin first snapshot would make the agent let go of pods that it had taken before its restart.
   */
  async #sync(client: CriClient, signal: AbortSignal): Promise<unknown> {
    const listed = await client.listReadySandboxes();
    const next = new Map<string, Known>();
    let failed: unknown;
    const queue = [...listed];
    const worker = async (): Promise<void> => {
      for (let item = queue.shift(); item !== undefined; item = queue.shift()) {
        const before = this.#known.get(item.id);
        try {
          const known =
            before !== undefined && isSettled(before, item) ? before : await this.#read(client, item);
          if (known !== undefined) {
            next.set(item.id, known);
          }
        } catch (error) {
          failed ??= error;
          if (before !== undefined) {
            next.set(item.id, before);
          }
        }
      }
    };
    await Promise.all(Array.from({ length: STATUS_CALLS_AT_ONCE }, worker));
    if (failed !== undefined && !this.#mayPublishIncomplete(failed, next.size)) {
      throw failed;
    }
    if (!signal.aborted) {
      this.#published = true;
      this.#known = next;
      this.#options.store.replaceSource('cri', newestPerPod([...next.values()]));
    }
    return failed;
  }

  #mayPublishIncomplete(failed: unknown, readable: number): boolean {
    if (failed instanceof CriError && (failed.code === 'UNAVAILABLE' || failed.code === 'CANCELLED')) {
      return false;
    }
    this.#incompleteRounds += 1;
    return this.#published || (readable > 0 && this.#incompleteRounds >= INCOMPLETE_ROUNDS);
  }

  /** Undefined where the sandbox has gone since it was listed. */
  async #read(client: CriClient, listed: ListedSandbox): Promise<Known | undefined> {
    let answer: SandboxStatus;
    try {
      answer = await client.sandboxStatus(listed.id);
    } catch (error) {
      if (error instanceof CriError && error.code === 'NOT_FOUND') {
        return undefined;
      }
      throw error;
    }
    if (answer.status.state !== 'SANDBOX_READY') {
      return undefined;
    }
    const { pod, runtimeType, problems } = readSandbox(answer, this.#options.handlers);
    const { metadata, runtimeHandler } = answer.status;
    if (problems.length > 0 && !isDeepStrictEqual(this.#known.get(listed.id)?.listed, listed)) {
      const what = pod === undefined ? 'cri: sandbox left out' : 'cri: sandbox taken with problems';
      this.#options.log.warn({ sandbox: listed.id, pod: metadata, problems }, what);
    }
    if (pod?.runtime === 'unknown' && !this.#unknownHandlers.has(`${runtimeHandler} ${runtimeType}`)) {
      this.#unknownHandlers.add(`${runtimeHandler} ${runtimeType}`);
      this.#options.log.warn(
        { runtimeHandler, runtimeType },
        'cri: unknown runtime handler: name its kind under runtimes.handlers',
      );
    }
    return { listed, status: answer.status, pod };
  }

  #setError(error: unknown, signal: AbortSignal): void {
    const message = error === undefined ? undefined : error instanceof Error ? error.message : String(error);
    if (message !== undefined && message !== this.#lastError && !signal.aborted) {
      this.#options.log.error(
        { err: error, endpoint: this.#options.endpoint },
        'cri: behind the runtime, the last good state stays in force; trying again',
      );
    }
    this.#lastError = message;
  }
}

/** Nothing more to ask: the list says the same as before, and the network was complete then. */
function isSettled({ listed, pod }: Known, item: ListedSandbox): boolean {
  const complete = pod === undefined || pod.hostNetwork || pod.ips.length > 0;
  return complete && isDeepStrictEqual(listed, item);
}

/** A pod that is being restarted can have two sandboxes for a moment: the one made last counts. */
function newestPerPod(known: readonly Known[]): Pod[] {
  const newest = new Map<string, { pod: Pod; createdAt: bigint; attempt: number }>();
  for (const { pod, status } of known) {
    if (pod === undefined) {
      continue;
    }
    const candidate = { pod, createdAt: BigInt(status.createdAt), attempt: status.metadata.attempt };
    const other = newest.get(pod.uid);
    if (
      other === undefined ||
      candidate.createdAt > other.createdAt ||
      (candidate.createdAt === other.createdAt && candidate.attempt > other.attempt)
    ) {
      newest.set(pod.uid, candidate);
    }
  }
  return [...newest.values()].map(({ pod }) => pod);
}
