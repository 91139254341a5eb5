/** What every known pod should be in the kernel, or why it is to be left alone: no side effects but a cache. */

import { interceptionOf } from '../pods/annotations.js';
import { appOf, type FailurePolicy, type Pod, type PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import { runtimeOf } from '../runtimes/index.js';
import type { Location } from '../runtimes/runtime.js';
import type { EndpointPlan } from './endpoints.js';
import type { PodLinks } from './pod-links.js';
import type { EndpointState } from './status.js';

export interface DesiredOptions {
  readonly store: Pick<PodStore, 'list'>;
  readonly links: PodLinks;
  readonly defaults: { readonly enrol: 'labelled' | 'all'; readonly failure: FailurePolicy };
  /** Which instance serves an app; undefined where the configuration has none for it. */
  readonly instanceFor: (
    app: string | undefined,
  ) => { readonly name: string; readonly index: number } | undefined;
  readonly log: { error(fields: object, message: string): void };
}

export type Located = Extract<Location, { kind: 'routed' | 'bridge' }>;

/** A pod that is to be intercepted, and how. */
export interface Desired {
  readonly pod: Pod;
  readonly location: Located;
  readonly plan: EndpointPlan;
  readonly instance: string;
  readonly failure: FailurePolicy;
  /** Annotations that were not understood. */
  readonly problems: readonly string[];
}

/** A pod that is not, or not yet. */
export interface LeftAlone {
  readonly pod: Pod;
  readonly state: Extract<EndpointState, 'NOT_ENROLLED' | 'PENDING' | 'REFUSED'>;
  readonly reason: string | undefined;
  readonly failure: FailurePolicy;
}

export interface DesiredState {
  readonly desired: readonly Desired[];
  readonly leftAlone: readonly LeftAlone[];
}

export class DesiredStates {
  readonly #options: DesiredOptions;
  /** Where pods were found; entering their namespaces each time would cost more than the rest of a round. */
  readonly #locations = new Map<PodUid, { pod: Pod; location: Location }>();

  constructor(options: DesiredOptions) {
    this.#options = options;
  }

  async compute(): Promise<DesiredState> {
    const pods = this.#options.store.list();
    const known = new Set(pods.map((pod) => pod.uid));
    for (const uid of [...this.#locations.keys()].filter((candidate) => !known.has(candidate))) {
      this.#locations.delete(uid);
    }
    const wanted: Desired[] = [];
    const leftAlone: LeftAlone[] = [];
    for (const pod of pods) {
      const outcome = await this.#one(pod);
      if ('plan' in outcome) {
        wanted.push(outcome);
      } else {
        leftAlone.push(outcome);
      }
    }
    const { desired, refused } = refuseSharedInterfaces(wanted);
    return { desired, leftAlone: [...leftAlone, ...refused] };
  }

  async #one(pod: Pod): Promise<Desired | LeftAlone> {
    const { defaults, instanceFor } = this.#options;
    const { enrolled, failure, problems } = interceptionOf(pod, defaults);
    if (!enrolled) {
      const reason = problems.length === 0 ? undefined : problems.join('; ');
      return { pod, state: 'NOT_ENROLLED', reason, failure };
    }
    const location = await this.#locate(pod);
    if (location.kind === 'refused') {
      const state = location.retry ? 'PENDING' : 'REFUSED';
      return { pod, state, reason: `${location.code}: ${location.reason}`, failure };
    }
    const app = appOf(pod);
    const instance = instanceFor(app);
    if (instance === undefined) {
      const reason = `NO_INSTANCE: no instance is configured for app ${app ?? '(none)'}`;
      return { pod, state: 'REFUSED', reason, failure };
    }
    const plan: EndpointPlan = {
      ifindex: location.link.index,
      instance: instance.index,
      failureOpen: failure === 'open',
      bridgeIndex: location.kind === 'bridge' ? location.bridge.index : 0,
      ips: pod.ips,
    };
    return { pod, location, plan, instance: instance.name, failure, problems };
  }

  /** A location holds until the pod changes or its interface does. */
  async #locate(pod: Pod): Promise<Location> {
    const cached = this.#locations.get(pod.uid);
    const { links, log } = this.#options;
    if (cached?.pod === pod && cached.location.kind !== 'refused') {
      const { link } = cached.location;
      const now = (await links.hostLinks()).find((candidate) => candidate.index === link.index);
      if (now !== undefined && now.name === link.name && now.master === link.master) {
        return cached.location;
      }
    }
    let location: Location;
    try {
      location = await runtimeOf(pod.runtime).locate(pod, links);
    } catch (error) {
      log.error({ pod: `${pod.namespace}/${pod.name}`, err: error }, 'the pod could not be located');
      const reason = error instanceof Error ? error.message : String(error);
      location = { kind: 'refused', code: 'NO_INTERFACE', reason, retry: true };
    }
    this.#locations.set(pod.uid, { pod, location });
    return location;
  }
}

/** An interface is evidence of one pod; all that claim the same one are refused rather than one of them guessed. */
function refuseSharedInterfaces(wanted: readonly Desired[]): { desired: Desired[]; refused: LeftAlone[] } {
  const claims = new Map<number, Desired[]>();
  for (const entry of wanted) {
    claims.set(entry.plan.ifindex, [...(claims.get(entry.plan.ifindex) ?? []), entry]);
  }
  const desired: Desired[] = [];
  const refused: LeftAlone[] = [];
  for (const entries of claims.values()) {
    if (entries.length === 1) {
      desired.push(...entries);
      continue;
    }
    for (const { pod, location, failure } of entries) {
      const others = entries
        .filter((other) => other.pod !== pod)
        .map((other) => `${other.pod.namespace}/${other.pod.name}`);
      const reason = `INTERFACE_SHARED: ${location.link.name} is also claimed by ${others.join(', ')}`;
      refused.push({ pod, state: 'REFUSED', reason, failure });
    }
  }
  return { desired, refused };
}
