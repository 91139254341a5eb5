/** Links: the interfaces of a network namespace. */

/** A network interface as netlink reports it. */
export interface Link {
  readonly index: number;
  readonly name: string;
  /** `veth`, `macvlan`, `bridge`, …; empty for a physical or loopback device. */
  readonly kind: string;
  readonly loopback: boolean;
  readonly ethernet: boolean;
  /** ifindex of the peer (veth) or the lower device (macvlan), in the namespace `peerNamespaceId` names. */
  readonly peerIndex: number | undefined;
  readonly peerNamespaceId: number | undefined;
  /** ifindex of the bridge or bond that this interface is a port of; 0 without one. */
  readonly master: number;
  /** As the administrator set it, whether or not there is a carrier. */
  readonly up?: boolean;
  /** Of a bridge: after this time it forgets where a station is; 0 if it learns nothing. */
  readonly ageingMs?: number;
}
