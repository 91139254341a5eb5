/** The two CNI configurations of the lab, each dual-stack: the plugins are Debian's, unchanged, with ours behind. */

import { mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { runIn } from './exec.js';
import type { Lab } from './lab.js';
import type { Topology } from './pod.js';

const PLUGINS = '/usr/lib/cni';
const OWN_PLUGIN = join(import.meta.dirname, '../../build/cni/nodesentry-cni');
/** Third octet and third group of the pods' addresses. */
const SUBNET: Readonly<Record<Topology, number>> = { ptp: 1, bridge: 2 };

/** Our plugin in the chain, as `nodesentry cni install` puts it there. */
export interface Chained {
  /** The agent's cni.sock. */
  readonly socket: string;
  readonly failure?: 'closed' | 'open';
  readonly timeoutMs?: number;
}

/** What a runtime tells plugins of the pod. */
export interface PodOfChain {
  readonly uid: string;
  readonly namespace: string;
  readonly name: string;
  readonly annotations?: Readonly<Record<string, string>>;
}

export interface Attached {
  readonly 4: string;
  readonly 6: string;
  readonly gateway: { readonly 4: string; readonly 6: string };
  /** How long our plugin took, process start included; 0 where it is not in the chain. */
  readonly ownMs: number;
}

export interface Network {
  /** conf_dir and bin_dir of a runtime. */
  readonly directory: string;
  /** Where the runtime looks for plugins: Debian's, and room for others. */
  readonly plugins: string;
  readonly bridge: string;
  /** Runs ADD of the whole chain for a namespace and returns what it said; `detach` runs DEL. */
  attach(containerId: string, netns: string, pod?: PodOfChain, ifname?: string): Promise<Attached>;
  detach(containerId: string, netns: string, ifname?: string): Promise<void>;
}

interface CniResult {
  readonly ips: readonly { address: string; gateway?: string }[];
}

/** `suffix`: of a second network of the same kind, which shares the addresses of the first. */
export function createNetwork(lab: Lab, topology: Topology, chained?: Chained, suffix = ''): Network {
  const directory = join(lab.directory, `cni-${topology}${suffix}`);
  mkdirSync(directory);
  const plugins = join(lab.directory, `cni-bin-${topology}${suffix}`);
  mkdirSync(plugins);
  for (const name of readdirSync(PLUGINS)) {
    symlinkSync(join(PLUGINS, name), join(plugins, name));
  }
  if (chained !== undefined) {
    symlinkSync(OWN_PLUGIN, join(plugins, 'nodesentry-cni'));
  }
  const subnet = SUBNET[topology];
  const bridge = `nsb${lab.id}`.slice(0, 15);
  const ipam = {
    type: 'host-local',
    dataDir: join(lab.directory, `ipam-${topology}`),
    // More addresses than a /24 has: a thousand pods may come and go before one is used again.
    ranges: [[{ subnet: `10.66.${subnet * 16}.0/20` }], [{ subnet: `fd00:66:${subnet}::/64` }]],
    routes: [{ dst: '0.0.0.0/0' }, { dst: '::/0' }],
  };
  const plugin =
    topology === 'ptp'
      ? { type: 'ptp', ipMasq: false, ipam }
      : { type: 'bridge', bridge, isGateway: true, ipMasq: false, hairpinMode: true, ipam };
  const own = {
    type: 'nodesentry-cni',
    capabilities: { 'io.kubernetes.cri.pod-annotations': true },
    ...chained,
  };
  const base = { cniVersion: '0.4.0', name: `lab-${lab.id}-${topology}` };
  writeFileSync(
    join(directory, '10-lab.conflist'),
    JSON.stringify({ ...base, plugins: chained === undefined ? [plugin] : [plugin, own] }),
  );

  const call = (
    command: 'ADD' | 'DEL',
    type: string,
    settings: object,
    [containerId, netns, ifname]: readonly [string, string, string],
    pod?: PodOfChain,
  ): Promise<string> =>
    runIn(lab.node, join(plugins, type), [], {
      env: {
        CNI_COMMAND: command,
        CNI_CONTAINERID: containerId,
        CNI_NETNS: netns,
        CNI_IFNAME: ifname,
        CNI_PATH: plugins,
        ...(pod === undefined
          ? {}
          : {
              CNI_ARGS: `IgnoreUnknown=1;K8S_POD_NAMESPACE=${pod.namespace};K8S_POD_NAME=${pod.name};K8S_POD_UID=${pod.uid}`,
            }),
      },
      input: JSON.stringify({ ...base, ...settings }),
    });
  return {
    directory,
    plugins,
    bridge,
    attach: async (containerId, netns, pod, ifname = 'eth0') => {
      const place = [containerId, netns, ifname] as const;
      const result = JSON.parse(await call('ADD', plugin.type, plugin, place, pod)) as CniResult;
      const startedMs = performance.now();
      if (chained !== undefined) {
        const runtimeConfig = { 'io.kubernetes.cri.pod-annotations': pod?.annotations ?? {} };
        await call('ADD', own.type, { ...own, runtimeConfig, prevResult: result }, place, pod);
      }
      const ownMs = chained === undefined ? 0 : performance.now() - startedMs;
      const pick = (v6: boolean) => {
        const found = result.ips.find(({ address }) => address.includes(':') === v6);
        return { ip: found?.address.split('/')[0] ?? '', gateway: found?.gateway ?? '' };
      };
      const [v4, v6] = [pick(false), pick(true)];
      return { 4: v4.ip, 6: v6.ip, gateway: { 4: v4.gateway, 6: v6.gateway }, ownMs };
    },
    detach: async (containerId, netns, ifname = 'eth0') => {
      const place = [containerId, netns, ifname] as const;
      if (chained !== undefined) {
        await call('DEL', own.type, own, place);
      }
      await call('DEL', plugin.type, plugin, place);
    },
  };
}
