/** What the kernel and the node's own settings have to offer. */

import { execFile } from 'node:child_process';
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { missingCapabilities } from '../datapath/capabilities.js';
import { isBpffs, tcxSupported } from '../native/bpf.js';
import { type Check, fail, ok, warn } from './check.js';

const run = promisify(execFile);

/** Reads of /proc/sys, so that settings this machine does not have can be tested. */
export type Sysctl = (name: string) => string | undefined;

export const readSysctl: Sysctl = (name) => {
  try {
    return readFileSync(`/proc/sys/${name}`, 'utf8').trim();
  } catch {
    return undefined;
  }
};

export function nodeChecks(bpffs: string, sysctl: Sysctl = readSysctl): Check[] {
  return [
    { name: 'kernel', run: () => [kernel(release())] },
    {
      name: 'BTF',
      run: () => [
        existsSync('/sys/kernel/btf/vmlinux')
          ? ok('/sys/kernel/btf/vmlinux')
          : fail('no /sys/kernel/btf/vmlinux', 'use a kernel with CONFIG_DEBUG_INFO_BTF=y'),
      ],
    },
    { name: 'capabilities', run: capabilities },
    { name: 'bpffs', run: () => [bpffsAt(bpffs)] },
    {
      name: 'tcx',
      run: () => [
        tcxSupported()
          ? ok('links beside other programs (6.6)')
          : warn('not in this kernel', 'nothing to do: clsact filters are used instead; 6.6 is better'),
      ],
    },
    { name: 'nftables', run: nft },
    {
      name: 'conntrack',
      run: () => [
        sysctl('net/netfilter/nf_conntrack_max') === undefined
          ? ok('not loaded: nothing to leave out')
          : ok('loaded; intercepted flows are left out of it'),
      ],
    },
    { name: 'forwarding', run: () => forwarding(sysctl) },
    { name: 'reverse path', run: () => reversePath(sysctl) },
    { name: 'mark inheritance', run: () => markInheritance(sysctl) },
    { name: 'bridges', run: () => bridges(sysctl) },
  ];
}

export function kernel(version: string) {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  if (major < 5 || (major === 5 && minor < 10)) {
    return fail(version, 'use Linux 5.10 or later');
  }
  return major < 6 || (major === 6 && minor < 6)
    ? warn(
        version,
        'nothing to do: works without tcx, and without spreading connections over SO_REUSEPORT groups',
      )
    : ok(version);
}

function capabilities() {
  const missing = missingCapabilities();
  return missing.length === 0
    ? [ok('all that are needed')]
    : missing.map(({ name, why }) => fail(`${name} is missing`, `run as root, or grant it: ${why}`));
}

function bpffsAt(path: string) {
  const existing = [path, dirname(path), '/sys/fs/bpf'].find((candidate) => existsSync(candidate));
  if (existing !== undefined && isBpffs(existing)) {
    return ok(`mounted at ${existing}`);
  }
  try {
    accessSync(existing ?? '/', constants.W_OK);
    return ok('not mounted; the agent mounts it');
  } catch {
    return fail(`not mounted at ${path}`, 'mount -t bpf bpf /sys/fs/bpf');
  }
}

async function nft() {
  try {
    await run('nft', ['list', 'tables'], { timeout: 5_000 });
    return [ok('the nft command works')];
  } catch (error) {
    const { code } = error as { code?: string };
    return code === 'ENOENT'
      ? [fail('no nft command', 'install the package nftables')]
      : [
          fail(
            `nft: ${String((error as { stderr?: string }).stderr ?? error).trim()}`,
            'needs nf_tables in the kernel, and root',
          ),
        ];
  }
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
          'intercepted flows do not need it, what pods send past the proxy does',
        ),
      ];
}

function reversePath(sysctl: Sysctl) {
  const filter = sysctl('net/ipv4/conf/all/rp_filter') ?? '?';
  const found = [ok(`rp_filter ${filter}: any value works, the agent checks sources itself`)];
  if (sysctl('net/ipv4/conf/all/src_valid_mark') === '1') {
    found.push(ok('src_valid_mark 1: the agent sets accept_local on interfaces of enrolled pods'));
  }
  return found;
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
