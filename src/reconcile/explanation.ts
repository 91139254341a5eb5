/** What would become of a flow of a pod, and by which rule: from what was decided of the pod, and what the kernel holds. */

import type { EndpointPlan } from '../datapath/endpoints.js';
import { judge, mayIntercept, type SelectionInForce } from '../datapath/selection.js';
import type { Selected } from '../datapath/selections.js';
import { type Family, familyOf } from '../net/family.js';
import type { SelectedDirection } from '../pods/selection.js';
import type { Decision, InterceptDecision } from './decision.js';
import type { EndpointStatus } from './status.js';

/** A flow that the pod opens (`outbound`), or that somebody opens to it. */
export interface SupposedFlow {
  /** Default TCP. */
  readonly protocol?: 'tcp' | 'udp';
  readonly direction: SelectedDirection;
  /** Of the far end. */
  readonly ip: string;
  /** That is dialled: of the far end outbound, of the pod inbound. */
  readonly port: number;
}

/**
 * INTERCEPTED: handed to the instance (of a pod that is only observed: it would be). EXPLICIT: recorded, and left to the
 * proxy that the pod dials by itself. EXCLUDED: passes, a rule leaves it alone. PASSED: passes, for the pod is not
 * intercepted (in that direction), or its failure policy is open. RESET: nobody listens for it, or it is a proxy's own port;
 * a datagram is answered "port unreachable". DROPPED: on no account, or as what is not TCP and not open. UNKNOWN: the pod is
 * held as an agent before this one left it.
 */
export type Outcome = 'INTERCEPTED' | 'EXPLICIT' | 'EXCLUDED' | 'PASSED' | 'RESET' | 'DROPPED' | 'UNKNOWN';

export interface Explanation {
  readonly outcome: Outcome;
  /** In words. */
  readonly rule: string;
  /** Whose listeners it is for; empty where it is for none. */
  readonly instance: string;
  /** The kernel holds what this rests on. */
  readonly inForce: boolean;
}

export interface ExplanationParts {
  readonly decision: Decision | undefined;
  readonly status: EndpointStatus | undefined;
  /** Whether the kernel holds this at the interface. */
  readonly isInKernel: (of: Selected, ifindex: number, selection: SelectionInForce | undefined) => boolean;
  /** What is at this address where it is the node's own, and a proxy's: the instance that pods dial there, or none. */
  readonly atNode?: (
    ip: string,
    port: number,
    protocol: 'tcp' | 'udp',
  ) => { readonly explicit: string | undefined } | undefined;
  /** Ports of UDP that stay open where other protocols are dropped, beside a DHCP server's. */
  readonly openUdpPorts?: readonly number[];
  readonly hasListener: (instance: string, direction: SelectedDirection, family: Family) => boolean;
}

const TAKEN_THERE = 'a proxy of this node listens there for what is intercepted';
/** As bpf/include/other.h has them, by family. */
const DHCP_SERVER = { 4: 67, 6: 547 } as const;

export function explain(flow: SupposedFlow, parts: ExplanationParts): Explanation {
  const { decision, status } = parts;
  if (decision?.kind !== 'intercept') {
    const reason = status?.reason ?? decision?.reason;
    const state = status?.state ?? decision?.state ?? 'PENDING';
    return {
      outcome: 'PASSED',
      rule: `the pod is ${state}${reason === undefined || reason === '' ? '' : `: ${reason}`}`,
      instance: '',
      inForce: true,
    };
  }
  const isUdp = flow.protocol === 'udp';
  const of = isUdp ? 'datagrams' : 'flows';
  const selectionIn = (plan: EndpointPlan) => (isUdp ? plan.datagrams : plan.selection);
  const { plan } = decision.endpoints[0];
  const inForce =
    status?.programmed === true &&
    decision.endpoints.every((endpoint) =>
      parts.isInKernel(of, endpoint.plan.ifindex, selectionIn(endpoint.plan)),
    );
  const told = (outcome: Outcome, rule: string, instance = ''): Explanation => ({
    outcome,
    rule,
    instance,
    inForce,
  });
  if (flow.direction === 'inbound' && plan.inbound !== true) {
    return told(
      'PASSED',
      `instance ${decision.instance} has no inbound listener: only what the pod sends is intercepted`,
    );
  }
  if (isUdp) {
    return datagram(flow, parts, decision, told);
  }
  if (flow.direction === 'outbound' && isLoopback(flow.ip)) {
    return told('DROPPED', 'a connection to a loopback address would come to the node');
  }
  const proxy = flow.direction === 'outbound' ? parts.atNode?.(flow.ip, flow.port, 'tcp') : undefined;
  if (proxy?.explicit !== undefined) {
    return told('EXPLICIT', `instance ${proxy.explicit} is dialled there by pods themselves`, proxy.explicit);
  }
  if (proxy !== undefined) {
    return told('RESET', TAKEN_THERE);
  }
  return judged(flow, parts, decision, told);
}

type Told = (outcome: Outcome, rule: string, instance?: string) => Explanation;

/** Of UDP, where what is not intercepted goes the way of all that is not TCP. */
function datagram(
  flow: SupposedFlow,
  parts: ExplanationParts,
  decision: InterceptDecision,
  told: Told,
): Explanation {
  const { datagrams, dropOther } = decision.endpoints[0].plan;
  const found =
    datagrams === undefined
      ? told('EXCLUDED', 'no UDP port of the pod is named that its instance takes')
      : judged(flow, parts, decision, told);
  const { outcome, rule, instance } = found;
  if (flow.direction === 'inbound') {
    return found;
  }
  if (instance !== '' && isLoopback(flow.ip)) {
    return told('DROPPED', 'a datagram to a loopback address would come to the node');
  }
  const isLookedAt = datagrams !== undefined && 'outbound' in datagrams && mayIntercept(datagrams.outbound);
  if (outcome === 'EXCLUDED' && isLookedAt && parts.atNode?.(flow.ip, flow.port, 'udp') !== undefined) {
    return told('RESET', TAKEN_THERE);
  }
  const passes = outcome === 'EXCLUDED' || outcome === 'PASSED';
  return passes && dropOther && !isOpen(flow, parts)
    ? told('DROPPED', `${rule}; what is not TCP is dropped, and its port is not open`)
    : found;
}

function isOpen({ ip, port }: SupposedFlow, { openUdpPorts = [] }: ExplanationParts): boolean {
  return port === DHCP_SERVER[familyOf(ip)] || openUdpPorts.includes(port);
}

function judged(
  flow: SupposedFlow,
  parts: ExplanationParts,
  decision: InterceptDecision,
  told: Told,
): Explanation {
  const isUdp = flow.protocol === 'udp';
  const { plan } = decision.endpoints[0];
  const selection = isUdp ? plan.datagrams : plan.selection;
  if (selection !== undefined && !('outbound' in selection)) {
    return told('UNKNOWN', 'the pod is held as an earlier agent left it, and no source has told of it since');
  }
  const { intercepted, share, rule } = judge(selection, flow.direction, flow.ip, flow.port, isUdp);
  if (!intercepted) {
    return told('EXCLUDED', rule);
  }
  const instance = share?.name ?? decision.instance;
  if (parts.hasListener(instance, flow.direction, familyOf(flow.ip))) {
    return told('INTERCEPTED', rule, instance);
  }
  const listener = `${flow.direction}${isUdp ? ' UDP' : ''} listener`;
  const lacks = `${rule}, and instance ${instance} has no ${listener} for it: failure ${decision.failure}`;
  return told(decision.failure === 'open' ? 'PASSED' : 'RESET', lacks, instance);
}

function isLoopback(ip: string): boolean {
  return ip === '::1' || ip.startsWith('127.');
}
