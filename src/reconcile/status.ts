/** What is told of a pod: its state, decided here alone, from what was wanted and what was observed. */

import type { CanaryResult } from '../datapath/canary.js';
import type { FamilyOff } from '../kernel/families.js';
import { familyOf } from '../net/family.js';
import type { FailurePolicy, PodUid } from '../pods/pod.js';
import type { Decision } from './decision.js';
import type { Installed } from './endpoint-installer.js';
import type { Proof } from './proofs.js';

/**
 * INTERCEPTED: desired, programmed, and verified: read back from the kernel and proven by a canary. PENDING: wanted,
 * not there yet. REFUSED: cannot be intercepted, `reason` says why. DEGRADED: was intercepted, is so in part or as far as
 * can be told, or is held as it was; `reason` says what is missing. OBSERVED: as INTERCEPTED, but nothing new is
 * intercepted, as was asked for. DRAINED: enrolled, and let alone until it is resumed, but for what it has open at the
 * proxy. NOT_ENROLLED: known and deliberately left alone.
 */
export type EndpointState =
  | 'INTERCEPTED'
  | 'OBSERVED'
  | 'PENDING'
  | 'REFUSED'
  | 'DEGRADED'
  | 'DRAINED'
  | 'NOT_ENROLLED';

export interface InterfaceStatus {
  readonly name: string;
  readonly ifindex: number;
  readonly topology: 'routed' | 'bridge';
  /** Name of the pod's end; empty where it is not known. */
  readonly podInterface: string;
}

export interface EndpointStatus {
  readonly podUid: PodUid;
  readonly state: EndpointState;
  readonly reason: string | undefined;
  /** The host ends of the pod's interfaces, its first one first. */
  readonly interfaces: readonly InterfaceStatus[];
  readonly endpointId?: number;
  readonly generation?: number;
  readonly instance?: string;
  /** What it is sent is intercepted as well: its instance has an inbound listener. */
  readonly inbound: boolean;
  readonly failure: FailurePolicy;
  /** It is enrolled: labels, annotations and configuration say so, whether or not it can be intercepted. */
  readonly desired: boolean;
  /** Everything was put in place, as far as reading it back tells. */
  readonly programmed: boolean;
  /** Programmed, and a canary has arrived. */
  readonly verified: boolean;
}

export interface Observation {
  readonly installed: Installed | undefined;
  readonly nodeProblem: string | undefined;
  readonly familiesOff: readonly FamilyOff[];
  readonly proof: Proof | undefined;
  /** The status before this one. */
  readonly before: EndpointStatus | undefined;
}

/** The one place where a pod's state is decided. */
export function statusOf(decision: Decision, observed: Observation): EndpointStatus {
  const { pod, failure } = decision;
  if (decision.kind === 'leave') {
    const { state, reason } = decision;
    const nothing = { interfaces: [], inbound: false, programmed: false, verified: false };
    return { podUid: pod.uid, state, reason, failure, desired: state !== 'NOT_ENROLLED', ...nothing };
  }
  const { installed, nodeProblem, proof, before } = observed;
  const missing = installed === undefined ? (nodeProblem ?? 'not programmed yet') : installed.missing;
  const isProgramOnly = proof?.result.kind === 'program only';
  const unproven = proof === undefined ? 'not proven yet' : reasonOf(proof.result, before);
  const off = observed.familiesOff.filter(({ family }) => pod.ips.some((ip) => familyOf(ip) === family));
  const escapes = [
    ...decision.unreachable.map(({ reason }) => `not intercepted: ${reason}`),
    ...decision.shortfalls,
    ...off.filter(({ everywhere }) => !everywhere).map(notDelivered),
  ];
  const cutOff = off.filter(({ everywhere }) => everywhere).map(notForwarded);
  const held = decision.held === undefined ? undefined : `held as it was: ${decision.held}`;
  const wrong = [held, missing ?? nodeProblem ?? unproven, ...escapes].filter((text) => text !== undefined);
  const notes = proof?.result.kind === 'silent' ? [`last canary: ${proof.result.reason}`] : [];
  const told = [...wrong, ...decision.problems, ...cutOff, ...(wrong.length === 0 ? notes : [])];
  const row = installed?.row;
  const whole = decision.endpoints.some(({ plan }) => plan.observed === true) ? 'OBSERVED' : 'INTERCEPTED';
  // Attached before the node lost a part, perhaps by an agent before us.
  const isKept = missing === undefined && nodeProblem !== undefined;
  return {
    podUid: pod.uid,
    state:
      wrong.length === 0
        ? whole
        : wasIntercepted(before) || held !== undefined || escapes.length > 0 || isKept || isProgramOnly
          ? 'DEGRADED'
          : 'PENDING',
    reason: told.length === 0 ? undefined : told.join('; '),
    interfaces: decision.endpoints.map(({ at, plan }) => ({
      name: at.link.name,
      ifindex: plan.ifindex,
      topology: at.kind,
      podInterface: at.podInterface ?? '',
    })),
    ...(row === undefined ? {} : { endpointId: row.id, generation: row.generation }),
    instance: decision.instance,
    inbound: decision.endpoints.every(({ plan }) => plan.inbound === true),
    failure,
    desired: true,
    programmed: installed !== undefined && missing === undefined,
    verified: wrong.length === 0,
  };
}

function notForwarded({ family, reason }: FamilyOff): string {
  return `IPv${family} is off on this node (${reason}): nothing of the pod's gets out by it`;
}

function notDelivered({ family, reason }: FamilyOff): string {
  return `not intercepted: IPv${family}, for ${reason}; its connections fail, or pass where failure is open and no proxy listens`;
}

function wasIntercepted(before: EndpointStatus | undefined): boolean {
  return before?.state === 'INTERCEPTED' || before?.state === 'OBSERVED' || before?.state === 'DEGRADED';
}

/** A pod that cannot send at the moment is what it was before: nothing speaks against it. */
function reasonOf(result: CanaryResult, before: EndpointStatus | undefined): string | undefined {
  switch (result.kind) {
    case 'proven':
      return undefined;
    case 'program only':
    case 'unproven':
      return result.reason;
    case 'silent':
      return before?.verified === true ? undefined : `not proven yet: ${result.reason}`;
  }
}
