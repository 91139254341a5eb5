/** A copy of what the API server has of one resource, kept by list and watch (Kubernetes API concepts, "Watches"). */

import { setTimeout as delay } from 'node:timers/promises';
import type { Clock } from '../../base/clock.js';
import type { SourceStats } from '../source.js';
import { codeOf, type KubernetesClient, KubernetesError } from './kubernetes-client.js';
import { ObjectCopy, type ObjectCopyOptions } from './kubernetes-copy.js';
import { listAll } from './kubernetes-list.js';
import { bookmarkSchema, firstProblem, statusSchema, watchEventSchema } from './kubernetes-objects.js';

export interface ReflectorTimes {
  /** A watch without a byte for this long counts as dead: the API server sends a bookmark about once a minute. */
  readonly stallMs: number;
  /** Between two lists, whatever the watch says; a fifth more or less each time. */
  readonly relistMs: number;
  readonly backoffFirstMs: number;
  readonly backoffMaxMs: number;
}

export interface ReflectorOptions<T> extends ObjectCopyOptions<T> {
  readonly client: KubernetesClient;
  /** Such as a field selector. */
  readonly query: Readonly<Record<string, string>>;
  /** Something in `values()` may differ from before, or everything was listed for the first time. */
  readonly onChange: () => void;
  readonly times: ReflectorTimes;
  readonly nowMs: Clock;
}

/**
 * Why a watch was opened again. ended: by the API server, in order. failed: the connection, or an error. stalled:
 * nothing came, and the list after it shows that something should have. silent: nothing came, and nothing was missed.
 * expired: HTTP 410. relist: it was time to. invalid: what came cannot be read.
 */
export type RestartReason = 'ended' | 'failed' | 'stalled' | 'silent' | 'expired' | 'relist' | 'invalid';

/** So many lists in a row whose watch is refused as too old are more than bad luck. */
const GONE_IN_A_ROW = 4;
/** The API server ends the watch itself after this, so that none lives for ever: 4 to 6 minutes. */
const WATCH_SECONDS = { from: 240, spread: 120 };

export class Reflector<T> {
  readonly #options: ReflectorOptions<T>;
  readonly #copy: ObjectCopy<T>;
  #resourceVersion: string | undefined;
  #synced = false;
  #failures = 0;
  #lastError: string | undefined;
  #lastEventAtMs: number | undefined;
  #relists = 0;
  #relistDueMs = 0;
  /** Nothing came for `stallMs`; the next list tells what that meant. */
  #wasSilent = false;
  readonly #restarts = new Map<RestartReason, number>();
  /** Settles what `start` returned; only its first call counts. */
  #settle: (error?: unknown) => void = () => undefined;

  constructor(options: ReflectorOptions<T>) {
    this.#options = options;
    this.#copy = new ObjectCopy(options);
  }

  /** Whether everything was listed once. */
  get synced(): boolean {
    return this.#synced;
  }

  get lastError(): string | undefined {
    return this.#lastError;
  }

  get stats(): SourceStats {
    return {
      lastEventAtMs: this.#lastEventAtMs,
      relists: this.#relists,
      watchRestarts: Object.fromEntries(this.#restarts),
    };
  }

  /** The same value as before where nothing was said of the object since. */
  values(): T[] {
    return this.#copy.values();
  }

  /**
   * Follows until `signal` aborts. Resolves once it does, or when it is aborted. Rejects with the first failure where
   * that comes first: it is logged, stands in `lastError`, and is being retried.
   */
  start(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#settle = (error) => (error === undefined ? resolve() : reject(error));
      void this.#run(signal);
    });
  }

  /** Never rejects. */
  async #run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        this.#resourceVersion ??= await this.#list(signal);
        this.#restarted(await this.#watch(this.#resourceVersion, signal));
      } catch (error) {
        if (!signal.aborted) {
          this.#failed(error);
        }
      }
      // What is no failure is as good as following: a watch that was too old, or silent.
      this.#settle();
      await pause(this.#backoffMs(), signal);
    }
    this.#settle();
  }

  /** One object by its path, taken into the copy as if the watch had brought it. Throws KubernetesError. */
  async lookup(path: string, what: string, signal: AbortSignal): Promise<T | undefined> {
    try {
      const value = await this.#copy.ask(() => this.#options.client.get({ what, path }, signal));
      this.#options.onChange();
      return value;
    } catch (error) {
      if (error instanceof KubernetesError && error.code === 'NOT_FOUND') {
        return undefined;
      }
      throw error;
    }
  }

  async #list(signal: AbortSignal): Promise<string> {
    const { client, resource, query, times, nowMs } = this.#options;
    this.#copy.listBegins();
    const { objects, resourceVersion } = await listAll(client, resource, query, signal);
    this.#relists += this.#synced ? 1 : 0;
    this.#synced = true;
    this.#relistDueMs = performance.now() + times.relistMs * (0.8 + 0.4 * Math.random());
    this.#lastEventAtMs = nowMs();
    const changed = this.#copy.replace(objects, resourceVersion);
    this.#options.onChange();
    this.#judgeSilence(changed);
    return resourceVersion;
  }

  /** An API server whose etcd is idle has no bookmark to send: silence alone is no fault. */
  #judgeSilence(changed: boolean): void {
    if (this.#wasSilent) {
      this.#wasSilent = false;
      this.#restarted(changed ? 'stalled' : 'silent');
      if (changed) {
        const { log, resource } = this.#options;
        log.warn({ resource }, 'kubernetes: the watch had stalled; what it did not tell was listed now');
      }
    }
  }

  /** Until it ends in order, or until the next list is due. */
  async #watch(resourceVersion: string, signal: AbortSignal): Promise<'ended' | 'relist'> {
    const { client, resource, query, times } = this.#options;
    const relist = new AbortController();
    const timer = setTimeout(() => relist.abort(), Math.max(0, this.#relistDueMs - performance.now()));
    const seconds = WATCH_SECONDS.from + Math.floor(Math.random() * WATCH_SECONDS.spread);
    const call = {
      what: `watch ${resource}`,
      path: `/api/v1/${resource}`,
      query: {
        ...query,
        watch: 'true',
        allowWatchBookmarks: 'true',
        resourceVersion,
        timeoutSeconds: String(seconds),
      },
    };
    let openedMs: number | undefined;
    const onOpen = (): void => {
      openedMs = performance.now();
      this.#follows();
    };
    const handlers = { onOpen, onEvent: (event: unknown) => this.#onEvent(event) };
    try {
      await client.watch(call, times.stallMs, handlers, AbortSignal.any([signal, relist.signal]));
      return 'ended';
    } catch (error) {
      if (!relist.signal.aborted || signal.aborted) {
        throw error;
      }
      this.#resourceVersion = undefined;
      return 'relist';
    } finally {
      clearTimeout(timer);
      const lastedMs = openedMs === undefined ? 0 : performance.now() - openedMs;
      this.#failures = lastedMs > times.backoffMaxMs || relist.signal.aborted ? 0 : this.#failures + 1;
    }
  }

  #follows(): void {
    if (this.#lastError !== undefined) {
      this.#options.log.info({ resource: this.#options.resource }, 'kubernetes: following again');
    }
    this.#lastError = undefined;
    this.#settle();
  }

  #onEvent(raw: unknown): void {
    const { resource, nowMs } = this.#options;
    const event = watchEventSchema.safeParse(raw);
    if (!event.success) {
      throw new KubernetesError('INVALID', `watch ${resource}: ${firstProblem(event.error)}`);
    }
    this.#lastEventAtMs = nowMs();
    const { type, object } = event.data;
    if (type === 'ERROR') {
      const { code, message, reason } = statusSchema.safeParse(object).data ?? {};
      throw new KubernetesError(
        codeOf(code ?? 500),
        `watch ${resource}: ${message ?? reason ?? 'the API server ended the watch with an error'}`,
      );
    }
    if (type === 'BOOKMARK') {
      const bookmark = bookmarkSchema.safeParse(object);
      this.#resourceVersion = bookmark.success
        ? bookmark.data.metadata.resourceVersion
        : this.#resourceVersion;
      return;
    }
    const meta = this.#copy.metaOf(object);
    if (meta === undefined) {
      return;
    }
    this.#resourceVersion = meta.resourceVersion;
    if (type === 'DELETED') {
      this.#copy.remove(meta.uid);
    } else {
      this.#copy.upsert(meta, object);
    }
    this.#options.onChange();
  }

  #failed(error: unknown): void {
    const { log, resource } = this.#options;
    const code = error instanceof KubernetesError ? error.code : 'FAILED';
    if (code === 'STALLED') {
      this.#wasSilent = true;
      this.#resourceVersion = undefined;
      return;
    }
    const watching = this.#resourceVersion !== undefined;
    if (watching) {
      this.#restarted(reasonOf(code));
    } else {
      // A watch has counted itself.
      this.#failures += 1;
    }
    if (code === 'GONE' || code === 'INVALID') {
      this.#resourceVersion = undefined;
    }
    if (code === 'GONE' && watching && this.#failures < GONE_IN_A_ROW) {
      // Nothing is wrong: history was compacted, and a list has everything.
      log.info({ resource }, 'kubernetes: the API server no longer has what came next, listing anew');
      return;
    }
    const message = error instanceof Error ? error.message : String(error);
    if (message !== this.#lastError) {
      log.error(
        { err: error, resource },
        'kubernetes: behind the API server, the last good state stays in force; trying again',
      );
    }
    this.#lastError = message;
    this.#settle(error);
  }

  #restarted(reason: RestartReason): void {
    this.#restarts.set(reason, (this.#restarts.get(reason) ?? 0) + 1);
  }

  /** With jitter, so that the agents of all nodes do not come back in step. */
  #backoffMs(): number {
    const { backoffFirstMs, backoffMaxMs } = this.#options.times;
    const mostMs = Math.min(backoffFirstMs * 2 ** Math.min(this.#failures, 16), backoffMaxMs);
    return mostMs * Math.random();
  }
}

function reasonOf(code: KubernetesError['code']): RestartReason {
  switch (code) {
    case 'GONE':
      return 'expired';
    case 'INVALID':
      return 'invalid';
    default:
      return 'failed';
  }
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await delay(ms, undefined, { signal }).catch(() => undefined);
}
