/** What is decided of a pod, and what of it can be said without looking at anything. */

import type { FailurePolicy, Pod } from '../pods/pod.js';
import type { HostAttachment, Unreachable } from '../runtimes/location.js';
import type { PlannedEndpoint } from './planned-endpoint.js';

/** A pod that is to be intercepted, and how. */
export interface InterceptDecision {
  readonly kind: 'intercept';
  readonly pod: Pod;
  /** The pod's first interface, then any further ones. */
  readonly endpoints: readonly [PlannedEndpoint, ...PlannedEndpoint[]];
  /** Interfaces of the pod by which it gets past us. */
  readonly unreachable: readonly Unreachable[];
  readonly instance: string;
  readonly failure: FailurePolicy;
  /** What does not hold for the pod although it is intercepted. */
  readonly shortfalls: readonly string[];
  /** Annotations that were not understood, and whose word counts where it is not the present one. */
  readonly problems: readonly string[];
  /** Why some of the endpoints are what the kernel has and not what was found; undefined: all were found. */
  readonly held: string | undefined;
}

/** A pod that is not, or not yet. */
export interface LeaveDecision {
  readonly kind: 'leave';
  readonly pod: Pod;
  readonly state: 'NOT_ENROLLED' | 'DRAINED' | 'PENDING' | 'REFUSED';
  readonly reason: string | undefined;
  readonly failure: FailurePolicy;
  /** Worth another look although nothing has changed here. */
  readonly retry: boolean;
}

export type Decision = InterceptDecision | LeaveDecision;

/** The CNI bandwidth plugin, where it and we cannot both have the pod's packets. */
export function notShaped({ at, plan, shaper }: PlannedEndpoint, comesFirst: boolean): string[] {
  if (shaper === undefined || plan.shaped === true) {
    return [];
  }
  return [
    comesFirst
      ? `the rate limit at ${at.link.name} (${shaper}, the bandwidth plugin) is not applied to what is intercepted, for the interface is a port of a bridge: take kubernetes.io/egress-bandwidth off the pod, or limit its rate at the proxy`
      : `the rate limit at ${at.link.name} (${shaper}, the bandwidth plugin) comes before our program, which before Linux 6.6 then sees nothing: take kubernetes.io/egress-bandwidth off the pod`,
  ];
}

export function drainedText(sinceMs: number): string {
  return `drained since ${new Date(sinceMs).toISOString()}: new connections go past the proxy`;
}

/**
 * Why a pod is not served by the instance that it is drained to. One that has no inbound listener, or alone has one, would
 * cut off what the pod is sent through a proxy and is open still: now, or when the pod is resumed.
 */
export function unfitText(
  name: string,
  other: { readonly inbound: boolean } | undefined,
  own: { readonly inbound: boolean } | undefined,
): string | undefined {
  const rest = 'its own instance serves it';
  if (other === undefined) {
    return `drained to ${name}, which is not configured any more: ${rest}`;
  }
  return own === undefined || own.inbound === other.inbound
    ? undefined
    : `drained to ${name}, which has not the directions of its own: ${rest}`;
}

export function withoutAddress({ link, podInterface = link.name }: HostAttachment): Unreachable {
  return { name: podInterface, kind: link.kind, reason: `no source tells the addresses of ${podInterface}` };
}

/** An interface that the pod still has, and that was not found in it this time, goes by what is decided of the others. */
export function alsoHeld(found: InterceptDecision, held: readonly PlannedEndpoint[]): InterceptDecision {
  const { instance, failureOpen, dropOther, inbound = false } = found.endpoints[0].plan;
  const located = new Set(found.endpoints.map(({ plan }) => plan.ifindex));
  const more = held
    .filter(({ plan }) => !located.has(plan.ifindex))
    .map(({ at, plan }) => ({ at, plan: { ...plan, instance, failureOpen, dropOther, inbound } }));
  const names = more.map(({ at }) => at.link.name).join(', ');
  return more.length === 0
    ? found
    : {
        ...found,
        endpoints: [...found.endpoints, ...more],
        held: `the pod's end of ${names} is not found in the pod any more`,
      };
}

export function ifindexesOf(decision: Decision): number[] {
  return decision.kind === 'leave' ? [] : decision.endpoints.map(({ plan }) => plan.ifindex);
}

/** What a decision says of the pod's interfaces, as text that can be compared. */
export function interfacesOf(decision: Decision): string {
  return decision.kind === 'leave'
    ? `${decision.state} ${decision.reason ?? ''}`
    : JSON.stringify([
        decision.endpoints.map(({ at, plan }) => [
          at.link.name,
          at.podInterface,
          plan.ifindex,
          plan.bridgeIndex,
        ]),
        decision.unreachable,
        decision.held,
      ]);
}

export function nameOf(pod: Pod | undefined): string {
  return pod === undefined ? 'another pod' : `${pod.namespace}/${pod.name}`;
}
