/** The two ways in which Kata Containers joins a microVM's NIC to the pod's eth0. */

import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { run, runIn, script } from './exec.js';
import type { Lab } from './lab.js';

/** tcfilter: a tap beside eth0, every frame mirrored by tc. macvtap: a macvtap on eth0, which has its MAC. */
export type KataModel = 'tcfilter' | 'macvtap';

export interface GuestNic {
  readonly mac: string;
  /** What QEMU is started with: a command, and the words that name the NIC's other end. */
  readonly command: readonly string[];
  readonly netdev: string;
}

const QEMU = 'qemu-system-x86_64';

export function wireNic(lab: Lab, netns: string, model: KataModel): Promise<GuestNic> {
  return model === 'tcfilter' ? tcfilter(netns) : macvtap(lab, netns);
}

async function macOf(netns: string, dev: string): Promise<string> {
  return (await runIn(netns, 'ip', ['-br', 'link', 'show', dev])).split(/\s+/)[2] ?? '';
}

async function tcfilter(netns: string): Promise<GuestNic> {
  await script(
    netns,
    `ip tuntap add tap0 mode tap vnet_hdr
     ip link set tap0 up
     tc qdisc add dev eth0 ingress
     tc qdisc add dev tap0 ingress
     tc filter add dev eth0 parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev tap0
     tc filter add dev tap0 parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev eth0`,
  );
  return {
    mac: await macOf(netns, 'eth0'),
    command: [QEMU],
    netdev: 'tap,id=net0,ifname=tap0,script=no,downscript=no',
  };
}

/** The macvtap takes over eth0's MAC, eth0 gets another one and loses its addresses: the guest has both. */
async function macvtap(lab: Lab, netns: string): Promise<GuestNic> {
  const mac = await macOf(netns, 'eth0');
  await script(
    netns,
    `ip addr flush dev eth0
     ip link add link eth0 name tap0_kata type macvtap mode bridge
     ip link set eth0 address 02:00:00:4e:53:01
     ip link set tap0_kata address ${mac}
     ip link set tap0_kata up`,
  );
  // `ip netns exec` mounts the sysfs of the namespace, where the number of the character device stands.
  const device = await run('ip', [
    'netns',
    'exec',
    netns,
    'sh',
    '-c',
    'cat /sys/class/net/tap0_kata/tap*/dev',
  ]);
  const [major = '', minor = ''] = device.trim().split(':');
  const folder = join(lab.directory, 'taps');
  mkdirSync(folder, { recursive: true });
  const path = join(folder, netns);
  await run('mknod', [path, 'c', major, minor]);
  lab.cleanup.add(`tap of ${netns}`, () => rmSync(path, { force: true }));
  return {
    mac,
    command: ['sh', '-c', `exec ${QEMU} "$@" 3<>"$0"`, path],
    netdev: 'tap,id=net0,fd=3,vhost=off',
  };
}
