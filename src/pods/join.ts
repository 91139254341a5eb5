/** How what several sources say of one pod becomes that pod. */

import type { InterfaceIps, Pod, SourceName } from './pod.js';

/** Weakest first: where two sources disagree about a field, the later one is believed. */
const PRECEDENCE: readonly SourceName[] = ['static', 'cni', 'cri', 'kubernetes'];

/** Strongest first, of an interface's addresses: who gave them, who saw them given, and an annotation of the pod. */
const TELL_INTERFACES: readonly SourceName[] = ['static', 'cni', 'cri', 'kubernetes'];

interface Part {
  readonly source: SourceName;
  readonly pod: Pod;
}

/**
 * One frozen pod out of what each source says of it; undefined where none says anything. An empty field is one the
 * source does not know; addresses are united, the strongest source's first; a pod is on the host's network if any
 * source says so. `criServiceAccount` is that of pods whose own no source knows, where the CRI tells of them.
 */
export function joinPods(said: ReadonlyMap<SourceName, Pod>, criServiceAccount = ''): Pod | undefined {
  const parts = PRECEDENCE.flatMap((source): Part[] => {
    const pod = said.get(source);
    return pod === undefined ? [] : [{ source, pod }];
  });
  const strongest = parts.at(-1)?.pod;
  if (strongest === undefined) {
    return undefined;
  }
  const strongestFirst = parts.map((part) => part.pod).reverse();
  const text = (pick: (pod: Pod) => string | undefined): string | undefined =>
    strongestFirst.map(pick).find((value) => value !== undefined && value !== '');
  // Kubernetes knows all labels: none there means that the last one was taken away, and the copy in the CRI is old.
  const mapsFrom = parts.at(-1)?.source === 'kubernetes' ? [strongest] : strongestFirst;
  const map = (pick: (pod: Pod) => Readonly<Record<string, string>>): Readonly<Record<string, string>> =>
    Object.freeze({ ...mapsFrom.map(pick).find((value) => Object.keys(value).length > 0) });
  const netns = text((pod) => pod.netns);
  const hostInterface = text((pod) => pod.interface);
  const owner = strongestFirst.find((pod) => pod.owner !== undefined)?.owner;
  const ips = Object.freeze([...new Set(strongestFirst.flatMap((pod) => pod.ips))]);
  const interfaceIps = interfaceIpsOf(said, ips);
  return Object.freeze({
    uid: strongest.uid,
    namespace: text((pod) => pod.namespace) ?? '',
    name: text((pod) => pod.name) ?? '',
    serviceAccount: serviceAccountOf(parts, criServiceAccount),
    labels: map((pod) => pod.labels),
    annotations: map((pod) => pod.annotations),
    ips,
    ...(interfaceIps === undefined ? {} : { interfaceIps }),
    runtime: strongestFirst.find((pod) => pod.runtime !== 'unknown')?.runtime ?? 'unknown',
    runtimeHandler: text((pod) => pod.runtimeHandler) ?? '',
    sandboxId: text((pod) => pod.sandboxId) ?? '',
    hostNetwork: strongestFirst.some((pod) => pod.hostNetwork),
    ...(netns === undefined ? {} : { netns }),
    ...(hostInterface === undefined ? {} : { interface: hostInterface }),
    ...(owner === undefined ? {} : { owner: Object.freeze({ ...owner }) }),
    sources: Object.freeze(parts.map((part) => part.source)),
  });
}

/**
 * What Kubernetes says of a pod that it knows, even that it has none: the API server writes `default` where a pod names
 * none, but not into mirror pods, which it forbids to have any (plugin/pkg/admission/serviceaccount). A label that the
 * runtime was given does not change that; the administrator's static file does.
 */
function serviceAccountOf(parts: readonly Part[], criServiceAccount: string): string {
  const isFrom = (name: SourceName): boolean => parts.some(({ source }) => source === name);
  const isKnown = isFrom('kubernetes');
  const told = parts
    .filter(({ source }) => !isKnown || source === 'kubernetes' || source === 'static')
    .findLast(({ pod }) => pod.serviceAccount !== '');
  return told?.pod.serviceAccount ?? (!isKnown && isFrom('cri') ? criServiceAccount : '');
}

/** Each interface's by the strongest source that names it. An annotation cannot move an address that others have told. */
function interfaceIpsOf(
  said: ReadonlyMap<SourceName, Pod>,
  ips: readonly string[],
): InterfaceIps | undefined {
  const told = new Map<string, readonly string[]>();
  for (const source of TELL_INTERFACES) {
    for (const [name, own] of Object.entries(said.get(source)?.interfaceIps ?? {})) {
      if (!told.has(name)) {
        told.set(name, Object.freeze(own.filter((ip) => source !== 'kubernetes' || !ips.includes(ip))));
      }
    }
  }
  return told.size === 0 ? undefined : Object.freeze(Object.fromEntries(told));
}
