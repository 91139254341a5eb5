/** The datapath as the later stages see it: one read-only face over tables, flows, listeners and reconciler. */

import type { EndpointCounters, EndpointTables } from '../datapath/endpoints.js';
import type { FlowListener, FlowRecord, Flows } from '../datapath/flows.js';
import type { IdentityOption, IdentityOptionStatus } from '../datapath/identity-option.js';
import type { ListenerStatus, Listeners } from '../datapath/listeners.js';
import type { SpliceStatus } from '../datapath/splice-choice.js';
import type { FamilyOff } from '../kernel/families.js';
import type { FlowProtocol } from '../net/protocol.js';
import type { SocketAddress } from '../net/socket-address.js';
import type { PodUid } from '../pods/pod.js';
import type { Explanation, ExplanationParts, SupposedFlow } from './explanation.js';
import type { LatePods } from './late-pods.js';
import type { Reconciler } from './reconciler.js';
import type { RepairKind, Repairs } from './repairs.js';
import type { SplicedPods, SpliceReport } from './spliced-pods.js';
import type { EndpointStatus } from './status.js';

/** What identity, API and CLI may ask the datapath. */
export interface DatapathView {
  /** Default TCP. */
  lookupFlow(src: SocketAddress, dst: SocketAddress, protocol?: FlowProtocol): FlowRecord | undefined;
  listFlows(limit: number): Promise<FlowRecord[]>;
  onFlowEvent(listener: FlowListener): () => void;
  endpoints(): readonly EndpointStatus[];
  endpointOf(uid: PodUid): EndpointStatus | undefined;
  /** Also answers for endpoints that were removed, while their pod is remembered. */
  podOfEndpoint(endpointId: number, generation: number): PodUid | undefined;
  /** Whether the kernel has an endpoint of this generation now, so that no other pod sends from its interface. */
  isLiveEndpoint(endpointId: number, generation: number): boolean;
  /** What would become of a flow of the pod, and by which rule. */
  explain(uid: PodUid, flow: SupposedFlow): Explanation;
  listeners(): readonly ListenerStatus[];
  /** Address families that the node does not have. */
  familiesOff(): readonly FamilyOff[];
  counters(): Promise<readonly EndpointCounters[]>;
  /** What was found missing or changed in the kernel and put right, since the agent started. */
  repairs(): Readonly<Record<RepairKind, number>>;
  /** Pods that the CNI plugin did not announce, since the agent started; undefined where it is not a source. */
  latePods(): number | undefined;
  /** Where proxies can ask by getsockopt who is at the ends of a connection. */
  socketOption(): IdentityOptionStatus;
  /** Whether the pod's connections are spliced, and why not. */
  spliceOf(uid: PodUid): SpliceStatus;
  splice(): SpliceReport;
  /** Flow events that nobody saw: the ring was full (kernel) or JavaScript was behind (agent). */
  eventsLost(): Promise<EventsLost>;
}

export interface EventsLost {
  readonly kernel: number;
  readonly agent: number;
}

export interface DatapathParts extends Pick<ExplanationParts, 'atNode' | 'openUdpPorts'> {
  readonly tables: EndpointTables;
  readonly flows: Flows;
  readonly listeners: Listeners;
  /** Of UDP. */
  readonly datagramListeners?: Pick<Listeners, 'status'>;
  readonly reconciler: Reconciler;
  readonly repairs: Repairs;
  readonly late?: Pick<LatePods, 'count'> | undefined;
  readonly identityOption: Pick<IdentityOption, 'status'>;
  readonly splices: Pick<SplicedPods, 'statusOf' | 'report'>;
}

export class Datapath implements DatapathView {
  readonly #parts: DatapathParts;

  constructor(parts: DatapathParts) {
    this.#parts = parts;
  }

  lookupFlow(src: SocketAddress, dst: SocketAddress, protocol?: FlowProtocol): FlowRecord | undefined {
    return this.#parts.flows.lookup(src, dst, protocol);
  }

  listFlows(limit: number): Promise<FlowRecord[]> {
    return this.#parts.flows.list(limit);
  }

  onFlowEvent(listener: FlowListener): () => void {
    return this.#parts.flows.onEvent(listener);
  }

  endpoints(): readonly EndpointStatus[] {
    return this.#parts.reconciler.statuses();
  }

  endpointOf(uid: PodUid): EndpointStatus | undefined {
    return this.#parts.reconciler.statusOf(uid);
  }

  /** An id stands for one pod for ever; a generation after the row's current one was never given out. */
  podOfEndpoint(endpointId: number, generation: number): PodUid | undefined {
    const row = this.#parts.tables.rowById(endpointId);
    return row === undefined || generation > row.generation ? undefined : row.uid;
  }

  isLiveEndpoint(endpointId: number, generation: number): boolean {
    const { tables } = this.#parts;
    const row = tables.rowById(endpointId);
    return row !== undefined && row.generation === generation && tables.isLive(row);
  }

  explain(uid: PodUid, flow: SupposedFlow): Explanation {
    const listeners = this.listeners();
    const { reconciler, atNode, openUdpPorts } = this.#parts;
    return reconciler.explain(uid, flow, {
      ...(atNode && { atNode }),
      ...(openUdpPorts && { openUdpPorts }),
      hasListener: (name, direction, family) =>
        listeners.some(
          (listener) =>
            listener.adopted &&
            listener.instance === name &&
            listener.direction === direction &&
            (listener.protocol === 'udp') === (flow.protocol === 'udp') &&
            listener.family === family,
        ),
    });
  }

  listeners(): readonly ListenerStatus[] {
    const { listeners, datagramListeners } = this.#parts;
    return [...listeners.status(), ...(datagramListeners?.status() ?? [])];
  }

  familiesOff(): readonly FamilyOff[] {
    return this.#parts.reconciler.familiesOff();
  }

  counters(): Promise<readonly EndpointCounters[]> {
    return this.#parts.tables.counters();
  }

  repairs(): Readonly<Record<RepairKind, number>> {
    return this.#parts.repairs.counts();
  }

  socketOption(): IdentityOptionStatus {
    return this.#parts.identityOption.status();
  }

  spliceOf(uid: PodUid): SpliceStatus {
    return this.#parts.splices.statusOf(uid);
  }

  splice(): SpliceReport {
    return this.#parts.splices.report();
  }

  latePods(): number | undefined {
    return this.#parts.late?.count;
  }

  async eventsLost(): Promise<EventsLost> {
    const kernel = (await this.counters()).reduce((sum, { packets }) => sum + (packets.EVENT_LOST ?? 0), 0);
    return { kernel, agent: this.#parts.flows.lost() };
  }
}

/** What identity, API and CLI may ask the datapath. */
