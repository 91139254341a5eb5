/** The two CNI configurations of the lab, each dual-stack: the plugins are Debian's, unchanged. */

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { runIn } from './exec.js';
import type { Lab } from './lab.js';
import type { Topology } from './pod.js';

const PLUGINS = '/usr/lib/cni';
/** Third octet and third group of the pods' addresses. */
const SUBNET: Readonly<Record<Topology, number>> = { ptp: 1, bridge: 2 };

export interface Network {
  readonly directory: string;
  readonly bridge: string;
  /** Runs ADD for a namespace and returns what the plugin said; the lab runs DEL in the end. */
  attach(
    containerId: string,
    netns: string,
  ): Promise<{ 4: string; 6: string; gateway: { 4: string; 6: string } }>;
  detach(containerId: string, netns: string): Promise<void>;
}

interface CniResult {
  readonly ips: readonly { address: string; gateway?: string }[];
}

export function createNetwork(lab: Lab, topology: Topology): Network {
  const directory = join(lab.directory, `cni-${topology}`);
  mkdirSync(directory);
  const subnet = SUBNET[topology];
  const bridge = `nsb${lab.id}`.slice(0, 15);
  const ipam = {
    type: 'host-local',
    dataDir: join(lab.directory, `ipam-${topology}`),
    ranges: [[{ subnet: `10.66.${subnet}.0/24` }], [{ subnet: `fd00:66:${subnet}::/64` }]],
    routes: [{ dst: '0.0.0.0/0' }, { dst: '::/0' }],
  };
  const plugin =
    topology === 'ptp'
      ? { type: 'ptp', ipMasq: false, ipam }
      : { type: 'bridge', bridge, isGateway: true, ipMasq: false, hairpinMode: true, ipam };
  const base = { cniVersion: '0.4.0', name: `lab-${lab.id}-${topology}` };
  writeFileSync(join(directory, '10-lab.conflist'), JSON.stringify({ ...base, plugins: [plugin] }));

  const call = (command: 'ADD' | 'DEL', containerId: string, netns: string): Promise<string> =>
    runIn(lab.node, join(PLUGINS, plugin.type), [], {
      env: {
        CNI_COMMAND: command,
        CNI_CONTAINERID: containerId,
        CNI_NETNS: netns,
        CNI_IFNAME: 'eth0',
        CNI_PATH: PLUGINS,
      },
      input: JSON.stringify({ ...base, ...plugin }),
    });
  return {
    directory,
    bridge,
    attach: async (containerId, netns) => {
      const { ips } = JSON.parse(await call('ADD', containerId, netns)) as CniResult;
      const pick = (v6: boolean) => {
        const found = ips.find(({ address }) => address.includes(':') === v6);
        return { ip: found?.address.split('/')[0] ?? '', gateway: found?.gateway ?? '' };
      };
      const [v4, v6] = [pick(false), pick(true)];
      return { 4: v4.ip, 6: v6.ip, gateway: { 4: v4.gateway, 6: v6.gateway } };
    },
    detach: async (containerId, netns) => {
      await call('DEL', containerId, netns);
    },
  };
}
