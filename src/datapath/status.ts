/** What the datapath tells the stages after it: plain values, observed rather than desired. */

import type { FailurePolicy, PodUid } from '../pods/pod.js';

/**
 * INTERCEPTED: desired, programmed and read back from the kernel. PENDING: wanted, not there yet.
 * REFUSED: cannot be intercepted, `reason` says why. DEGRADED: was programmed, `reason` says what is missing.
 * NOT_ENROLLED: known and deliberately left alone.
 */
export type EndpointState = 'INTERCEPTED' | 'PENDING' | 'REFUSED' | 'DEGRADED' | 'NOT_ENROLLED';

export interface EndpointStatus {
  readonly podUid: PodUid;
  readonly state: EndpointState;
  readonly reason: string | undefined;
  readonly interface?: string;
  readonly ifindex?: number;
  readonly topology?: 'routed' | 'bridge';
  readonly endpointId?: number;
  readonly generation?: number;
  readonly instance?: string;
  readonly failure: FailurePolicy;
  readonly programmed: boolean;
  readonly verified: boolean;
}

export interface ListenerStatus {
  readonly instance: string;
  readonly direction: 'outbound' | 'inbound';
  readonly family: 4 | 6;
  readonly address: string;
  readonly adopted: boolean;
  readonly pid?: number;
  readonly process?: string;
}

export interface SocketAddress {
  /** Canonical text, never IPv4-mapped. */
  readonly ip: string;
  readonly port: number;
}

export interface FlowRecord {
  readonly protocol: 'tcp';
  readonly src: SocketAddress;
  readonly dst: SocketAddress;
  readonly endpointId: number;
  readonly generation: number;
  readonly ifindex: number;
  readonly instance: string;
  readonly direction: 'EGRESS' | 'INGRESS';
  /** Unix time, milliseconds. */
  readonly startedMs: number;
}

export interface FlowEvent extends FlowRecord {
  /** Name in `enum verdict` of bpf/include/layout.h without its prefix, such as FLOW_STARTED. */
  readonly verdict: string;
}

export interface EndpointCounters {
  readonly endpointId: number;
  readonly podUid: PodUid | undefined;
  readonly packets: Readonly<Record<string, number>>;
}

/** What identity, API and CLI may ask the datapath. */
export interface DatapathView {
  lookupFlow(src: SocketAddress, dst: SocketAddress): FlowRecord | undefined;
  listFlows(limit: number): FlowRecord[];
  onFlowEvent(listener: (event: FlowEvent) => void): () => void;
  endpoints(): readonly EndpointStatus[];
  endpointOf(uid: PodUid): EndpointStatus | undefined;
  /** Also answers for endpoints that were removed in the last 60 s. */
  podOfEndpoint(endpointId: number, generation: number): PodUid | undefined;
  listeners(): readonly ListenerStatus[];
  counters(): readonly EndpointCounters[];
  /** Flow events that nobody saw: the ring was full (kernel) or JavaScript was behind (agent). */
  eventsLost(): { readonly kernel: number; readonly agent: number };
}
