/**
 * From a pod's network namespace to the interface on the host that carries its packets. What decides is how the pod is
 * wired, so one way serves every runtime:
 *
 * - runc: the application's sockets live in the host's kernel, inside the pod's namespace.
 * - runsc (gVisor): its netstack reads frames from the pod's eth0 by AF_PACKET and takes the address off it, so neither
 *   sockets nor addresses can be learnt inside; the interface pair itself stays in place.
 * - rund, Kata: a tap beside eth0 in the pod's namespace, mirrored both ways by tc. The tap is the guest's end and is
 *   skipped here; the veth's peer on the host carries every frame of the guest.
 * - a handler that nobody has named: as the others, and reported.
 */

import type { Link } from '../net/link.js';
import type { Pod } from '../pods/pod.js';
import type { HostAttachment, LinkReader, Location, Refusal, RefusalCode, Unreachable } from './location.js';

/** `retry`: it may come out otherwise later, without anything that would be told of. */
export function refused(code: RefusalCode, reason: string, retry = false): Refusal {
  return { kind: 'refused', code, reason, retry };
}

export function refuseHostNetwork({ hostNetwork }: Pick<Pod, 'hostNetwork'>): Refusal | undefined {
  return hostNetwork
    ? refused('HOST_NETWORK', 'the pod uses the host network: its packets never pass an interface of its own')
    : undefined;
}

/** Reasons that hold for every runtime, asked before any interface is looked for. */
export function refuseOutright(pod: Pod): Location | undefined {
  const refusal = refuseHostNetwork(pod);
  if (refusal !== undefined) {
    return refusal;
  }
  if (pod.ips.length === 0) {
    return refused('NO_ADDRESS', 'no source has told an IP address of this pod yet', true);
  }
  return undefined;
}

type Attachable = { readonly at: HostAttachment } | { readonly reason: string };

/** Whether the host-side interface can carry our program, and by which topology. */
async function attachable(
  link: Link,
  podInterface: string | undefined,
  links: LinkReader,
): Promise<Attachable> {
  if (!link.ethernet || (link.kind !== 'veth' && link.kind !== 'tun')) {
    return { reason: `${link.name} is a ${kindOf(link)} interface: only veth and tap are intercepted` };
  }
  if (link.master === 0) {
    return { at: { kind: 'routed', link, podInterface } };
  }
  const master = await links.hostLink(link.master);
  if (master?.kind !== 'bridge') {
    const what = master === undefined ? `ifindex ${link.master}` : `${master.name} (${master.kind})`;
    return { reason: `${link.name} is a port of ${what}: only bridges are supported` };
  }
  return { at: { kind: 'bridge', link, bridge: master, podInterface } };
}

function kindOf(link: Link): string {
  return link.kind === '' ? 'physical' : link.kind;
}

/** The interface that a source named outright. */
export async function locateByName(name: string, links: LinkReader): Promise<Location> {
  const link = await links.hostLinkByName(name);
  if (link === undefined) {
    return refused('INTERFACE_GONE', `there is no interface ${name} in the agent's network namespace`, true);
  }
  const found = await attachable(link, undefined, links);
  return 'at' in found
    ? { kind: 'found', primary: found.at, more: [], unreachable: [] }
    : refused('UNSUPPORTED_INTERFACE', found.reason);
}

/**
 * The host end of a veth that was found inside a pod, checked from both ends: the peer must name the pod's interface
 * and the pod's namespace in return.
 */
async function hostEnd(
  inside: Link,
  namespaceId: number | undefined,
  links: LinkReader,
): Promise<Link | undefined> {
  const host = inside.peerIndex === undefined ? undefined : await links.hostLink(inside.peerIndex);
  const namesUs =
    host?.kind === 'veth' &&
    host.peerIndex === inside.index &&
    namespaceId !== undefined &&
    host.peerNamespaceId === namespaceId;
  return namesUs ? host : undefined;
}

/** The first interface must be found; of the others each that is not is one by which the pod gets past us. */
export async function locateByNetns(netns: string, links: LinkReader): Promise<Location> {
  if (await links.isHost(netns)) {
    return refused('HOST_NETWORK', `${netns} is the agent's own network namespace`);
  }
  const podLinks = (await links.podLinks(netns)).filter(leadsOutside);
  const first = podLinks.find((link) => link.name === 'eth0') ?? podLinks[0];
  if (first === undefined) {
    return refused('NO_INTERFACE', `no network interface in ${netns} yet`, true);
  }
  if (first.kind !== 'veth') {
    return refused(
      'UNSUPPORTED_INTERFACE',
      `${first.name} in the pod is a ${kindOf(first)} interface: it has no peer on the host`,
    );
  }
  const namespaceId = await links.namespaceId(netns);
  const host = await hostEnd(first, namespaceId, links);
  if (host === undefined) {
    return refused(
      'NO_INTERFACE',
      `the peer of ${first.name} (ifindex ${first.peerIndex}) is not in the agent's network namespace`,
      true,
    );
  }
  const primary = await attachable(host, first.name, links);
  if ('reason' in primary) {
    return refused('UNSUPPORTED_INTERFACE', primary.reason);
  }
  const more: HostAttachment[] = [];
  const unreachable: Unreachable[] = [];
  for (const link of podLinks.filter((other) => other !== first)) {
    const further = await locateFurther(link, namespaceId, links);
    if ('at' in further) {
      more.push(further.at);
    } else {
      unreachable.push({ name: link.name, kind: kindOf(link), reason: further.reason });
    }
  }
  return { kind: 'found', primary: primary.at, more, unreachable };
}

async function locateFurther(
  link: Link,
  namespaceId: number | undefined,
  links: LinkReader,
): Promise<Attachable> {
  if (link.kind !== 'veth') {
    return { reason: `${link.name} is a ${kindOf(link)} interface: it has no peer on the host` };
  }
  const host = await hostEnd(link, namespaceId, links);
  return host === undefined
    ? { reason: `the peer of ${link.name} is not in the agent's network namespace` }
    : attachable(host, link.name, links);
}

/**
 * Interfaces by which packets leave the pod: hardware, veths, and whatever stands on a device of another namespace
 * (macvlan, ipvlan, netkit). What is built inside the pod leaves by one of those in the end: a microVM's tap or macvtap,
 * the bridge of containers within the pod and its ports, tunnels, VLANs.
 */
function leadsOutside(link: Link): boolean {
  if (link.loopback || !link.ethernet || link.kind === 'tun') {
    return false;
  }
  return link.kind === 'veth' ? link.master === 0 : link.kind === '' || link.peerNamespaceId !== undefined;
}

/**
 * By the pod's namespace if one is known, else by the interface that was named. Throws what netlink throws, but where the
 * namespace has gone.
 */
export async function locate(pod: Pod, links: LinkReader): Promise<Location> {
  const outright = refuseOutright(pod);
  if (outright !== undefined) {
    return outright;
  }
  if (pod.netns === undefined) {
    return pod.interface === undefined
      ? refused(
          'NETNS_UNKNOWN',
          'no source has told the network namespace or the interface of this pod',
          true,
        )
      : locateByName(pod.interface, links);
  }
  try {
    return await locateByNetns(pod.netns, links);
  } catch (error) {
    if ((error as { code?: string }).code === 'ENOENT') {
      return refused('NETNS_GONE', `the network namespace ${pod.netns} does not exist`, true);
    }
    throw error;
  }
}
