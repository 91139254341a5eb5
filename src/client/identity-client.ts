/**
 * Who is who on this node, for programs beside the agent: `resolve` asks about a flow and answers with evidence; `byUid` and
 * `byAddress` answer at once from a copy that the agent keeps up to date.
 *
 *     const client = new IdentityClient({ socket: '/run/nodesentry/http.sock' });
 *     const { workload, assurance } = await client.resolve({ proto: 'tcp', src, dst });
 *     const known = client.byAddress('10.66.0.3');
 */

import { EventEmitter } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { ApiClient, ApiError, type TellingBody, type WatchPosition } from '../api/client.js';
import type { BatchItem, IdentityLine } from '../api/messages.js';
import type { FlowQuery, Resolution } from '../identity/resolve.js';
import type { Workload } from '../identity/workload.js';
import { parseIp } from '../net/ip.js';
import { type IdentityChange, IdentityCopy } from './identity-copy.js';

export type { TellingBody } from '../api/client.js';
export { ApiError, type ApiErrorCode } from '../api/client.js';
export type { BatchItem } from '../api/messages.js';
export type { ApiReason, Problem } from '../api/problem.js';
export type { Assurance, FlowQuery, Party, Resolution } from '../identity/resolve.js';
export type { Workload, WorkloadState } from '../identity/workload.js';
export type { SocketAddress } from '../net/socket-address.js';
export type { IdentityChange } from './identity-copy.js';

export interface IdentityClientOptions {
  /** Path of the agent's HTTP socket, such as `/run/nodesentry/http.sock`. */
  readonly socket: string;
  /** For an answer to `resolve` or `batch`, and for the watch to open. Default 5000. */
  readonly timeoutMs?: number;
  /** Questions under way at once; others wait. Default 8. */
  readonly connections?: number;
  /**
   * So old the copy may be: nothing has been heard of the agent for that long. Default 15,000, a heartbeat and a half.
   */
  readonly staleAfterMs?: number;
  /** Longest wait before the watch is opened again; it grows up to that, with jitter. Default 5000. */
  readonly maxBackoffMs?: number;
}

/** Why the copy names nobody. */
export type UnknownReason =
  /** The copy is not complete, or too old: ask again after `synced`, or ask `resolve`. */
  | 'NOT_SYNCED'
  /**
   * No live pod of the copy. Not proof of nobody: a source of the agent may not have told yet, and then `resolve` says
   * NOT_SYNCED.
   */
  | 'WORKLOAD_NOT_FOUND'
  /** Two live pods hold the address, as for a moment when it is reused: never a guess. */
  | 'AMBIGUOUS'
  /** The pod is there, but nobody with authority has named it: it has no SPIFFE ID. `resolve` says who has not told. */
  | 'WORKLOAD_UNCONFIRMED';

export interface Unknown {
  readonly workload: undefined;
  readonly reason: UnknownReason;
}

/** By its address alone, which others can send from too: not to decide on who may do what. */
export interface KnownByAddress {
  readonly workload: Workload;
  readonly assurance: 'IP_ONLY';
}

/**
 * Why the copy does not answer any more. SILENT: nothing was heard for `staleAfterMs`, whether or not the stream is open.
 * LOST: the agent says that we read too slowly. SNAPSHOT: the agent was started anew, or can not say what has changed since.
 */
export type LossCause = 'SILENT' | 'LOST' | 'SNAPSHOT';

export interface IdentityClientEvents {
  /** The copy is complete, and answers. */
  synced: [];
  /** It did, and does not until `synced` comes again. */
  lost: [cause: LossCause];
  /** A pod came, is another, or went. After a snapshot only what differs from the copy before. */
  change: [change: IdentityChange];
}

const FIRST_BACKOFF_MS = 50;

/**
 * Opens the watch at once, and anew whenever it breaks, until `close`. Exceptions of listeners are not caught: they reject
 * in the background, as of any listener that throws.
 */
export class IdentityClient extends EventEmitter<IdentityClientEvents> {
  readonly #api: ApiClient;
  readonly #options: Required<Omit<IdentityClientOptions, 'socket'>>;
  readonly #closed = new AbortController();
  readonly #running: Promise<void>;
  #held = new IdentityCopy();
  /** Under a snapshot that has not ended. */
  #next: IdentityCopy | undefined;
  #position: WatchPosition | undefined;
  #isSynced = false;
  #lastError: ApiError | undefined;
  #failures = 0;
  #silence: NodeJS.Timeout | undefined;
  #stream = new AbortController();

  constructor({ socket, ...options }: IdentityClientOptions) {
    super();
    this.#options = {
      timeoutMs: 5_000,
      connections: 8,
      staleAfterMs: 15_000,
      maxBackoffMs: 5_000,
      ...options,
    };
    const { timeoutMs, connections } = this.#options;
    // One more, which the watch holds.
    this.#api = new ApiClient({ socketPath: socket, timeoutMs, connections: connections + 1 });
    this.#running = this.#run();
  }

  /** Whether the copy is complete and was confirmed within `staleAfterMs`. */
  get synced(): boolean {
    return this.#isSynced;
  }

  /** Why there is no watch; undefined while there is one, and before the first try has ended. */
  get lastError(): ApiError | undefined {
    return this.#lastError;
  }

  /**
   * Whose flow this is, by what the kernel recorded of it: `src` and `dst` are peer and local address of the accepted
   * connection. DATAPATH_RECORDED unless `minAssurance` says that less will do. The answer may be kept for `ttlMs`
   * milliseconds. Throws ApiError: its `code` is the reason of the agent, or NO_AGENT, NO_PERMISSION, CONNECTION_FAILED.
   */
  resolve(query: FlowQuery, signal?: AbortSignal): Promise<Resolution> {
    return this.#api.resolve(query, signal);
  }

  /** At most 256 questions in one request, each answered for itself, in their order. Throws ApiError as `resolve` does. */
  async batch(queries: readonly FlowQuery[]): Promise<readonly BatchItem[]> {
    return (await this.#api.resolveBatch(queries)).results;
  }

  /**
   * Says of a flow what its pod has looked up, or, of one that the pod dialled explicitly, where it has asked to go: for whoever
   * reads `nodesentry flows`, nothing else. Throws ApiError, WORKLOAD_NOT_FOUND where the flow is not recorded.
   */
  async tell(flow: TellingBody): Promise<void> {
    await this.#api.tell(flow);
  }

  /** The live pod of this UID, from the copy. A pod that nobody with authority has named has an empty `spiffeId`. */
  byUid(uid: string): { readonly workload: Workload } | Unknown {
    if (!this.#isSynced) {
      return unknown('NOT_SYNCED');
    }
    const workload = this.#held.get(uid);
    return workload === undefined ? unknown('WORKLOAD_NOT_FOUND') : { workload };
  }

  /**
   * The one live pod with this address, from the copy; IPv4-mapped addresses, as dual-stack sockets report them, are
   * understood. Pods on the host's network have no address of their own. Where the addresses of the flow are at hand and it
   * matters who sent it, ask `resolve`.
   */
  byAddress(ip: string): KnownByAddress | Unknown {
    if (!this.#isSynced) {
      return unknown('NOT_SYNCED');
    }
    const [workload, ...others] = this.#held.holders(parseIp(ip) ?? ip);
    if (workload === undefined) {
      return unknown('WORKLOAD_NOT_FOUND');
    }
    if (others.length > 0) {
      return unknown('AMBIGUOUS');
    }
    return workload.spiffeId === '' ? unknown('WORKLOAD_UNCONFIRMED') : { workload, assurance: 'IP_ONLY' };
  }

  /** The live pods of the copy; empty while it is not synced. */
  workloads(): readonly Workload[] {
    return this.#isSynced ? this.#held.list() : [];
  }

  /** Ends the watch and what is under way. No event comes after that, and the copy answers NOT_SYNCED. */
  async close(): Promise<void> {
    this.#isSynced = false;
    clearTimeout(this.#silence);
    this.#closed.abort();
    this.#stream.abort();
    await this.#api.close();
    await this.#running.catch(() => {}); // a listener's exception, told as unhandled already
  }

  async #run(): Promise<void> {
    const { signal: closed } = this.#closed;
    while (!closed.aborted) {
      this.#stream = new AbortController();
      try {
        await this.#follow(this.#stream.signal);
      } catch (error) {
        if (!(error instanceof ApiError)) {
          throw error;
        }
        this.#lastError = error;
      }
      await delay(this.#backoffMs(), undefined, { signal: closed }).catch(() => {}); // closed
    }
  }

  async #follow(signal: AbortSignal): Promise<void> {
    const opened = () => {
      this.#lastError = undefined;
      this.#silence ??= this.#awaitWord();
    };
    for await (const line of this.#api.watchIdentities(this.#position, signal, opened)) {
      if (signal.aborted) {
        return;
      }
      this.#silence = this.#silence?.refresh() ?? this.#awaitWord();
      this.#take(line);
    }
  }

  /** Half of it is chance: many clients come back when an agent does. */
  #backoffMs(): number {
    const most = Math.min(this.#options.maxBackoffMs, FIRST_BACKOFF_MS * 2 ** Math.min(this.#failures, 16));
    this.#failures += 1;
    return (most / 2) * (1 + Math.random());
  }

  #awaitWord(): NodeJS.Timeout {
    return setTimeout(() => {
      this.#silence = undefined;
      this.#stream.abort();
      this.#lose('SILENT');
    }, this.#options.staleAfterMs);
  }

  #take(line: IdentityLine): void {
    const { epoch, revision } = line;
    this.#position = { epoch, revision };
    const copy = this.#next ?? this.#held;
    switch (line.type) {
      case 'SNAPSHOT':
        this.#next = new IdentityCopy();
        this.#lose('SNAPSHOT');
        break;
      case 'UPSERT':
        this.#tell(copy.upsert(line.workload));
        break;
      case 'REMOVED':
        this.#tell(copy.remove(line.uid, line.generation));
        break;
      case 'SNAPSHOT_DONE':
        this.#complete();
        break;
      case 'LOST':
        this.#lose('LOST');
        break;
      case 'HEARTBEAT':
        break;
    }
  }

  #tell(change: IdentityChange | undefined): void {
    if (change !== undefined && this.#next === undefined) {
      this.#emitOpen('change', change);
    }
  }

  #complete(): void {
    const before = this.#held;
    this.#held = this.#next ?? before;
    this.#next = undefined;
    this.#failures = 0;
    const isNews = !this.#isSynced;
    this.#isSynced = true;
    for (const change of this.#held === before ? [] : before.changesTo(this.#held)) {
      this.#emitOpen('change', change);
    }
    if (isNews) {
      this.#emitOpen('synced');
    }
  }

  #lose(cause: LossCause): void {
    if (this.#isSynced) {
      this.#isSynced = false;
      this.#emitOpen('lost', cause);
    }
  }

  /** A listener may have closed the client meanwhile. */
  #emitOpen<K extends keyof IdentityClientEvents>(event: K, ...args: IdentityClientEvents[K]): void {
    if (!this.#closed.signal.aborted) {
      (this as EventEmitter).emit(event, ...args);
    }
  }
}

function unknown(reason: UnknownReason): Unknown {
  return { workload: undefined, reason };
}
