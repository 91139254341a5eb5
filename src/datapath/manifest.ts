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
    bridge_steer: { object: 'steer', runs: 'per-interface', role: 'steer' },
    socket_lookup: { object: 'socket-lookup', runs: 'per-namespace', role: 'socket-lookup' },
    pod_egress: { object: 'intercept', runs: 'per-interface', role: 'egress', rowIn: 'endpoints' },
    canary: { object: 'canary', runs: 'on-demand' },
  },
  maps: {
    endpoints: { onNewLayout: 'copied' },
    sources: { onNewLayout: 'copied' },
    workloads: { onNewLayout: 'copied' },
    instances: { onNewLayout: 'copied' },
    flows: { onNewLayout: 'copied', writtenByPrograms: true },
    connections: { onNewLayout: 'begun-anew' },
    shares: { onNewLayout: 'begun-anew' },
    turns: { onNewLayout: 'begun-anew' },
    udp_ports: { onNewLayout: 'begun-anew' },
    settings: { onNewLayout: 'begun-anew' },
    listeners: { onNewLayout: 'begun-anew' },
    counters: { onNewLayout: 'begun-anew' },
    canaries: { onNewLayout: 'begun-anew' },
    deliveries: { onNewLayout: 'begun-anew' },
    events: { onNewLayout: 'begun-anew', neverShared: true },
  },
  readLayouts,
} as const satisfies ObjectSet;

export type DatapathPrograms = Programs<typeof MANIFEST>;
/** Of the programs that run at interfaces: at a pod's, and at the bridge it is a port of. */
export type Role = Extract<
  (typeof MANIFEST.programs)[keyof typeof MANIFEST.programs],
  { runs: 'per-interface' }
>['role'];
