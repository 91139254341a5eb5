/**
 * What a pod's life-cycle hooks ask. Who calls is known by the flow that the call came by: what an intercepted pod sends to
 * the port, and what the kubelet sends to that port of a pod, both come here, and are recorded as that pod's.
 */

import { setTimeout as delay } from 'node:timers/promises';
import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import type { SocketAddress } from '../net/socket-address.js';
import type { PodUid } from '../pods/pod.js';
import type { DatapathView } from '../reconcile/datapath-view.js';

export interface HooksOptions {
  readonly datapath: Pick<DatapathView, 'lookupFlow' | 'podOfEndpoint' | 'endpointOf' | 'counters'>;
  /** Whether the instance that serves the pod takes a connection; why not, in words, else undefined. */
  readonly unready: (uid: PodUid, signal: AbortSignal) => Promise<string | undefined>;
  /** Whether what the pod is sent is intercepted. */
  readonly isInbound: (uid: PodUid) => boolean;
  /** Refuses new connections to the pod from now on, for as long as there is the pod; resolves when that holds. */
  readonly close: (uid: PodUid) => Promise<void>;
  /** Connections to the pod that its proxy has open. */
  readonly openTo: (uid: PodUid) => number;
  readonly nowMs: Clock;
  readonly log: Pick<Log, 'info'>;
}

export interface HookTimes {
  /** For the whole. */
  readonly deadlineMs: number;
  /** `pre-stop`: new connections are refused once there has been none for so long. */
  readonly quietMs: number;
}

export interface PostStartAnswer {
  readonly ready: boolean;
  readonly reason: string;
}

export interface PreStopAnswer {
  /** Connections that were open at the deadline. */
  readonly open: number;
  readonly waitedMs: number;
}

/** Only while a hook waits for its answer. */
const LOOK_MS = 50;

export class Hooks {
  readonly #options: HooksOptions;

  constructor(options: HooksOptions) {
    this.#options = options;
  }

  /** The pod that a call is about: that made it, or that it was made to. */
  callerOf(peer: SocketAddress, local: SocketAddress): PodUid | undefined {
    const { datapath } = this.#options;
    const flow = datapath.lookupFlow(peer, local);
    return flow && datapath.podOfEndpoint(flow.endpointId, flow.generation);
  }

  /** Resolves once the pod is intercepted and its instance takes connections, or the deadline is over. */
  async postStart(uid: PodUid, { deadlineMs }: HookTimes, signal: AbortSignal): Promise<PostStartAnswer> {
    const { datapath, unready, nowMs } = this.#options;
    const until = nowMs() + deadlineMs;
    for (;;) {
      const status = datapath.endpointOf(uid);
      if (status?.state === 'OBSERVED') {
        return { ready: true, reason: '' }; // nothing of it depends on a proxy
      }
      const isWell = status?.state === 'INTERCEPTED' || status?.state === 'DRAINED';
      const reason = isWell
        ? await unready(uid, signal)
        : `the pod is ${status?.state ?? 'not known'}${status?.reason === undefined ? '' : `: ${status.reason}`}`;
      if (reason === undefined) {
        return { ready: true, reason: '' };
      }
      if (nowMs() >= until || signal.aborted) {
        return { ready: false, reason };
      }
      await delay(LOOK_MS);
    }
  }

  /**
   * Whoever is about to end is taken out of services by others, which takes a moment: new connections are taken until none has
   * come for a while, and refused after that. Resolves when none is open any more, or the deadline is over.
   */
  async preStop(
    uid: PodUid,
    { deadlineMs, quietMs }: HookTimes,
    signal: AbortSignal,
  ): Promise<PreStopAnswer> {
    const { isInbound, close, openTo, nowMs, log } = this.#options;
    const begun = nowMs();
    const until = begun + deadlineMs;
    const answer = () => ({ open: openTo(uid), waitedMs: Math.round(nowMs() - begun) });
    if (!isInbound(uid)) {
      return answer();
    }
    let last = { count: await this.#startedTo(uid), atMs: nowMs() };
    while (nowMs() < until && nowMs() - last.atMs < quietMs) {
      await delay(LOOK_MS);
      const count = await this.#startedTo(uid);
      last = count === last.count ? last : { count, atMs: nowMs() };
    }
    // A kubelet that has gone away asks again; then it is not about to end yet.
    if (signal.aborted) {
      return answer();
    }
    await close(uid);
    log.info({ pod: uid, open: openTo(uid) }, 'the pod is about to end: new connections to it are refused');
    while (openTo(uid) > 0 && nowMs() < until) {
      await delay(LOOK_MS);
    }
    return answer();
  }

  async #startedTo(uid: PodUid): Promise<number> {
    const { datapath } = this.#options;
    const rows = await datapath.counters();
    return rows
      .filter(({ podUid, direction }) => podUid === uid && direction === 'INGRESS')
      .reduce((sum, { packets }) => sum + (packets['FLOW_STARTED'] ?? 0), 0);
  }
}
