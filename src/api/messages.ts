/** The JSON that goes over the socket besides `Resolution`. */

import type { Instance } from '../config/config.js';
import type { FlowDirection, FlowMode } from '../datapath/flows.js';
import type { IdentityOptionStatus } from '../datapath/identity-option.js';
import type { ListenerStatus } from '../datapath/listeners.js';
import type { DrainScope } from '../drain/drains.js';
import type { InterceptionReport, Workload } from '../identity/workload.js';
import type { Health } from '../instances/health.js';
import type { UpgradeStatus } from '../instances/upgrade.js';
import type { Family } from '../net/family.js';
import type { FlowProtocol } from '../net/protocol.js';
import type { FailurePolicy, SourceName } from '../pods/pod.js';
import type { Explanation } from '../reconcile/explanation.js';
import type { RepairKind } from '../reconcile/repairs.js';
import type { SpliceReport } from '../reconcile/spliced-pods.js';
import type { EndpointState } from '../reconcile/status.js';
import type { ProcessMessage } from '../supervise/state.js';
import type { Answer } from './answers.js';
import type { Problem } from './problem.js';

export interface WorkloadMessage extends Workload {
  readonly interception: InterceptionReport;
}

export interface WorkloadsMessage {
  readonly epoch: string;
  readonly revision: number;
  readonly workloads: readonly WorkloadMessage[];
}

/** The pods of an app that are reached in one way. */
export interface ServiceMessage {
  readonly namespace: string;
  readonly app: string;
  readonly node: string;
  /** Whose inbound listener gets what the pods are sent; empty where it goes straight to them. */
  readonly instance: string;
  /** Where that listener is, null where it is not adopted. */
  readonly inbound: { readonly ipv4: string | null; readonly ipv6: string | null };
  readonly pods: readonly Pick<Workload, 'uid' | 'generation' | 'podName' | 'spiffeId' | 'ips'>[];
}

export interface ServicesMessage {
  readonly epoch: string;
  readonly revision: number;
  readonly services: readonly ServiceMessage[];
}

/** A proxy of the node, as configured and as it is. */
export interface InstanceMessage {
  readonly name: string;
  /** Null: all that no other instance serves. */
  readonly apps: readonly string[] | null;
  /** Who may hold its listeners. */
  readonly owner: Instance['owner'];
  readonly listeners: readonly ListenerMessage[];
  /** That are to be intercepted. */
  readonly pods: readonly (Pick<Workload, 'namespace' | 'podName' | 'app'> & {
    readonly state: EndpointState | 'NOT_ENROLLED';
  })[];
  /** Grows with every upgrade; begins at 1. */
  readonly generation: number;
  /** Whether it accepts connections, and what is wrong if not. */
  readonly health: Health;
  /** Since the kernel's tables were made. */
  readonly flowsStarted: number;
  readonly openFlows: number;
  /** Of the processes that hold its listeners; null where they are not known. */
  readonly memoryBytes: number | null;
  /** What as many proxies of this size as it has pods would need besides. */
  readonly memorySavedBytes: number | null;
  /** The last one since the agent started. */
  readonly upgrade: UpgradeStatus | null;
  /** Null where it has no command. */
  readonly process: ProcessMessage | null;
}

export interface InstancesMessage {
  /** Of the list, since the agent started. */
  readonly changes: number;
  /** Why what the configuration says now does not hold; empty where it does. */
  readonly problem: string;
  readonly instances: readonly InstanceMessage[];
}

/** A drain, and the pods that it decides about. */
export interface DrainMessage {
  readonly scope: DrainScope;
  /** The instance that new flows go to; empty: past every proxy. */
  readonly to: string;
  /** Unix time, milliseconds. */
  readonly since: number;
  /** The same; null: what is open may take as long as it wants. */
  readonly deadline: number | null;
  readonly pods: readonly (Pick<Workload, 'uid' | 'namespace' | 'podName'> & {
    readonly state: EndpointState;
    /** That are still where they were before. */
    readonly openFlows: number;
  })[];
}

export interface DrainsMessage {
  /** Why what was open after a deadline could not be ended; empty where it could. */
  readonly problem: string;
  readonly drains: readonly DrainMessage[];
}

export interface ResumedMessage {
  /** How many drains ended. */
  readonly resumed: number;
}

export type BatchItem = { readonly resolution: Answer } | { readonly problem: Problem };

export interface BatchMessage {
  readonly results: readonly BatchItem[];
}

/** What would become of a new flow of a pod. */
export interface ExplanationMessage extends Explanation {
  readonly uid: string;
  readonly namespace: string;
  readonly podName: string;
  /** How far the pod's interception has come; empty where nothing is known of it yet. */
  readonly state: string;
  readonly protocol: FlowProtocol;
  readonly direction: 'EGRESS' | 'INGRESS';
  /** The address at the far end. */
  readonly far: string;
  /** That is dialled. */
  readonly port: number;
}

/** Of whom something was told. */
export interface ToldMessage {
  readonly podUid: string;
}

/** A flow, or a first packet that was refused. Names are empty where the pod is not known (any more). */
export interface FlowMessage {
  /** Unix time, milliseconds. */
  readonly startedMs: number;
  readonly protocol: FlowProtocol;
  readonly src: string;
  readonly dst: string;
  /** Under which name the pod had looked up the destination, as its proxy has told; left out: none is known. */
  readonly name?: string;
  /** Of an EXPLICIT flow: where the pod has asked its proxy to go, as that has told. */
  readonly asked?: string;
  readonly direction: FlowDirection;
  readonly mode: FlowMode;
  readonly instance: string;
  readonly verdict: string;
  readonly namespace: string;
  readonly podName: string;
  readonly podUid: string;
  readonly endpointId: number;
  readonly generation: number;
  readonly ifindex: number;
}

export interface FlowsMessage {
  readonly flows: readonly FlowMessage[];
}

/** A line of `/v1/flows/watch`: an event, or how many were dropped here because the reader was slow. */
export type WatchLine = FlowMessage | { readonly lost: number };

/**
 * A line of `/v1/watch`: see `WatchEvent`. The reader has all up to `revision`, and can resume from any line's.
 */
export type IdentityLine =
  | {
      readonly type: 'SNAPSHOT' | 'SNAPSHOT_DONE' | 'HEARTBEAT' | 'LOST';
      readonly epoch: string;
      readonly revision: number;
    }
  | {
      readonly type: 'UPSERT';
      readonly epoch: string;
      readonly revision: number;
      readonly workload: Workload;
    }
  | {
      readonly type: 'REMOVED';
      readonly epoch: string;
      readonly revision: number;
      readonly uid: string;
      readonly generation: number;
    };

export interface SourceMessage {
  readonly name: SourceName;
  readonly synced: boolean;
  /** Empty while the source is followed. */
  readonly lastError: string;
}

export interface ListenerMessage extends ListenerStatus {
  /** What a new connection meets while nothing is adopted, unless its pod says otherwise. */
  readonly failure: FailurePolicy;
}

/** Of one instance. */
export interface ListenersMessage {
  readonly listeners: readonly ListenerMessage[];
}

export interface StatusMessage {
  readonly version: string;
  readonly node: string;
  readonly pid: number;
  readonly uptimeMs: number;
  readonly epoch: string;
  readonly revision: number;
  readonly ready: boolean;
  readonly blockers: readonly string[];
  readonly sources: readonly SourceMessage[];
  /** Address families that the node does not have; interception goes without them. */
  readonly familiesOff: readonly { readonly family: Family; readonly reason: string }[];
  readonly listeners: readonly ListenerMessage[];
  readonly endpoints: Readonly<Record<EndpointState, number>>;
  /** What was found missing or changed in the kernel and put right, since the agent started. */
  readonly repairs: Readonly<Record<RepairKind, number>>;
  /** Pods that the CNI plugin did not announce, since the agent started; left out where it is not a source. */
  readonly podsLate?: number;
  /** Where proxies can ask by getsockopt: in how many cgroups, or why in none. */
  readonly socketOption: IdentityOptionStatus;
  /** How many pods have the splice, why the others have not, and what it has done since it was loaded. */
  readonly splice: SpliceReport;
  /** What pods have sent, and what they were sent, by verdict, over all of them. */
  readonly packets: Readonly<Record<string, number>>;
  readonly packetsReceived: Readonly<Record<string, number>>;
  readonly eventsLost: { readonly kernel: number; readonly agent: number };
}
