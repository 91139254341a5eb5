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
  { name: 'HAProxy, Envoy and nginx with four workers', files: ['test/e2e/workers.test.ts'] },
  { name: 'beside kube-proxy, in its three modes', files: ['test/e2e/kube-proxy.test.ts'] },
  { name: 'bridges know where a pod is', files: ['test/e2e/bridge-mac.test.ts'] },
  { name: 'beside the CNI bandwidth plugin', files: ['test/e2e/bandwidth.test.ts'] },
  { name: 'beside IPVS', files: ['test/e2e/ipvs.test.ts'] },
  {
    name: 'what pods receive, from each kind of client',
    files: ['test/e2e/ingress.test.ts'],
  },
  { name: 'datagrams to ports that are named', files: ['test/e2e/udp.test.ts'] },
  { name: 'nothing gets round the proxy', files: ['test/e2e/escape.test.ts'] },
  { name: 'what is taken away is put back', files: ['test/e2e/drift.test.ts'] },
  { name: 'the agent killed, restarted', files: ['test/e2e/restart.test.ts'] },
  { name: 'cleanup', files: ['test/e2e/cleanup.test.ts'] },
];

/** Emulated, so many times slower than the machine; limits are multiplied by it. */
export const GUEST_PATIENCE = 8;

/** A microVM in an emulated machine would be emulated twice. */
export const GUEST_RUNTIMES = 'runc,runsc';

/** A node has these loaded: kube-proxy, a bridge CNI and the runtimes ask for them. */
export const GUEST_MODULES = [
  'br_netfilter',
  'nf_conntrack',
  ...['ip_vs', 'ip_vs_rr', 'ip_vs_sh'],
  ...['ifb', 'sch_tbf', 'sch_ingress', 'cls_u32', 'act_mirred'],
];
