/**
 * What we use of kernels newer than 5.10, which is the oldest that everything is written for. The one table: `doctor` reads
 * it, and docs/kernels.md is compared with it by a test.
 */

import { release } from 'node:os';

export interface KernelFeature {
  readonly name: string;
  /** Such as `6.6`. */
  readonly since: string;
  readonly use: string;
  /** What happens on a kernel before that. */
  readonly before: string;
}

export const KERNEL_FEATURES: readonly KernelFeature[] = [
  {
    name: 'tcx',
    since: '6.6',
    use: 'our programs are links beside others’ and come before every filter of tc',
    before:
      'filters of clsact with priority 0x4e53: another’s with a lower number comes first, and a pod that it takes packets from is DEGRADED; cleanup leaves the empty clsact, which may be somebody else’s by then',
  },
  {
    name: 'bpf_sk_assign of sockets with SO_REUSEPORT',
    since: '6.6',
    use: 'a packet is given to its socket at the hook',
    before: 'such packets are left to the kernel’s look-up: one look-up more for each',
  },
  {
    name: 'SO_PEERPIDFD',
    since: '6.5',
    use: 'a caller of the API is held fast while its executable is looked at',
    before:
      'it is known by its pid alone: a rule by `exe` refuses nobody who takes over the pid of one that has ended',
  },
  {
    name: 'errors of a program’s own at getsockopt',
    since: '5.18',
    use: 'a proxy that asks by system call is told why there is no answer',
    before: 'EPERM stands for every reason',
  },
  {
    name: 'bpf_get_netns_cookie at getsockopt',
    since: '5.15',
    use: 'a proxy may ask by system call as soon as it has accepted',
    before: 'there is an answer from the first packet after the handshake on; until then EOPNOTSUPP',
  },
  {
    name: 'live frames (BPF_F_TEST_XDP_LIVE_FRAMES)',
    since: '5.18',
    use: 'canaries are put in at the host’s side',
    before:
      'they are sent from the pod’s end, which needs CAP_NET_RAW; without it, and for a pod whose network namespace no source tells, our program alone is verified, and the pod is DEGRADED with that as its reason',
  },
];

/** `version` such as `6.6`; `running` as `uname -r` prints it. */
export function kernelAtLeast(version: string, running = release()): boolean {
  const [wanted, is] = [numbers(version), numbers(running)];
  return is.major > wanted.major || (is.major === wanted.major && is.minor >= wanted.minor);
}

/** Those of the table that this kernel does not have. */
export function featuresMissing(running = release()): readonly KernelFeature[] {
  return KERNEL_FEATURES.filter(({ since }) => !kernelAtLeast(since, running));
}

function numbers(version: string): { readonly major: number; readonly minor: number } {
  const [major = 0, minor = 0] = version.split('.').map((part) => Number.parseInt(part, 10));
  return { major, minor };
}
