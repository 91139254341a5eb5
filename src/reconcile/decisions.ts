/** What every known pod should be in the kernel, or why it is to be left alone. Reads links; changes nothing. */

import type { Log } from '../base/log.js';
import type { EndpointPlan } from '../datapath/endpoints.js';
import { interceptionOf } from '../pods/annotations.js';
import { appOf, type FailurePolicy, type Pod, type PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import { locate } from '../runtimes/locate.js';
import type { HostAttachment, Location, Unreachable } from '../runtimes/location.js';
import type { PodLinks } from '../runtimes/pod-links.js';

/**
 * What is added inside a pod's namespace (a macvlan, a VLAN's parent) tells nobody on the host: so many pods are located
 * anew at a time, those that waited longest first. Cost does not grow with pods.
 */
const LOCATED_ANEW = 10;

export interface DesiredOptions {
  readonly store: Pick<PodStore, 'list' | 'get'>;
  readonly links: PodLinks;
  readonly defaults: { readonly enrol: 'labelled' | 'all'; readonly failure: FailurePolicy };
  /** Which instance serves an app; undefined where the configuration has none for it. */
  readonly instanceFor: (
    app: string | undefined,
  ) => { readonly name: string; readonly index: number } | undefined;
  readonly log: Pick<Log, 'error'>;
}

/** One interface of a pod that is to be intercepted. */
export interface DesiredEndpoint {
  readonly at: HostAttachment;
  readonly plan: EndpointPlan;
}

/** A pod that is to be intercepted, and how. */
export interface Desired {
  readonly kind: 'desired';
  readonly pod: Pod;
  /** The pod's first interface, then any further ones. */
  readonly endpoints: readonly [DesiredEndpoint, ...DesiredEndpoint[]];
  /** Interfaces of the pod by which it gets past us. */
  readonly unreachable: readonly Unreachable[];
  readonly instance: string;
  readonly failure: FailurePolicy;
  /** Annotations that were not understood. */
  readonly problems: readonly string[];
}

/** A pod that is not, or not yet. */
export interface LeftAlone {
  readonly kind: 'left-alone';
  readonly pod: Pod;
  readonly state: 'NOT_ENROLLED' | 'PENDING' | 'REFUSED';
  readonly reason: string | undefined;
  readonly failure: FailurePolicy;
  /** Worth another look although nothing has changed here. */
  readonly retry: boolean;
}

export type Outcome = Desired | LeftAlone;

export class DesiredStates {
  readonly #options: DesiredOptions;
  readonly #outcomes = new Map<PodUid, Outcome>();
  /** Which pods claim an interface. */
  readonly #claims = new Map<number, Set<PodUid>>();
  /** Pods that may have another interface than those we know of. */
  readonly #doubtful = new Set<PodUid>();

  constructor(options: DesiredOptions) {
    this.#options = options;
  }

  /**
   * Looks at these pods, or at all. Returns whose outcome may be another now: those, and the pods that claimed an
   * interface together with one of them.
   */
  async update(uids: 'all' | Iterable<PodUid>): Promise<Set<PodUid>> {
    const { store } = this.#options;
    const touched = new Set<PodUid>(
      uids === 'all' ? [...this.#outcomes.keys(), ...store.list().map((pod) => pod.uid)] : uids,
    );
    for (const uid of [...touched]) {
      const pod = store.get(uid);
      const before = this.#outcomes.get(uid);
      const holds = before !== undefined && before.pod === pod && (await this.#holds(before));
      const doubtful = this.#doubtful.delete(uid);
      if (holds && !doubtful) {
        continue;
      }
      const found = pod === undefined ? undefined : await this.#decide(pod);
      // One whose interfaces are all there stays what it was where it cannot be located just now.
      const next = holds && found?.kind === 'left-alone' && found.retry ? before : found;
      for (const other of this.#release(uid)) {
        touched.add(other);
      }
      for (const other of next === undefined ? [] : this.#take(next)) {
        touched.add(other);
      }
    }
    return touched;
  }

  /**
   * Looks into pods' namespaces, apart from any round, which must not wait for it. Returns the pods whose interfaces are
   * others than we know of.
   */
  async changedInside(): Promise<PodUid[]> {
    const oldest = [...this.#outcomes.values()]
      .filter((outcome) => outcome.kind === 'desired' || outcome.state === 'REFUSED')
      .slice(0, LOCATED_ANEW);
    const changed: PodUid[] = [];
    for (const before of oldest) {
      const { uid } = before.pod;
      const found = await this.#decide(before.pod);
      if (this.#outcomes.get(uid) !== before) {
        continue; // a round has just looked at it
      }
      // Outcomes stand in the order in which they were looked at.
      this.#outcomes.delete(uid);
      this.#outcomes.set(uid, before);
      if (interfacesOf(found) !== interfacesOf(before)) {
        this.#doubtful.add(uid);
        changed.push(uid);
      }
    }
    return changed;
  }

  /** An interface is evidence of one pod: all that claim the same one are refused rather than one of them guessed. */
  outcome(uid: PodUid): Outcome | undefined {
    const outcome = this.#outcomes.get(uid);
    if (outcome?.kind !== 'desired') {
      return outcome;
    }
    for (const { at, plan } of outcome.endpoints) {
      const others = [...(this.#claims.get(plan.ifindex) ?? [])].filter((other) => other !== uid);
      if (others.length > 0) {
        const names = others.map((other) => nameOf(this.#outcomes.get(other)?.pod));
        const reason = `INTERFACE_SHARED: ${at.link.name} is also claimed by ${names.join(', ')}`;
        return {
          kind: 'left-alone',
          pod: outcome.pod,
          state: 'REFUSED',
          reason,
          failure: outcome.failure,
          retry: false,
        };
      }
    }
    return outcome;
  }

  /** Every pod that is to be intercepted. */
  desired(): Desired[] {
    return [...this.#outcomes.keys()].flatMap((uid) => {
      const outcome = this.outcome(uid);
      return outcome?.kind === 'desired' ? [outcome] : [];
    });
  }

  /**
   * Pods that may come out otherwise by looking again, those that an interface of this ifindex belongs to, and those
   * whose namespace has the other end of it.
   */
  async affectedBy(ifindexes: ReadonlySet<number>): Promise<PodUid[]> {
    const found = [...ifindexes].flatMap((ifindex) => [...(this.#claims.get(ifindex) ?? [])]);
    const namespaces = new Set<number>();
    for (const ifindex of ifindexes) {
      const link = this.#claims.has(ifindex) ? undefined : await this.#options.links.hostLink(ifindex);
      if (link?.peerNamespaceId !== undefined) {
        namespaces.add(link.peerNamespaceId);
      }
    }
    for (const [uid, outcome] of this.#outcomes) {
      if (outcome.kind === 'left-alone' && outcome.retry) {
        found.push(uid);
      }
      if (outcome.kind === 'desired' && namespaces.has(outcome.endpoints[0].at.link.peerNamespaceId ?? -1)) {
        this.#doubtful.add(uid);
        found.push(uid);
      }
    }
    return found;
  }

  #take(outcome: Outcome): PodUid[] {
    this.#outcomes.set(outcome.pod.uid, outcome);
    if (outcome.kind !== 'desired') {
      return [];
    }
    return outcome.endpoints.flatMap(({ plan }) => {
      const claims = this.#claims.get(plan.ifindex) ?? new Set();
      this.#claims.set(plan.ifindex, claims.add(outcome.pod.uid));
      return claims.size > 1 ? [...claims] : [];
    });
  }

  #release(uid: PodUid): PodUid[] {
    const before = this.#outcomes.get(uid);
    this.#outcomes.delete(uid);
    if (before?.kind !== 'desired') {
      return [];
    }
    return before.endpoints.flatMap(({ plan }) => {
      const claims = this.#claims.get(plan.ifindex);
      claims?.delete(uid);
      if (claims === undefined || claims.size === 0) {
        this.#claims.delete(plan.ifindex);
        return [];
      }
      return [...claims];
    });
  }

  /** An outcome holds until the pod changes or one of its interfaces does. */
  async #holds(outcome: Outcome): Promise<boolean> {
    if (outcome.kind === 'left-alone') {
      return !outcome.retry;
    }
    for (const { at } of outcome.endpoints) {
      const now = await this.#options.links.hostLink(at.link.index);
      if (now === undefined || now.name !== at.link.name || now.master !== at.link.master) {
        return false;
      }
    }
    return true;
  }

  async #decide(pod: Pod): Promise<Outcome> {
    const { defaults, instanceFor } = this.#options;
    const { enrolled, failure, problems } = interceptionOf(pod, defaults);
    const leave = (state: LeftAlone['state'], reason: string | undefined, retry = false): LeftAlone => ({
      kind: 'left-alone',
      pod,
      state,
      reason,
      failure,
      retry,
    });
    if (!enrolled) {
      return leave('NOT_ENROLLED', problems.length === 0 ? undefined : problems.join('; '));
    }
    const location = await this.#locate(pod);
    if (location.kind === 'refused') {
      const reason = `${location.code}: ${location.reason}`;
      return leave(location.retry ? 'PENDING' : 'REFUSED', reason, location.retry);
    }
    const app = appOf(pod);
    const instance = instanceFor(app);
    if (instance === undefined) {
      return leave('REFUSED', `NO_INSTANCE: no instance is configured for app ${app ?? '(none)'}`);
    }
    const endpoint = (at: HostAttachment): DesiredEndpoint => ({
      at,
      plan: {
        ifindex: at.link.index,
        instance: instance.index,
        failureOpen: failure === 'open',
        bridgeIndex: at.kind === 'bridge' ? at.bridge.index : 0,
        ips: pod.ips,
      },
    });
    return {
      kind: 'desired',
      pod,
      endpoints: [endpoint(location.primary), ...location.more.map(endpoint)],
      unreachable: location.unreachable,
      instance: instance.name,
      failure,
      problems,
    };
  }

  async #locate(pod: Pod): Promise<Location> {
    try {
      return await locate(pod, this.#options.links);
    } catch (error) {
      this.#options.log.error({ pod: nameOf(pod), err: error }, 'the pod could not be located');
      const reason = error instanceof Error ? error.message : String(error);
      return { kind: 'refused', code: 'NO_INTERFACE', reason, retry: true };
    }
  }
}

/** What an outcome says of the pod's interfaces, as text that can be compared. */
function interfacesOf(outcome: Outcome): string {
  return outcome.kind === 'left-alone'
    ? `${outcome.state} ${outcome.reason ?? ''}`
    : JSON.stringify([
        outcome.endpoints.map(({ at, plan }) => [
          at.link.name,
          at.podInterface,
          plan.ifindex,
          plan.bridgeIndex,
        ]),
        outcome.unreachable,
      ]);
}

function nameOf(pod: Pod | undefined): string {
  return pod === undefined ? 'another pod' : `${pod.namespace}/${pod.name}`;
}
