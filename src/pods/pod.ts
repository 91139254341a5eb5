/** The one model of a pod that every source speaks and every later stage reads. */

export type PodUid = string & { readonly __brand: 'PodUid' };

export const RUNTIME_KINDS = ['runc', 'runsc', 'rund', 'unknown'] as const;
export type RuntimeKind = (typeof RUNTIME_KINDS)[number];

/** A DNS subdomain (Kubernetes, pkg/apis/core/validation, ValidateServiceAccountName). */
export const SERVICE_ACCOUNT_NAME = /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/;

export type SourceName = 'static' | 'cri' | 'kubernetes' | 'cni';

export type FailurePolicy = 'closed' | 'open';

/** The controller that made the pod. */
export interface PodOwner {
  /** As in `Deployment`, `StatefulSet`, `DaemonSet`, `Job`. */
  readonly kind: string;
  readonly name: string;
}

export type InterfaceIps = Readonly<Record<string, readonly string[]>>;

/** A pod as the sources describe it: desired state, nothing observed in the kernel. */
export interface Pod {
  readonly uid: PodUid;
  readonly namespace: string;
  readonly name: string;
  /** Empty where no source knows it, and for a pod that has none: the mirror pod of a static pod of the kubelet. */
  readonly serviceAccount: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
  /** Canonical text form (RFC 5952 for IPv6), without prefix length. */
  readonly ips: readonly string[];
  /**
   * By the pod's own name of an interface, where a source tells whose addresses they are. What only an annotation tells is
   * not among `ips`.
   */
  readonly interfaceIps?: InterfaceIps;
  readonly runtime: RuntimeKind;
  /** The CRI handler, such as `gvisor`; empty for the default one or where the source does not know. */
  readonly runtimeHandler: string;
  readonly sandboxId: string;
  readonly hostNetwork: boolean;
  /** Path that can be opened as the pod's network namespace, such as `/run/netns/web-0`. */
  readonly netns?: string;
  /** Name of the host-side interface where a source names it outright. */
  readonly interface?: string;
  readonly owner?: PodOwner;
  readonly sources: readonly SourceName[];
}

/**
 * The addresses that may stand as source in what this interface of the pod sends; empty where nobody has told. Undefined as
 * a name: a source named the host's end alone, which then is the pod's only one. `isFirst`: the interface of the pod's own
 * addresses, which are those that no other interface is told to have.
 */
export function ipsOf(
  { ips, interfaceIps = {} }: Pick<Pod, 'ips' | 'interfaceIps'>,
  podInterface: string | undefined,
  isFirst: boolean,
): readonly string[] {
  if (podInterface === undefined) {
    return ips;
  }
  // The pod's root gives the name: also one that every object has.
  const own = (Object.hasOwn(interfaceIps, podInterface) ? interfaceIps[podInterface] : undefined) ?? [];
  if (!isFirst) {
    return own;
  }
  const others = Object.entries(interfaceIps).flatMap(([name, told]) => (name === podInterface ? [] : told));
  return [...new Set([...ips.filter((ip) => !others.includes(ip)), ...own])];
}

/** The application a pod belongs to: `nodesentry.io/app`, else `app.kubernetes.io/name`, else `app`, else its owner. */
export function appOf(pod: Pick<Pod, 'labels' | 'owner'>): string | undefined {
  const { labels } = pod;
  return labels['nodesentry.io/app'] ?? labels['app.kubernetes.io/name'] ?? labels.app ?? pod.owner?.name;
}

/**
 * `spiffe://<trust domain>/ns/<namespace>/sa/<service account>` (SPIFFE ID specification, section 2); empty without a
 * service account.
 */
export function spiffeIdOf(pod: Pod, trustDomain: string): string {
  return pod.serviceAccount === ''
    ? ''
    : `spiffe://${trustDomain}/ns/${pod.namespace}/sa/${pod.serviceAccount}`;
}
