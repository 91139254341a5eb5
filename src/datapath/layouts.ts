/** The kernel-boundary structs of bpf/include/layout.h, read from the loaded object's BTF: never written down twice. */

import { enumValue, Struct } from '../kernel/struct.js';
import type { BpfObject } from '../native/bpf.js';
import type { RuntimeKind } from '../pods/pod.js';

/** How the slots of `listeners` are numbered: an instance's first one, and what is added for each that holds. */
export interface SlotLayout {
  readonly perInstance: number;
  readonly inbound: number;
  readonly ipv6: number;
}

export interface Layouts {
  readonly endpoint: Struct;
  readonly sourceKey: Struct;
  readonly selection: Struct;
  /** `struct choice`: of one direction. */
  readonly choice: Struct;
  readonly portPage: Struct;
  readonly cidrKey: Struct;
  readonly workload: Struct;
  readonly identity: Struct;
  /** `struct nodesentry_end`, which proxies read. */
  readonly identityEnd: Struct;
  readonly identityVersion: number;
  readonly runtimes: Readonly<Record<RuntimeKind, number>>;
  readonly node: Struct;
  readonly instance: Struct;
  readonly generation: Struct;
  readonly instanceCount: Struct;
  readonly lifecycle: Struct;
  readonly flowKey: Struct;
  readonly flow: Struct;
  readonly event: Struct;
  readonly share: Struct;
  readonly turn: Struct;
  readonly settings: Struct;
  readonly steering: Struct;
  readonly canaryKey: Struct;
  readonly canary: Struct;
  readonly deliveryTrial: Struct;
  /** `enum verdict`, index to name without its prefix. */
  readonly verdicts: readonly string[];
  readonly flags: {
    readonly failureOpen: number;
    readonly bridged: number;
    readonly sinceBirth: number;
    readonly dropOther: number;
    readonly shaped: number;
    readonly inbound: number;
    readonly leaving: number;
    readonly closing: number;
    readonly selective: number;
    readonly observed: number;
    readonly udpOutbound: number;
    readonly udpInbound: number;
  };
  /** `enum direction`. */
  readonly directions: Readonly<Record<'ingress' | 'explicit', number>>;
  /** `enum selected`: the first number that is an instance's. */
  readonly selected: { readonly instance: number };
  /** `enum cidr_flag`. */
  readonly cidrFlags: Readonly<Record<'excluded' | 'included', number>>;
  /** `enum delivery`. */
  readonly deliveries: Readonly<
    Record<'noListener' | 'assigned' | 'lookedUp' | 'misled' | 'refused', number>
  >;
  readonly limits: {
    readonly flowsOfEndpoint: number;
    readonly shareWhole: number;
    readonly agentEndpoint: number;
    /** Of UDP, after which a flow is over. */
    readonly udpIdleSeconds: number;
  };
  readonly slots: SlotLayout;
}

/** DatapathError LAYOUT_MISMATCH where the objects have other structs than this agent. */
export function readLayouts(object: BpfObject): Layouts {
  const struct = (name: string, fields: readonly string[]) => new Struct(object.layout(name), fields);
  const verdictValues = object.enumValues('verdict');
  const verdicts: string[] = [];
  for (const [name, value] of verdictValues) {
    if (name !== 'VERDICT_COUNT') {
      verdicts[value] = name.replace(/^VERDICT_/, '');
    }
  }
  const flags = object.enumValues('endpoint_flag');
  const directions = object.enumValues('direction');
  const cidrFlags = object.enumValues('cidr_flag');
  const slots = object.enumValues('slot');
  const limits = object.enumValues('limit');
  const deliveries = object.enumValues('delivery');
  const runtimes = object.enumValues('nodesentry_runtime');
  return {
    endpoint: struct('endpoint', ['id', 'generation', 'instance', 'flags', 'bridge_ifindex']),
    sourceKey: struct('source_key', ['ifindex', 'address']),
    selection: struct('selection', ['by_direction']),
    choice: struct('choice', ['pages', 'cidrs', 'included']),
    portPage: struct('port_page', ['ports']),
    cidrKey: struct('cidr_key', ['prefix_length', 'set', 'address']),
    workload: struct('workload', ['uid', 'generation', 'ifindex']),
    identity: struct('identity', ['end', 'id', 'id_length']),
    identityEnd: struct('nodesentry_end', [
      'version',
      'size',
      'runtime',
      'generation',
      'pod_uid',
      'pod_namespace',
      'pod_name',
      'service_account',
      'app',
    ]),
    identityVersion: enumValue(object.enumValues('identity_version'), 'IDENTITY_VERSION'),
    runtimes: {
      unknown: enumValue(runtimes, 'NODESENTRY_RUNTIME_UNKNOWN'),
      runc: enumValue(runtimes, 'NODESENTRY_RUNC'),
      runsc: enumValue(runtimes, 'NODESENTRY_RUNSC'),
      rund: enumValue(runtimes, 'NODESENTRY_RUND'),
    },
    node: struct('node', ['netns_cookie']),
    instance: struct('instance', ['name']),
    generation: struct('generation', ['serving', 'canary', 'share', 'resting']),
    instanceCount: struct('instance_count', ['started', 'reset']),
    lifecycle: struct('lifecycle', ['instance', 'port']),
    flowKey: struct('flow_key', ['src', 'dst', 'sport', 'dport', 'protocol']),
    flow: struct('flow', [
      'started_ns',
      'endpoint',
      'generation',
      'ifindex',
      'instance',
      'direction',
      'seen_s',
    ]),
    event: struct('event', [
      'time_ns',
      'key',
      'endpoint',
      'generation',
      'ifindex',
      'instance',
      'direction',
      'verdict',
    ]),
    share: struct('share', ['recorded']),
    turn: struct('turn', ['endpoint', 'number']),
    settings: struct('settings', ['followed']),
    steering: struct('steering', ['ifindex']),
    canaryKey: struct('canary_key', ['ifindex', 'family']),
    canary: struct('canary', ['nonce', 'answered', 'endpoint', 'generation', 'instance', 'listening']),
    deliveryTrial: struct('delivery_trial', ['nonce', 'outcome', 'error']),
    verdicts,
    flags: {
      failureOpen: enumValue(flags, 'ENDPOINT_FAILURE_OPEN'),
      bridged: enumValue(flags, 'ENDPOINT_BRIDGED'),
      sinceBirth: enumValue(flags, 'ENDPOINT_SINCE_BIRTH'),
      dropOther: enumValue(flags, 'ENDPOINT_DROP_OTHER'),
      shaped: enumValue(flags, 'ENDPOINT_SHAPED'),
      inbound: enumValue(flags, 'ENDPOINT_INBOUND'),
      leaving: enumValue(flags, 'ENDPOINT_LEAVING'),
      closing: enumValue(flags, 'ENDPOINT_CLOSING'),
      selective: enumValue(flags, 'ENDPOINT_SELECTIVE'),
      observed: enumValue(flags, 'ENDPOINT_OBSERVED'),
      udpOutbound: enumValue(flags, 'ENDPOINT_UDP_OUTBOUND'),
      udpInbound: enumValue(flags, 'ENDPOINT_UDP_INBOUND'),
    },
    directions: {
      ingress: enumValue(directions, 'DIRECTION_INGRESS'),
      explicit: enumValue(directions, 'DIRECTION_EXPLICIT'),
    },
    selected: { instance: enumValue(object.enumValues('selected'), 'SELECTED_INSTANCE') },
    cidrFlags: {
      excluded: enumValue(cidrFlags, 'CIDR_EXCLUDED'),
      included: enumValue(cidrFlags, 'CIDR_INCLUDED'),
    },
    deliveries: {
      noListener: enumValue(deliveries, 'DELIVERY_NO_LISTENER'),
      assigned: enumValue(deliveries, 'DELIVERY_ASSIGNED'),
      lookedUp: enumValue(deliveries, 'DELIVERY_LOOKED_UP'),
      misled: enumValue(deliveries, 'DELIVERY_MISLED'),
      refused: enumValue(deliveries, 'DELIVERY_REFUSED'),
    },
    limits: {
      flowsOfEndpoint: enumValue(limits, 'MAX_FLOWS_OF_ENDPOINT'),
      shareWhole: enumValue(limits, 'SHARE_WHOLE'),
      agentEndpoint: enumValue(limits, 'AGENT_ENDPOINT'),
      udpIdleSeconds: enumValue(limits, 'UDP_IDLE_S'),
    },
    slots: {
      perInstance: enumValue(slots, 'SLOTS_PER_INSTANCE'),
      inbound: enumValue(slots, 'SLOT_INBOUND'),
      ipv6: enumValue(slots, 'SLOT_IPV6'),
    },
  };
}
