/** From a pod's network namespace to the interface on the host that carries its packets. */

import type { Pod } from '../pods/pod.js';
import type { Link, LinkReader, Location, RefusalCode } from './runtime.js';

export function refused(code: RefusalCode, reason: string, retry = false): Location {
  return { kind: 'refused', code, reason, retry };
}

/** Reasons that hold for every runtime, asked before any interface is looked for. */
export function refuseOutright(pod: Pod): Location | undefined {
  if (pod.hostNetwork) {
    return refused(
      'HOST_NETWORK',
      'the pod uses the host network: its packets never pass an interface of its own',
    );
  }
  if (pod.ips.length === 0) {
    return refused('NO_ADDRESS', 'no source has told an IP address of this pod yet', true);
  }
  return undefined;
}

/** Whether the host-side interface can carry our program, and by which topology. */
export function describeHostLink(
  link: Link,
  hostLinks: readonly Link[],
  others: readonly string[],
): Location {
  if (!link.ethernet || (link.kind !== 'veth' && link.kind !== 'tun')) {
    const kind = link.kind === '' ? 'physical' : link.kind;
    return refused(
      'UNSUPPORTED_INTERFACE',
      `${link.name} is a ${kind} interface: only veth and tap are intercepted`,
    );
  }
  if (link.master === 0) {
    return { kind: 'routed', link, others };
  }
  const master = hostLinks.find((candidate) => candidate.index === link.master);
  if (master?.kind !== 'bridge') {
    return refused(
      'UNSUPPORTED_INTERFACE',
      `${link.name} is a port of ${master === undefined ? `ifindex ${link.master}` : `${master.name} (${master.kind})`}: only bridges are supported`,
    );
  }
  return { kind: 'bridge', link, bridge: master, others };
}

/** The interface that a source named outright. */
export async function locateByName(name: string, links: LinkReader): Promise<Location> {
  const hostLinks = await links.hostLinks();
  const link = hostLinks.find((candidate) => candidate.name === name);
  if (link === undefined) {
    return refused('INTERFACE_GONE', `there is no interface ${name} in the agent's network namespace`, true);
  }
  return describeHostLink(link, hostLinks, []);
}

/**
 * The host end of the pod's veth, found from inside its namespace and checked from both ends: the peer must name
 * the pod's interface and the pod's namespace in return.
 */
export async function locateByNetns(netns: string, links: LinkReader): Promise<Location> {
  if (await links.isHost(netns)) {
    return refused('HOST_NETWORK', `${netns} is the agent's own network namespace`);
  }
  const podLinks = (await links.podLinks(netns)).filter((link) => !link.loopback && link.kind !== 'tun');
  const first = podLinks.find((link) => link.name === 'eth0') ?? podLinks[0];
  if (first === undefined) {
    return refused('NO_INTERFACE', `no network interface in ${netns} yet`, true);
  }
  if (first.kind !== 'veth') {
    const kind = first.kind === '' ? 'physical' : first.kind;
    return refused(
      'UNSUPPORTED_INTERFACE',
      `${first.name} in the pod is a ${kind} interface: it has no peer on the host`,
    );
  }
  const [hostLinks, namespaceId] = await Promise.all([links.hostLinks(), links.namespaceId(netns)]);
  const host = hostLinks.find(
    (link) =>
      link.index === first.peerIndex &&
      link.kind === 'veth' &&
      link.peerIndex === first.index &&
      namespaceId !== undefined &&
      link.peerNamespaceId === namespaceId,
  );
  if (host === undefined) {
    return refused(
      'NO_INTERFACE',
      `the peer of ${first.name} (ifindex ${first.peerIndex}) is not in the agent's network namespace`,
      true,
    );
  }
  const others = podLinks.filter((link) => link !== first).map((link) => link.name);
  return describeHostLink(host, hostLinks, others);
}

/** What every runtime starts from: a namespace if one is known, else the interface that was named. */
export async function locateByEvidence(pod: Pod, links: LinkReader): Promise<Location> {
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
