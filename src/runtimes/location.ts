/** Where a pod's packets pass on the host, and what has to be asked of links to know it. */

import type { Link } from '../net/link.js';

/** What locating a pod asks about links; `PodLinks` answers over netlink. */
export interface LinkReader {
  /** By ifindex. */
  hostLink(index: number): Promise<Link | undefined>;
  hostLinkByName(name: string): Promise<Link | undefined>;
  /** Links inside the network namespace at `netns`; ENOENT where it is gone. */
  podLinks(netns: string): Promise<readonly Link[]>;
  /** The id under which the agent's namespace knows the one at `netns`, as `peerNamespaceId` gives it. */
  namespaceId(netns: string): Promise<number | undefined>;
  /** True where `netns` is the agent's own network namespace. */
  isHost(netns: string): Promise<boolean>;
}

export type RefusalCode =
  | 'HOST_NETWORK'
  | 'NO_INTERFACE'
  | 'INTERFACE_GONE'
  | 'UNSUPPORTED_INTERFACE'
  | 'NO_ADDRESS'
  | 'NETNS_UNKNOWN'
  | 'NETNS_GONE';

/** The host's end of one interface of a pod. */
export type HostAttachment = {
  readonly link: Link;
  /** Name of the pod's end; undefined where no source tells the pod's network namespace. */
  readonly podInterface: string | undefined;
} & ({ readonly kind: 'routed' } | { readonly kind: 'bridge'; readonly bridge: Link });

/** An interface of a pod that nobody can intercept on this node's veths: the pod gets past us by it. */
export interface Unreachable {
  readonly name: string;
  /** As in `Link`. */
  readonly kind: string;
  readonly reason: string;
}

/** Where the pod's packets pass on the host, or why they cannot be intercepted there. */
export type Location =
  | {
      readonly kind: 'found';
      readonly primary: HostAttachment;
      /** Further interfaces whose host end is on this node too. */
      readonly more: readonly HostAttachment[];
      readonly unreachable: readonly Unreachable[];
    }
  | Refusal;

export interface Refusal {
  readonly kind: 'refused';
  readonly code: RefusalCode;
  readonly reason: string;
  readonly retry: boolean;
}
