/** Draining pods and resuming them: what is ordered, whom it is about, and what is open still. */

import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import type { FlowRecord } from '../datapath/flows.js';
import type { SocketAddress } from '../net/socket-address.js';
import { appOf, type Pod, type PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { DatapathView } from '../reconcile/datapath-view.js';
import type { Drain, DrainScope, Drains } from './drains.js';

/** A connection of a proxy, as the socket has it. */
export interface ProxyConnection {
  readonly local: SocketAddress;
  readonly peer: SocketAddress;
  readonly id: Buffer;
}

export interface DrainingOptions {
  readonly drains: Drains;
  readonly store: Pick<PodStore, 'list' | 'get'>;
  readonly datapath: Pick<DatapathView, 'lookupFlow' | 'podOfEndpoint'>;
  readonly synced: () => boolean;
  /** Has the pods decided anew that a change is about; resolves when it holds. */
  readonly changed: () => Promise<void>;
  /** Those that bear one of these addresses at either end and are not in TIME_WAIT. */
  readonly connections: (ips: readonly string[]) => readonly ProxyConnection[];
  /** Resets them, and returns how many there still were. Throws where the kernel cannot. */
  readonly end: (connections: readonly ProxyConnection[]) => number;
  /** Unix time, milliseconds. */
  readonly nowMs: Clock;
  readonly log: Pick<Log, 'info' | 'warn'>;
}

/** What is still open after its deadline, or cannot be judged yet, is looked at again this often. */
const AGAIN_MS = 1_000;
/** The longest that a timer can wait. */
const LONGEST_MS = 2 ** 31 - 1;

export interface DrainOrder {
  readonly scope: DrainScope;
  readonly to?: string | undefined;
  /** From now on. */
  readonly deadlineMs?: number | undefined;
}

export class Draining {
  readonly #options: DrainingOptions;
  /** Whose deadline is over, and of whose pods nothing was open any more. */
  readonly #ended = new WeakSet<Drain>();
  #problem: string | undefined;
  /** When the next deadline is over; undefined: none is to come. */
  #timer: NodeJS.Timeout | undefined;
  #isStarted = false;

  constructor(options: DrainingOptions) {
    this.#options = options;
  }

  /** From now on deadlines are kept. */
  start(): void {
    this.#isStarted = true;
    this.#await();
  }

  close(): void {
    this.#isStarted = false;
    clearTimeout(this.#timer);
  }

  /** Why what is open after a deadline could not be ended, if so. */
  get problem(): string | undefined {
    return this.#problem;
  }

  list(): readonly Drain[] {
    return this.#options.drains.list();
  }

  /** Resolves when new flows of its pods go where they are to go. */
  async drain({ scope, to, deadlineMs }: DrainOrder): Promise<Drain> {
    const { drains, store, synced, changed, nowMs, log } = this.#options;
    const sinceMs = nowMs();
    const drain: Drain = {
      scope,
      sinceMs,
      ...(to !== undefined && { to }),
      ...(deadlineMs !== undefined && { deadlineMs: sinceMs + deadlineMs }),
    };
    if (synced()) {
      drains.forgetPods((uid) => store.get(uid) === undefined);
    }
    drains.add(drain);
    this.#await();
    log.info({ ...drain }, 'drained');
    await changed();
    return drain;
  }

  /** Returns how many drains that ended: 0 where none was of this scope. */
  async resume(scope: DrainScope): Promise<number> {
    const { drains, changed, log } = this.#options;
    const count = drains.remove(scope);
    this.#await();
    log.info({ scope, count }, 'resumed');
    await changed();
    return count;
  }

  /** Those that it decides about: no other drain comes before it. */
  podsOf(drain: Drain): readonly Pod[] {
    return this.#options.store.list().filter((pod) => this.#drainOf(pod) === drain);
  }

  /** How many flows of each drained pod are still where they were. */
  openFlows(pods = this.#options.store.list()): ReadonlyMap<PodUid, number> {
    const drained = pods.filter((pod) => this.#drainOf(pod) !== undefined);
    return new Map([...this.#open(drained)].map(([uid, open]) => [uid, open.length]));
  }

  /** Ends what is open of pods whose deadline is over. */
  endOverdue(): void {
    const { synced, nowMs, end, log } = this.#options;
    if (!synced()) {
      return;
    }
    const isOver = ({ deadlineMs = Number.POSITIVE_INFINITY }: Drain) => deadlineMs <= nowMs();
    for (const drain of this.list().filter((one) => isOver(one) && !this.#ended.has(one))) {
      const open = [...this.#open(this.podsOf(drain)).values()].flat();
      if (open.length === 0) {
        this.#ended.add(drain);
        continue;
      }
      try {
        log.info({ scope: drain.scope, count: end(open) }, 'connections ended: the deadline is over');
        this.#problem = undefined;
      } catch (error) {
        this.#tell(
          `what is open after a deadline cannot be ended: ${error instanceof Error ? error.message : String(error)}`,
          error,
        );
      }
    }
  }

  /** Nobody is woken but for a deadline. `againMs`: of those that are over. */
  #await(againMs = 0): void {
    clearTimeout(this.#timer);
    const { drains, nowMs, log } = this.#options;
    const now = nowMs();
    const waits = drains
      .list()
      .filter((drain) => !this.#ended.has(drain))
      .flatMap(({ deadlineMs }) => deadlineMs ?? [])
      .map((deadlineMs) => (deadlineMs <= now ? againMs : deadlineMs - now));
    if (!this.#isStarted || waits.length === 0) {
      return;
    }
    const look = () => {
      try {
        this.endOverdue();
      } catch (error) {
        log.warn({ err: error }, 'ending what is overdue failed');
      }
      this.#await(AGAIN_MS);
    };
    this.#timer = setTimeout(look, Math.min(...waits, LONGEST_MS));
  }

  #tell(problem: string, error: unknown): void {
    if (problem !== this.#problem) {
      this.#options.log.warn({ err: error }, problem);
    }
    this.#problem = problem;
  }

  #drainOf(pod: Pod): Drain | undefined {
    return this.#options.drains.of(pod.uid, appOf(pod));
  }

  /**
   * By the pod that each was recorded for: what another pod has open with this one is not its own. Who is drained to an
   * instance keeps what is there.
   */
  #open(pods: readonly Pod[]): Map<PodUid, ProxyConnection[]> {
    const { datapath, connections } = this.#options;
    const found = new Map<PodUid, ProxyConnection[]>(pods.map(({ uid }) => [uid, []]));
    if (pods.length === 0) {
      return found;
    }
    const targets = new Map(pods.map((pod) => [pod.uid, this.#drainOf(pod)?.to]));
    for (const connection of connections([...new Set(pods.flatMap(({ ips }) => ips))])) {
      const flow = datapath.lookupFlow(connection.peer, connection.local);
      const uid = flow && this.#podOf(flow);
      if (uid !== undefined && flow?.instance !== targets.get(uid)) {
        found.get(uid)?.push(connection);
      }
    }
    return found;
  }

  #podOf({ endpointId, generation }: FlowRecord): PodUid | undefined {
    return this.#options.datapath.podOfEndpoint(endpointId, generation);
  }
}
