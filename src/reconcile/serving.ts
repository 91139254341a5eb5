/** Who takes a pod's new flows: its app's instance, those that take certain ports, or the one that it is drained to. */

import { datagramsOf, type FlowSelection, type PortShare, selectionOf } from '../datapath/selection.js';
import type { PortRange } from '../net/ports.js';
import type { PodUid } from '../pods/pod.js';
import { SELECT_ALL, type SelectedDirection, type SelectionRules } from '../pods/selection.js';
import { unfitText } from './decision.js';

/** As the configuration has it, with its number in the kernel. */
export interface ServingInstance {
  readonly name: string;
  readonly number: number;
  readonly inbound: boolean;
  /** Directions in which it takes datagrams. Default: none. */
  readonly udp?: Readonly<Record<SelectedDirection, boolean>> | undefined;
}

/** One that takes flows to certain ports alone. */
export interface PortInstance extends ServingInstance {
  readonly outbound: boolean;
  readonly ports: readonly PortRange[];
}

/** New flows go to another instance, or, without one, past every proxy. */
export interface DrainOrder {
  readonly to?: string | undefined;
  /** Unix time, milliseconds. */
  readonly sinceMs: number;
}

export interface ServingOptions {
  /** Which instance serves an app; undefined where the configuration has none for it. */
  readonly instanceFor: (app: string | undefined) => ServingInstance | undefined;
  /** Those that take an app's flows to certain ports, in order of precedence. Default: none. */
  readonly portInstancesFor?: (app: string | undefined) => readonly PortInstance[];
  /** Which flows of any pod, at most. Default: all. */
  readonly selection?: SelectionRules;
  readonly instanceNamed: (name: string) => ServingInstance | undefined;
  /** Whether a pod is drained; the same object until it is another. */
  readonly drainOf: (uid: PodUid, app: string | undefined) => DrainOrder | undefined;
}

/** Who a pod's new flows go to. */
export interface Served {
  readonly drain: DrainOrder | undefined;
  /** What takes the flows that no port is named for; undefined: nobody does. */
  readonly main: ServingInstance | undefined;
  /** The endpoint's own; undefined: nobody serves the pod. */
  readonly instance: ServingInstance | undefined;
  readonly shares: readonly PortInstance[];
  /** Any of them takes what the pod is sent. */
  readonly inbound: boolean;
  readonly problem: string | undefined;
}

/** Where the pod is drained to another instance, that is it while it is configured. */
export function servedBy(
  { instanceFor, instanceNamed, portInstancesFor, drainOf }: ServingOptions,
  uid: PodUid,
  app: string | undefined,
): Served {
  const main = instanceFor(app);
  const shares = portInstancesFor?.(app) ?? [];
  const own = main ?? shares[0];
  const drain = drainOf(uid, app);
  const inbound = own?.inbound === true || shares.some((share) => share.inbound);
  const undrained: Served = { drain, main, instance: own, shares, inbound, problem: undefined };
  if (drain?.to === undefined) {
    return undrained;
  }
  const other = instanceNamed(drain.to);
  const problem = unfitText(drain.to, other, own);
  // All of its flows go there, whatever their port.
  return problem === undefined && other !== undefined
    ? { ...undrained, main: other, instance: other, shares: [], inbound: other.inbound }
    : { ...undrained, problem };
}

/** Which of its flows. What no port is named for is left alone where no instance takes it. */
export function selectedOf(
  { selection = SELECT_ALL }: Pick<ServingOptions, 'selection'>,
  pod: SelectionRules,
  { main, shares }: Served,
): FlowSelection | undefined {
  const taken = takenBy(shares, (share, direction) => share[direction]);
  return selectionOf(selection, pod, taken, {
    outbound: main !== undefined,
    inbound: main?.inbound === true || taken.inbound.length === 0,
  });
}

/** The same of UDP, which is intercepted only where the node names the port and an instance takes it. */
export function selectedDatagramsOf(
  { selection = SELECT_ALL }: Pick<ServingOptions, 'selection'>,
  pod: SelectionRules,
  { main, shares }: Served,
): FlowSelection | undefined {
  const taken = takenBy(shares, ({ udp }, direction) => udp?.[direction] === true);
  const { outbound = false, inbound = false } = main?.udp ?? {};
  return datagramsOf(selection.udp, pod.udp, taken, { outbound, inbound });
}

/** The ports of those that take the direction. */
function takenBy(
  all: readonly PortInstance[],
  takes: (share: PortInstance, direction: SelectedDirection) => boolean,
): Readonly<Record<SelectedDirection, readonly PortShare[]>> {
  const of = (direction: SelectedDirection) =>
    all
      .filter((share) => takes(share, direction))
      .map(({ ports, number, name }) => ({ ports, number, name }));
  return { outbound: of('outbound'), inbound: of('inbound') };
}
