/**
 * The programs and maps of the datapath, their objects, pins and roles: all that loading, attaching and migrating are
 * told. A new program or map is a line here, and its source in bpf/.
 */

import type { ObjectSet } from '../kernel/object-set.js';
import type { Programs } from '../kernel/programs.js';
import { readLayouts } from './layouts.js';

export const MANIFEST = {
  main: 'intercept',
  programs: {
    bridge_steer: { object: 'steer', runs: 'per-interface', role: 'steer', hook: 'ingress' },
    inbound_steer: { object: 'inbound-steer', runs: 'per-interface', role: 'inbound-steer', hook: 'ingress' },
    socket_lookup: { object: 'socket-lookup', runs: 'per-namespace', role: 'socket-lookup' },
    // Named after what the pod does: what it sends is what its interface at the host's side receives.
    pod_egress: {
      object: 'intercept',
      runs: 'per-interface',
      role: 'egress',
      hook: 'ingress',
      rowIn: 'endpoints',
    },
    pod_ingress: {
      object: 'ingress',
      runs: 'per-interface',
      role: 'ingress',
      hook: 'egress',
      rowIn: 'endpoints',
    },
    identity_option: { object: 'identity-option', runs: 'per-cgroup', role: 'identity-option' },
    canary: { object: 'canary', runs: 'on-demand' },
  },
  maps: {
    endpoints: { onNewLayout: 'copied' },
    sources: { onNewLayout: 'copied' },
    workloads: { onNewLayout: 'copied' },
    inbound: { onNewLayout: 'begun-anew' },
    selected: { onNewLayout: 'copied', mayBeMissing: true },
    udp_selected: { onNewLayout: 'copied', mayBeMissing: true },
    selections: { onNewLayout: 'copied', mayBeMissing: true },
    port_pages: { onNewLayout: 'copied', mayBeMissing: true },
    cidrs: { onNewLayout: 'copied', mayBeMissing: true },
    identities: { onNewLayout: 'begun-anew' },
    addresses: { onNewLayout: 'begun-anew' },
    node: { onNewLayout: 'begun-anew' },
    instances: { onNewLayout: 'copied' },
    generations: { onNewLayout: 'begun-anew' },
    instance_counts: { onNewLayout: 'begun-anew' },
    lifecycle: { onNewLayout: 'begun-anew' },
    flows: { onNewLayout: 'copied', writtenByPrograms: true },
    connections: { onNewLayout: 'begun-anew' },
    shares: { onNewLayout: 'begun-anew' },
    turns: { onNewLayout: 'begun-anew' },
    udp_ports: { onNewLayout: 'begun-anew' },
    proxy_ports: { onNewLayout: 'begun-anew' },
    udp_proxy_ports: { onNewLayout: 'begun-anew' },
    explicit_ports: { onNewLayout: 'begun-anew' },
    proxy_cgroups: { onNewLayout: 'begun-anew' },
    observed: { onNewLayout: 'begun-anew' },
    settings: { onNewLayout: 'begun-anew' },
    listeners: { onNewLayout: 'begun-anew' },
    udp_listeners: { onNewLayout: 'begun-anew' },
    counters: { onNewLayout: 'begun-anew' },
    ingress_counters: { onNewLayout: 'begun-anew' },
    steering: { onNewLayout: 'begun-anew' },
    canaries: { onNewLayout: 'begun-anew' },
    deliveries: { onNewLayout: 'begun-anew' },
    ingress_canaries: { onNewLayout: 'begun-anew' },
    ingress_deliveries: { onNewLayout: 'begun-anew' },
    events: { onNewLayout: 'begun-anew', neverShared: true },
  },
  readLayouts,
} as const satisfies ObjectSet;

export type DatapathPrograms = Programs<typeof MANIFEST>;
/** Of the programs that run at interfaces: at a pod's, at the bridge it is a port of, and at the agent's own. */
export type Role = Extract<
  (typeof MANIFEST.programs)[keyof typeof MANIFEST.programs],
  { runs: 'per-interface' }
>['role'];
