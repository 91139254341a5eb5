/** Which capabilities the agent needs, each with its reason; proven at start and by `doctor`. */

import { readFileSync } from 'node:fs';

export interface Capability {
  readonly name: string;
  /** Bit in the sets of /proc/self/status (capabilities(7)). */
  readonly bit: number;
  readonly why: string;
}

export const CAPABILITIES: readonly Capability[] = [
  {
    name: 'CAP_DAC_READ_SEARCH',
    bit: 2,
    why: "finding a proxy's listening socket (/proc/<pid>/fd of another user)",
  },
  { name: 'CAP_NET_ADMIN', bit: 12, why: 'policy rules, routes, nftables, tc programs, transparent sockets' },
  { name: 'CAP_SYS_PTRACE', bit: 19, why: "adopting a proxy's listening socket (pidfd_getfd)" },
  { name: 'CAP_SYS_ADMIN', bit: 21, why: "entering pods' network namespaces (setns), mounting bpffs" },
  { name: 'CAP_PERFMON', bit: 38, why: 'loading BPF programs that use direct memory access' },
  { name: 'CAP_BPF', bit: 39, why: 'loading BPF programs and maps' },
];

/** Of the effective set in `status`, the text of /proc/<pid>/status. */
export function missingCapabilities(status = readFileSync('/proc/self/status', 'utf8')): Capability[] {
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`);
  return CAPABILITIES.filter(({ bit }) => (effective & (1n << BigInt(bit))) === 0n);
}
