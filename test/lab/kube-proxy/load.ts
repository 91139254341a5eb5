/** A node on which kube-proxy has run: what it wrote in one of its modes, as recorded, for a lab's addresses. */

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { runIn } from '../exec.js';
import type { Lab } from '../lab.js';
import { type Addresses, withAddresses } from './placeholders.js';

export type KubeProxyMode = 'iptables' | 'nftables' | 'ipvs';

/** What this kernel can run. Says aloud what it cannot. */
export function kubeProxyModes(): KubeProxyMode[] {
  if (existsSync('/proc/net/ip_vs')) {
    return ['iptables', 'nftables', 'ipvs'];
  }
  process.stdout.write(
    'kube-proxy: WITHOUT the mode ipvs: this kernel has no IPVS (there is no /proc/net/ip_vs)\n',
  );
  return ['iptables', 'nftables'];
}

/** The counters that kube-proxy makes before it names them in a rule. */
const COUNTERS = /--nfacct-name +(\w+)/g;

/** Onto the lab's node, whose other rules of the same tables are lost. */
export async function loadKubeProxy(lab: Lab, mode: KubeProxyMode, addresses: Addresses): Promise<void> {
  const read = (file: string) =>
    withAddresses(readFileSync(join(import.meta.dirname, mode, file), 'utf8'), addresses);
  const feed = (command: string, args: readonly string[], file: string) =>
    runIn(lab.node, command, args, { input: read(file) });

  for (const line of read('sysctl.conf').trim().split('\n')) {
    await runIn(lab.node, 'sysctl', ['-qw', line.replace(' = ', '=')]);
  }
  if (mode === 'nftables') {
    await feed('nft', ['-f', '-'], 'ip.nft');
    await feed('nft', ['-f', '-'], 'ip6.nft');
    return;
  }
  if (mode === 'ipvs') {
    await runIn(lab.node, 'ip', ['link', 'add', 'kube-ipvs0', 'type', 'dummy']);
    for (const address of read('addresses').trim().split('\n')) {
      await runIn(lab.node, 'ip', [
        'addr',
        'add',
        address,
        'dev',
        'kube-ipvs0',
        ...(address.includes(':') ? ['nodad'] : []),
      ]);
    }
    await feed('ipset', ['restore'], 'ipset');
    await feed('ipvsadm', ['--restore'], 'ipvsadm');
  }
  const counters = new Set(
    ['iptables', 'ip6tables'].flatMap((file) =>
      [...read(file).matchAll(COUNTERS)].map(([, name = '']) => name),
    ),
  );
  for (const name of counters) {
    await runIn(lab.node, 'nfacct', ['add', name]);
  }
  await feed('iptables-restore', [], 'iptables');
  await feed('ip6tables-restore', [], 'ip6tables');
}
