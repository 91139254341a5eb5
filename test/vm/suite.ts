/** What runs on every kernel, and which feature each file shows: the rows of the table in docs/kernels.md. */

export interface Feature {
  readonly name: string;
  readonly files: readonly string[];
}

export const FEATURES: readonly Feature[] = [
  { name: 'programs, maps, tables, routes', files: ['test/bpf'] },
  { name: 'runc and gVisor, routed and bridged, IPv4 and IPv6', files: ['test/e2e/matrix.test.ts'] },
  {
    name: 'listeners, failure policy, kube-proxy-like DNAT, TIME_WAIT',
    files: ['test/e2e/behaviour.test.ts'],
  },
  { name: 'beside IPVS', files: ['test/e2e/ipvs.test.ts'] },
  { name: 'nothing gets round the proxy', files: ['test/e2e/escape.test.ts'] },
  { name: 'what is taken away is put back', files: ['test/e2e/drift.test.ts'] },
  { name: 'the agent killed, restarted', files: ['test/e2e/restart.test.ts'] },
  { name: 'cleanup', files: ['test/e2e/cleanup.test.ts'] },
];

/** Emulated, so many times slower than the machine; limits are multiplied by it. */
export const GUEST_PATIENCE = 8;

/** A microVM in an emulated machine would be emulated twice. */
export const GUEST_RUNTIMES = 'runc,runsc';
