/** Pods without a runtime: a network namespace that the CNI plugin has attached, and processes of the host in it. */

import { randomUUID } from 'node:crypto';
import type { Attached, Network } from './cni.js';
import { inNetns, run, runIn, tryRun } from './exec.js';
import { buildApp } from './image.js';
import type { Lab } from './lab.js';
import type { LabPod } from './pod.js';

export interface PlainPod extends LabPod {
  /** Name of its namespace below /run/netns. */
  readonly netnsName: string;
  readonly gateway: Attached['gateway'];
}

export interface PlainPodOptions {
  readonly uid?: string;
  /** Distinguishes namespaces of pods that share a name; default the pod's name. */
  readonly id?: string;
}

export async function runPlainPod(
  lab: Lab,
  network: Network,
  name: string,
  { uid = randomUUID(), id = name }: PlainPodOptions = {},
): Promise<PlainPod> {
  const netnsName = `nsl-${lab.id}-${id}`;
  const netns = `/run/netns/${netnsName}`;
  await run('ip', ['netns', 'add', netnsName]);
  const steps: (() => Promise<unknown>)[] = [() => run('ip', ['netns', 'del', netnsName])];
  const stop = async (): Promise<void> => {
    for (const step of steps.splice(0).reverse()) {
      await step();
    }
  };
  lab.cleanup.add(`pod ${id}`, stop);
  const pod = { uid, namespace: 'default', name };
  const ips = await network.attach(netnsName, netns, pod);
  steps.push(() => network.detach(netnsName, netns));
  await runIn(netnsName, 'sysctl', ['-qw', 'net.ipv6.conf.all.accept_dad=0']);
  return {
    ...pod,
    runtime: 'runc',
    netns,
    netnsName,
    ips: { 4: ips[4], 6: ips[6] },
    gateway: ips.gateway,
    app: async (words, timeoutMs = 60_000) =>
      tryRun(...inNetns(netnsName, await buildApp(), words), { timeoutMs }),
    stop,
  };
}

/** The index that the interface on the other side of the veth has on the node. */
export async function hostIndexOf(netnsName: string, ifname = 'eth0'): Promise<number> {
  const [link] = JSON.parse(await runIn(netnsName, 'ip', ['-j', 'link', 'show', 'dev', ifname])) as {
    link_index: number;
  }[];
  return link?.link_index ?? 0;
}

/** The name of the interface of that index on the node. */
export async function hostLinkOf(lab: Lab, netnsName: string, ifname = 'eth0'): Promise<string> {
  const index = await hostIndexOf(netnsName, ifname);
  const links = JSON.parse(await runIn(lab.node, 'ip', ['-j', 'link'])) as {
    ifindex: number;
    ifname: string;
  }[];
  const found = links.find(({ ifindex }) => ifindex === index);
  if (found === undefined) {
    throw new Error(`no interface ${index} on the node`);
  }
  return found.ifname;
}
