/**
 * What stays of a pod that is to be intercepted and cannot be placed any more: what the kernel holds of it, at interfaces
 * that are there. An interface goes with its pod's network namespace, so one that is there can still be sent by.
 */

import type { EndpointPlan, EndpointTables } from '../datapath/endpoints.js';
import type { PodUid } from '../pods/pod.js';
import type { HostAttachment, LinkReader } from '../runtimes/location.js';
import type { PlannedEndpoint } from './planned-endpoint.js';

export interface HeldOptions {
  readonly tables: Pick<EndpointTables, 'plansOf' | 'rowOf'>;
  readonly links: Pick<LinkReader, 'hostLink'>;
}

/** The one that names the enrolment first. `known`: as they were located before, for the names of the pod's ends. */
export async function heldEndpoints(
  uid: PodUid,
  known: readonly PlannedEndpoint[],
  { tables, links }: HeldOptions,
): Promise<PlannedEndpoint[]> {
  const first = tables.rowOf(uid)?.ifindex;
  const plans = tables.plansOf(uid).sort((a, b) => Number(b.ifindex === first) - Number(a.ifindex === first));
  const held: PlannedEndpoint[] = [];
  for (const plan of plans) {
    const podInterface = known.find((other) => other.plan.ifindex === plan.ifindex)?.at.podInterface;
    const at = await attachmentOf(plan, podInterface, links);
    if (at !== undefined) {
      held.push({ at, plan: { ...plan, bridgeIndex: at.kind === 'bridge' ? at.bridge.index : 0 } });
    }
  }
  return held;
}

/** As the host has wired it by now; undefined where the interface has gone. */
async function attachmentOf(
  { ifindex, bridgeIndex }: EndpointPlan,
  podInterface: string | undefined,
  links: Pick<LinkReader, 'hostLink'>,
): Promise<HostAttachment | undefined> {
  const link = await links.hostLink(ifindex);
  if (link === undefined) {
    return undefined;
  }
  const master = link.master === 0 ? undefined : await links.hostLink(link.master);
  const bridge =
    link.master === 0 || master?.kind === 'bridge' || bridgeIndex === 0
      ? master
      : await links.hostLink(bridgeIndex);
  return bridge?.kind === 'bridge'
    ? { kind: 'bridge', link, bridge, podInterface }
    : { kind: 'routed', link, podInterface };
}
