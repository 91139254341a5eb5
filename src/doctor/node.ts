/** What the kernel and the node's own settings have to offer. */

import { existsSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { dirname } from 'node:path';
import { MANIFEST } from '../datapath/manifest.js';
import { type Capability, missingCapabilities } from '../kernel/capabilities.js';
import { type FamilyOff, familiesOff } from '../kernel/families.js';
import { featuresMissing, kernelAtLeast } from '../kernel/features.js';
import { ipvsPresent } from '../kernel/ipvs.js';
import { layoutVersion, refuseNewerLayout } from '../kernel/pins.js';
import { isBpffs } from '../native/bpf.js';
import { type Check, type Finding, fail, ok, warn } from './check.js';
import { podInterfaces } from './hooks.js';
import { withSocket } from './neighbours.js';
import { type Command, isMissing, readSysctl, runCommand, type Sysctl, some } from './system.js';

/** Names of the interfaces of pods, as far as they can be told: veths and their bridges. */
export type Interfaces = () => Promise<readonly string[]>;

const podInterfaceNames: Interfaces = () =>
  withSocket(async (socket) => podInterfaces(await socket.links()).map(({ name }) => name));

/** Nothing is looked at before a check is run. */
export function nodeChecks(
  bpffs: string,
  objects: string,
  sysctl: Sysctl = readSysctl,
  command: Command = runCommand,
  interfaces: Interfaces = podInterfaceNames,
  off: () => readonly FamilyOff[] = familiesOff,
  ipvsIsThere: () => boolean = ipvsPresent,
): Check[] {
  return [
    { name: 'kernel', run: () => kernel(release()) },
    {
      name: 'BTF',
      run: () => [
        existsSync('/sys/kernel/btf/vmlinux')
          ? ok('/sys/kernel/btf/vmlinux')
          : fail('no /sys/kernel/btf/vmlinux', 'use a kernel with CONFIG_DEBUG_INFO_BTF=y'),
      ],
    },
    { name: 'capabilities', run: () => [capabilities()] },
    { name: 'bpffs', run: () => [bpffsAt(bpffs, objects)] },
    { name: 'nftables', run: async () => [await nft(command)] },
    { name: 'IPVS', run: async () => [await ipvs(command, ipvsIsThere)] },
    {
      name: 'conntrack',
      run: () => [
        sysctl('net/netfilter/nf_conntrack_max') === undefined
          ? ok('not loaded: nothing to leave out')
          : ok('loaded; intercepted flows are left out of it'),
      ],
    },
    { name: 'address families', run: () => families(off()) },
    { name: 'forwarding', run: () => forwarding(sysctl) },
    { name: 'reverse path', run: async () => reversePath(sysctl, await interfaces()) },
    { name: 'mark inheritance', run: () => markInheritance(sysctl) },
    { name: 'bridges', run: () => bridges(sysctl) },
  ];
}

/** `version` as `uname -r` prints it. */
export function kernel(version: string): Finding[] {
  if (!kernelAtLeast('5.10', version)) {
    return [fail(version, 'use Linux 5.10 or later')];
  }
  const missing = featuresMissing(version);
  return [
    ok(missing.length === 0 ? version : `${version}: works, with what follows; docs/kernels.md`),
    ...missing.map(({ name, since, before }) => ok(`no ${name} (${since}): ${before}`)),
  ];
}

/** One finding over all that are missing. */
export function capabilities(missing: readonly Capability[] = missingCapabilities()): Finding {
  return missing.length === 0
    ? ok('all that are needed')
    : fail(
        `missing: ${missing.map(({ name }) => name).join(', ')}`,
        `run as root, or grant them: ${missing.map(({ name, why }) => `${name} for ${why}`).join('; ')}`,
      );
}

/** The agent mounts one itself, at /sys/fs/bpf for a folder below it, else at the folder (see pins.ts). */
export function bpffsAt(
  path: string,
  objects: string,
  filesystems = readFileSync('/proc/filesystems', 'utf8'),
): Finding {
  const mounted = [path, dirname(path)].find((candidate) => existsSync(candidate) && isBpffs(candidate));
  if (mounted !== undefined) {
    try {
      refuseNewerLayout(path, layoutVersion(objects, MANIFEST.main));
    } catch (error) {
      return fail(error instanceof Error ? error.message : String(error), 'do what the message says');
    }
    return ok(`mounted at ${mounted}`);
  }
  if (!/\tbpf$/m.test(filesystems)) {
    return fail('not in this kernel', 'use a kernel with CONFIG_BPF_SYSCALL=y');
  }
  const mountPoint = path.startsWith('/sys/fs/bpf/') ? '/sys/fs/bpf' : path;
  return existsSync(dirname(mountPoint))
    ? ok(`not mounted at ${mountPoint} yet: the agent does it`)
    : fail(`${dirname(mountPoint)} does not exist`, 'create it, or correct --bpffs');
}

/** The expressions of our own table; with `-c` nothing is put in place. */
const TRIAL = `table inet nodesentry_doctor {
  chain trial {
    meta l4proto tcp socket transparent 1 notrack
  }
}
`;

async function nft(command: Command): Promise<Finding> {
  try {
    await command('nft', ['-j', 'list', 'tables']);
    await command('nft', ['-c', '-f', '-'], TRIAL);
    return ok('the nft command works, and the kernel has socket and notrack');
  } catch (error) {
    return isMissing(error)
      ? fail('no nft command', 'install the package nftables')
      : fail(
          error instanceof Error ? error.message : String(error),
          'run as root; the kernel needs CONFIG_NF_TABLES_INET, CONFIG_NFT_SOCKET and CONFIG_NFT_CT',
        );
  }
}

/** kube-proxy's, in that mode; the module alone is enough for us to be there before it. */
async function ipvs(command: Command, isThere: () => boolean): Promise<Finding> {
  if (!isThere()) {
    return ok('not in use');
  }
  try {
    await command('ipvsadm', ['--save', '-n']);
    return ok('in use: the agent keeps a service of its own in it; docs/datapath.md, "IPVS"');
  } catch (error) {
    return isMissing(error)
      ? fail(
          'in use, and no ipvsadm command: connections to services are not intercepted',
          'install the package ipvsadm',
        )
      : fail(error instanceof Error ? error.message : String(error), 'run as root');
  }
}

function families(off: readonly FamilyOff[]): Finding[] {
  return off.length === 0
    ? [ok('IPv4 and IPv6')]
    : off.map(({ family, reason, everywhere }) =>
        everywhere
          ? ok(`IPv${family} is off (${reason}): interception goes without it`)
          : warn(
              `IPv${family} is off at lo (${reason}), by which intercepted packets are delivered`,
              'turn it on there (net.ipv6.conf.lo.disable_ipv6=0), or off for every interface',
            ),
      );
}

function forwarding(sysctl: Sysctl) {
  const off = [
    ...(sysctl('net/ipv4/ip_forward') === '0' ? ['IPv4'] : []),
    ...(sysctl('net/ipv6/conf/all/forwarding') === '0' ? ['IPv6'] : []),
  ];
  return off.length === 0
    ? [ok('on')]
    : [
        warn(
          `off for ${off.join(' and ')}`,
          'turn it on (net.ipv4.ip_forward, net.ipv6.conf.all.forwarding): what pods send past the proxy needs it',
        ),
      ];
}

/** Strict is fine: a source that is not the pod's is dropped at our hook, one that is has its route back. */
function reversePath(sysctl: Sysctl, interfaces: readonly string[]): Finding[] {
  const setting = (name: string, key: string): string | undefined => sysctl(`net/ipv4/conf/${name}/${key}`);
  const names = ['all', ...interfaces];
  const filters = new Map<string, string[]>();
  for (const name of names) {
    const value = setting(name, 'rp_filter') ?? 'unknown';
    filters.set(value, [...(filters.get(value) ?? []), name]);
  }
  const found = [...filters].map(([value, where]) => `${value} on ${some(where)}`).join('; ');
  const validated = names.filter((name) => setting(name, 'src_valid_mark') === '1');
  return [
    ok(`rp_filter ${found}: every value works, strict (1) too; the agent checks sources itself`),
    ...(validated.length === 0
      ? []
      : [
          ok(
            `src_valid_mark 1 on ${some(validated)}: the agent sets accept_local on interfaces of enrolled pods`,
          ),
        ]),
  ];
}

/** With either of these on, the proxy's replies take our mark over and are delivered to this node again. */
function markInheritance(sysctl: Sysctl) {
  const names = ['net/ipv4/tcp_fwmark_accept', 'net/ipv4/fwmark_reflect', 'net/ipv6/fwmark_reflect'];
  const on = names.filter((name) => sysctl(name) === '1').map((name) => name.replaceAll('/', '.'));
  return on.length === 0
    ? [ok('off')]
    : on.map((name) =>
        fail(`${name} is 1: replies would take over our mark and loop`, `sysctl -w ${name}=0`),
      );
}

function bridges(sysctl: Sysctl) {
  const value = sysctl('net/bridge/bridge-nf-call-iptables');
  return [ok(value === undefined ? 'no br_netfilter' : `bridge-nf-call-iptables ${value}: both values work`)];
}
