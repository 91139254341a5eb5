/** A pod as callers of the API see it. */

import type { SpliceStatus } from '../datapath/splice-choice.js';
import { type InterceptionDefaults, interceptionOf } from '../pods/annotations.js';
import { appOf, type FailurePolicy, type Pod, type RuntimeKind, spiffeIdOf } from '../pods/pod.js';
import type { EndpointStatus, InterfaceStatus } from '../reconcile/status.js';

/** TERMINATING: the pod has gone, and is remembered. */
export type WorkloadState = 'LIVE' | 'TERMINATING';

/** What is not known is an empty text; a pod that was never enrolled has generation 0. */
export interface Workload {
  readonly uid: string;
  readonly generation: number;
  readonly spiffeId: string;
  readonly namespace: string;
  readonly podName: string;
  readonly podUid: string;
  readonly serviceAccount: string;
  readonly app: string;
  readonly runtime: RuntimeKind;
  readonly runtimeHandler: string;
  readonly sandboxId: string;
  readonly ips: readonly string[];
  readonly labels: Readonly<Record<string, string>>;
  readonly node: string;
  readonly state: WorkloadState;
}

export interface WorkloadPlace {
  readonly trustDomain: string;
  readonly node: string;
}

/** `generation` is that of the flow or of the endpoint that is asked about. */
export function workloadOf(
  pod: Pod,
  generation: number,
  state: WorkloadState,
  { trustDomain, node }: WorkloadPlace,
): Workload {
  return {
    uid: pod.uid,
    generation,
    spiffeId: spiffeIdOf(pod, trustDomain),
    namespace: pod.namespace,
    podName: pod.name,
    podUid: pod.uid,
    serviceAccount: pod.serviceAccount,
    app: appOf(pod) ?? '',
    runtime: pod.runtime,
    runtimeHandler: pod.runtimeHandler,
    sandboxId: pod.sandboxId,
    ips: pod.ips,
    labels: pod.labels,
    node,
    state,
  };
}

/** How far the interception of a pod has come: desired, programmed, verified. */
export interface InterceptionReport {
  readonly desired: boolean;
  readonly programmed: boolean;
  readonly verified: boolean;
  readonly state: EndpointStatus['state'];
  /** Empty where there is nothing to explain. */
  readonly reason: string;
  readonly interface: string;
  readonly topology: 'routed' | 'bridge' | '';
  /** All of the pod's interfaces that are intercepted; `interface` and `topology` are those of the first. */
  readonly interfaces: readonly InterfaceStatus[];
  readonly instance: string;
  /** Empty where the pod is not intercepted. */
  readonly directions: 'both' | 'outbound only' | '';
  readonly failure: FailurePolicy;
  /** Whether its bytes go past the TCP stack, and why not. */
  readonly splice: SpliceStatus;
  /** What of the pod's own wishes, or of its runtime, could not be understood. */
  readonly problems: readonly string[];
  /** Of a drained pod: that are still where they were before. */
  readonly openFlows?: number;
}

/** `endpoint` is undefined until the datapath has looked at the pod. */
export function interceptionReport(
  pod: Pod,
  endpoint: EndpointStatus | undefined,
  defaults: InterceptionDefaults,
  splice: SpliceStatus,
  openFlows?: number,
): InterceptionReport {
  const wanted = interceptionOf(pod, defaults);
  const unseen = { state: wanted.enrolled ? 'PENDING' : 'NOT_ENROLLED', reason: '' } as const;
  return {
    desired: wanted.enrolled,
    programmed: endpoint?.programmed ?? false,
    verified: endpoint?.verified ?? false,
    state: endpoint?.state ?? unseen.state,
    reason: endpoint?.reason ?? unseen.reason,
    interface: endpoint?.interfaces[0]?.name ?? '',
    topology: endpoint?.interfaces[0]?.topology ?? '',
    interfaces: endpoint?.interfaces ?? [],
    instance: endpoint?.instance ?? '',
    directions: directionsOf(endpoint),
    failure: endpoint?.failure ?? wanted.failure,
    splice,
    problems: [...wanted.problems, ...runtimeProblems(pod)],
    ...(openFlows === undefined ? {} : { openFlows }),
  };
}

function directionsOf(endpoint: EndpointStatus | undefined): InterceptionReport['directions'] {
  if (endpoint === undefined || endpoint.interfaces.length === 0) {
    return '';
  }
  return endpoint.inbound ? 'both' : 'outbound only';
}

function runtimeProblems(pod: Pod): string[] {
  return pod.runtime === 'unknown' && pod.runtimeHandler !== ''
    ? [
        `runtime handler ${JSON.stringify(pod.runtimeHandler)} is not known: name its kind in runtimes.handlers`,
      ]
    : [];
}
