/**
 * Of every known pod: that it is to be intercepted, and where, or why it is left alone. Reads links; changes nothing.
 * A pod that is enrolled is never left alone while the kernel holds endpoints of it at interfaces that are there: where
 * it cannot be placed it is held, as it was.
 */

import type { Log } from '../base/log.js';
import type { EndpointTables } from '../datapath/endpoints.js';
import { type InterceptionDefaults, interceptionOf } from '../pods/annotations.js';
import { appOf, ipsOf, type Pod, type PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { PodSource } from '../pods/source.js';
import { locate } from '../runtimes/locate.js';
import type { HostAttachment, Location } from '../runtimes/location.js';
import type { PodLinks } from '../runtimes/pod-links.js';
import type { Shapers } from '../runtimes/shapers.js';
import { InterfaceClaims } from './claims.js';
import {
  alsoHeld,
  type Decision,
  drainedText,
  type InterceptDecision,
  ifindexesOf,
  interfacesOf,
  type LeaveDecision,
  nameOf,
  notShaped,
  withoutAddress,
} from './decision.js';
import { noInstanceText, problemsText, refusalText } from './foretold.js';
import { heldEndpoints } from './held.js';
import { LastWords } from './last-word.js';
import type { PlannedEndpoint } from './planned-endpoint.js';
import {
  type DrainOrder,
  type ServingOptions,
  selectedDatagramsOf,
  selectedOf,
  servedBy,
} from './serving.js';

/**
 * What is added inside a pod's namespace (a macvlan, a VLAN's parent) tells nobody on the host: so many pods are located
 * anew at a time, those that waited longest first. Cost does not grow with pods.
 */
const LOCATED_ANEW = 10;

export interface DecisionsOptions extends ServingOptions {
  readonly store: Pick<PodStore, 'list' | 'get'>;
  readonly links: PodLinks;
  readonly shapers: Pick<Shapers, 'look' | 'of'>;
  /** Our program comes before every filter of tc. */
  readonly comesFirst: boolean;
  readonly defaults: InterceptionDefaults;
  /** Whether the pod is about to end: see EndpointPlan.closing. Default: none is. */
  readonly isClosing?: (uid: PodUid) => boolean;
  /** Also of one that is not configured any more. */
  readonly instanceName: (number: number) => string;
  readonly tables: Pick<EndpointTables, 'plansOf' | 'rowOf' | 'ownerOf'>;
  /** The sources without whose word a pod is not un-enrolled. */
  readonly authorities: readonly Pick<PodSource, 'name'>[];
  readonly log: Pick<Log, 'error'>;
}

export class Decisions {
  readonly #options: DecisionsOptions;
  readonly #decisions = new Map<PodUid, Decision>();
  /** The pods decided on, the one whose namespace was looked into longest ago first. */
  readonly #lookedInto = new Set<PodUid>();
  /** The interfaces in their namespaces, as of right before each was last located. */
  readonly #inside = new Map<PodUid, string>();
  readonly #claims = new InterfaceClaims();
  /** Pods that may have another interface than those we know of. */
  readonly #doubtful = new Set<PodUid>();
  /** Of the links, before all decisions were last compared with them. */
  #comparedWith: number | undefined;
  #toIntercept: readonly InterceptDecision[] | undefined;
  readonly #lastWords: LastWords;
  /** By what each was decided. */
  readonly #drains = new Map<PodUid, DrainOrder>();

  constructor(options: DecisionsOptions) {
    this.#options = options;
    this.#lastWords = new LastWords(options.authorities);
  }

  /**
   * Looks at these pods, or at all. Returns for whom it may be another one now: those, and the pods that claimed an
   * interface together with one of them.
   */
  async update(uids: 'all' | Iterable<PodUid>): Promise<Set<PodUid>> {
    const { store, shapers } = this.#options;
    await shapers.look();
    const { version } = this.#options.links;
    const touched = new Set<PodUid>(
      uids === 'all' ? [...this.#decisions.keys(), ...store.list().map((pod) => pod.uid)] : uids,
    );
    for (const uid of [...touched]) {
      const pod = store.get(uid);
      const before = this.#decisions.get(uid);
      const holds =
        before !== undefined &&
        before.pod === pod &&
        (this.#holdsAnyway(before) ?? (before.kind === 'intercept' && (await this.#holds(before))));
      const doubtful = this.#doubtful.delete(uid);
      if (holds && !doubtful) {
        continue;
      }
      const found = pod === undefined ? undefined : await this.#decide(pod);
      if (pod === undefined) {
        this.#lastWords.forget(uid);
        this.#drains.delete(uid);
        this.#inside.delete(uid);
      }
      // One whose interfaces are all there stays what it was where it cannot be located just now.
      const isLost = before?.kind === 'intercept' && found?.kind === 'leave' && found.retry;
      const next = holds && isLost ? before : found;
      for (const other of this.#unclaim(uid)) {
        touched.add(other);
      }
      for (const other of next === undefined ? [] : this.#claim(next)) {
        touched.add(other);
      }
    }
    if (uids === 'all') {
      this.#comparedWith = version;
    }
    return touched;
  }

  /** The list of instances has changed: who is served by another one now, or had none, is decided anew by the next round. */
  instancesChanged(): void {
    for (const [uid, decision] of this.#decisions) {
      const said = this.#lastWords.of(decision.pod);
      const served = servedBy(this.#options, uid, appOf(said));
      const rules = interceptionOf(said, this.#options.defaults).selection;
      const selection = selectedOf(this.#options, rules, served);
      const datagrams = selectedDatagramsOf(this.#options, rules, served);
      const isAnother =
        decision.kind === 'intercept'
          ? decision.endpoints.some(
              ({ plan }) =>
                plan.instance !== served.instance?.number ||
                plan.inbound !== served.inbound ||
                plan.selection?.key !== selection?.key ||
                plan.datagrams?.key !== datagrams?.key,
            )
          : decision.state === 'REFUSED';
      if (isAnother) {
        this.#doubtful.add(uid);
      }
    }
  }

  /** A pod is about to end, or is not any more: it is decided anew by the next round. */
  closingChanged(uid: PodUid): void {
    this.#doubtful.add(uid);
  }

  /** Which pods are drained has changed: those that it is about are decided anew by the next round, and returned. */
  drainsChanged(): PodUid[] {
    const changed = [...this.#decisions].flatMap(([uid, { pod }]) => {
      const drain = this.#options.drainOf(uid, appOf(this.#lastWords.of(pod)));
      return drain === this.#drains.get(uid) ? [] : [uid];
    });
    for (const uid of changed) {
      this.#doubtful.add(uid);
    }
    return changed;
  }

  /**
   * Looks into pods' namespaces, apart from any round, which must not wait for it. Returns the pods whose interfaces are
   * others than we know of.
   */
  async changedInside(): Promise<PodUid[]> {
    const oldest = [...this.#lookedInto]
      .flatMap((uid) => this.#decisions.get(uid) ?? [])
      .filter((decision) => decision.kind === 'intercept' || decision.state === 'REFUSED')
      .slice(0, LOCATED_ANEW);
    const changed: PodUid[] = [];
    for (const before of oldest) {
      const { uid } = before.pod;
      if (this.#inside.has(uid) && this.#textInside(before.pod) === this.#inside.get(uid)) {
        this.#lookedInto.delete(uid);
        this.#lookedInto.add(uid);
        continue;
      }
      const found = await this.#decide(before.pod);
      if (this.#decisions.get(uid) !== before) {
        continue; // a round has just looked at it
      }
      this.#lookedInto.delete(uid);
      this.#lookedInto.add(uid);
      if (interfacesOf(found) !== interfacesOf(before)) {
        this.#doubtful.add(uid);
        changed.push(uid);
      }
    }
    return changed;
  }

  /** Undefined where nobody can look into the pod's namespace; why not, the look in full tells. */
  #textInside({ netns }: Pod): string | undefined {
    try {
      return netns === undefined ? undefined : this.#options.links.podLinksText(netns);
    } catch {
      return undefined;
    }
  }

  /**
   * An interface is evidence of one pod: all that claim the same one are refused rather than one of them guessed, but
   * whose it is in the kernel keeps it.
   */
  of(uid: PodUid): Decision | undefined {
    const decision = this.#decisions.get(uid);
    if (decision?.kind !== 'intercept') {
      return decision;
    }
    for (const { at, plan } of decision.endpoints) {
      const others = this.#claims.of(plan.ifindex).filter((other) => other !== uid);
      if (others.length > 0) {
        const names = others.map((other) => nameOf(this.#decisions.get(other)?.pod));
        return this.#shared(
          decision,
          `INTERFACE_SHARED: ${at.link.name} is also claimed by ${names.join(', ')}`,
        );
      }
    }
    return decision;
  }

  #shared(decision: InterceptDecision, reason: string): Decision {
    const { pod, failure } = decision;
    const { tables } = this.#options;
    const [first, ...more] = decision.endpoints.filter(
      ({ plan }) => tables.ownerOf(plan.ifindex) === pod.uid,
    );
    return first === undefined
      ? { kind: 'leave', pod, state: 'REFUSED', reason, failure, retry: false }
      : { ...decision, endpoints: [first, ...more], held: reason };
  }

  /** Every pod that is to be intercepted; the same list until a decision is another. */
  toIntercept(): readonly InterceptDecision[] {
    if (this.#toIntercept !== undefined) {
      return this.#toIntercept;
    }
    const all = [...this.#decisions.keys()].map((uid) => this.of(uid));
    const list = all.flatMap((decision) => (decision?.kind === 'intercept' ? [decision] : []));
    // Whose an interface is that several claim, the tables tell: that may change by itself.
    const isOwn = (decision: Decision | undefined) =>
      decision !== undefined && this.#decisions.get(decision.pod.uid) === decision;
    this.#toIntercept = all.every(isOwn) ? list : undefined;
    return list;
  }

  /**
   * Pods that may come out otherwise by looking again, those that an interface of this ifindex belongs to, and those
   * whose namespace has the other end of it.
   */
  async affectedBy(ifindexes: ReadonlySet<number>): Promise<PodUid[]> {
    const found = [...ifindexes].flatMap((ifindex) => this.#claims.of(ifindex));
    const namespaces = new Set<number>();
    for (const ifindex of ifindexes) {
      const link =
        this.#claims.of(ifindex).length > 0 ? undefined : await this.#options.links.hostLink(ifindex);
      if (link?.peerNamespaceId !== undefined) {
        namespaces.add(link.peerNamespaceId);
      }
    }
    for (const [uid, decision] of this.#decisions) {
      if (decision.kind === 'leave' ? decision.retry : decision.held !== undefined) {
        found.push(uid);
      }
      if (
        decision.kind === 'intercept' &&
        namespaces.has(decision.endpoints[0].at.link.peerNamespaceId ?? -1)
      ) {
        this.#doubtful.add(uid);
        found.push(uid);
      }
    }
    return found;
  }

  #claim(decision: Decision): PodUid[] {
    const { uid } = decision.pod;
    this.#toIntercept = undefined;
    this.#decisions.set(uid, decision);
    this.#lookedInto.add(uid);
    return this.#claims.add(uid, ifindexesOf(decision));
  }

  #unclaim(uid: PodUid): PodUid[] {
    const before = this.#decisions.get(uid);
    this.#toIntercept = undefined;
    this.#decisions.delete(uid);
    this.#lookedInto.delete(uid);
    return before === undefined ? [] : this.#claims.remove(uid, ifindexesOf(before));
  }

  /** Whether it holds, as far as that can be told without asking for links; undefined where it cannot. */
  #holdsAnyway(decision: Decision): boolean | undefined {
    if (decision.kind === 'leave') {
      return !decision.retry;
    }
    const { shapers, links } = this.#options;
    if (
      decision.held !== undefined ||
      decision.endpoints.some(({ at, shaper }) => shapers.of(at.link.index) !== shaper)
    ) {
      return false;
    }
    return links.version === this.#comparedWith ? true : undefined;
  }

  /** A decision holds until the pod changes or one of its interfaces does; that to hold a pod, until the next look. */
  async #holds({ endpoints }: InterceptDecision): Promise<boolean> {
    for (const { at } of endpoints) {
      const now = await this.#options.links.hostLink(at.link.index);
      if (now === undefined || now.name !== at.link.name || now.master !== at.link.master) {
        return false;
      }
    }
    return true;
  }

  async #decide(pod: Pod): Promise<Decision> {
    const found = await this.#find(pod);
    const known = this.#decisions.get(pod.uid);
    const isUnenrolled = found.kind === 'leave' && found.state === 'NOT_ENROLLED';
    const isDrained = found.kind === 'leave' && found.state === 'DRAINED';
    if (isDrained || (isUnenrolled && this.#lastWords.has(pod.uid))) {
      return found;
    }
    const held = await heldEndpoints(
      pod.uid,
      known?.kind === 'intercept' ? known.endpoints : [],
      this.#options,
    );
    return found.kind === 'leave' ? this.#hold(found, held) : alsoHeld(found, held);
  }

  /** The kernel's policy is that of the last enrolment: another counts only where the pod is enrolled with it. */
  #hold(found: LeaveDecision, held: readonly PlannedEndpoint[]): Decision {
    const isEnrolled = found.state !== 'NOT_ENROLLED';
    const [first, ...more] = held.map(({ at, plan }) => ({
      at,
      plan: isEnrolled ? { ...plan, failureOpen: found.failure === 'open' } : plan,
    }));
    if (first === undefined) {
      return found;
    }
    const names = this.#options.authorities.map(({ name }) => name).join(' or ');
    return {
      kind: 'intercept',
      pod: found.pod,
      endpoints: [first, ...more],
      unreachable: [],
      shortfalls: [],
      instance: this.#options.instanceName(first.plan.instance),
      failure: first.plan.failureOpen ? 'open' : 'closed',
      problems: [],
      held: isEnrolled ? (found.reason ?? found.state) : `UNCONFIRMED: ${names} does not tell of this pod`,
    };
  }

  async #find(pod: Pod): Promise<Decision> {
    const { defaults } = this.#options;
    const said = this.#lastWords.of(pod);
    const {
      enrolled,
      failure,
      other,
      mode,
      selection,
      problems: misunderstood,
    } = interceptionOf(said, defaults);
    const problems = [...misunderstood, ...(said.note === undefined ? [] : [said.note])];
    const leave = (
      state: LeaveDecision['state'],
      reason: string | undefined,
      retry = false,
    ): LeaveDecision => ({
      kind: 'leave',
      pod,
      state,
      reason,
      failure,
      retry,
    });
    const app = appOf(said);
    const served = servedBy(this.#options, pod.uid, app);
    const { drain, instance, problem } = served;
    this.#rememberDrain(pod.uid, drain);
    if (!enrolled) {
      return leave('NOT_ENROLLED', problemsText(problems));
    }
    if (drain !== undefined && drain.to === undefined) {
      return leave('DRAINED', drainedText(drain.sinceMs));
    }
    const location = await this.#locate(pod);
    if (location.kind === 'refused') {
      const reason = refusalText(location);
      return leave(location.retry ? 'PENDING' : 'REFUSED', reason, location.retry);
    }
    if (instance === undefined) {
      return leave('REFUSED', noInstanceText(app));
    }
    const { shapers, comesFirst } = this.#options;
    const selected = selectedOf(this.#options, selection, served);
    const datagrams = selectedDatagramsOf(this.#options, selection, served);
    const endpoint = (at: HostAttachment, ips: readonly string[]): PlannedEndpoint => ({
      at,
      shaper: shapers.of(at.link.index),
      plan: {
        ifindex: at.link.index,
        instance: instance.number,
        failureOpen: failure === 'open',
        dropOther: other === 'drop',
        bridgeIndex: at.kind === 'bridge' ? at.bridge.index : 0,
        inbound: served.inbound,
        selection: selected,
        datagrams,
        observed: mode === 'observe',
        closing: this.#options.isClosing?.(pod.uid) === true,
        shaped: comesFirst && at.kind === 'routed' && shapers.of(at.link.index) !== undefined,
        ips,
      },
    });
    const further = location.more.map((at) => ({ at, ips: ipsOf(pod, at.podInterface, false) }));
    const first = endpoint(location.primary, ipsOf(pod, location.primary.podInterface, true));
    const others = further.filter(({ ips }) => ips.length > 0).map(({ at, ips }) => endpoint(at, ips));
    return {
      kind: 'intercept',
      pod,
      endpoints: [first, ...others],
      shortfalls: [first, ...others].flatMap((planned) => notShaped(planned, comesFirst)),
      // With the addresses of another interface, all that this one sends would be taken for forged.
      unreachable: [
        ...location.unreachable,
        ...further.filter(({ ips }) => ips.length === 0).map(({ at }) => withoutAddress(at)),
      ],
      instance: instance.name,
      failure,
      problems: problem === undefined ? problems : [...problems, problem],
      held: undefined,
    };
  }

  #rememberDrain(uid: PodUid, drain: DrainOrder | undefined): void {
    if (drain === undefined) {
      this.#drains.delete(uid);
    } else {
      this.#drains.set(uid, drain);
    }
  }

  async #locate(pod: Pod): Promise<Location> {
    const inside = this.#textInside(pod);
    if (inside === undefined) {
      this.#inside.delete(pod.uid);
    } else {
      this.#inside.set(pod.uid, inside);
    }
    try {
      return await locate(pod, this.#options.links);
    } catch (error) {
      this.#options.log.error({ pod: nameOf(pod), err: error }, 'the pod could not be located');
      const reason = error instanceof Error ? error.message : String(error);
      return { kind: 'refused', code: 'NO_INTERFACE', reason, retry: true };
    }
  }
}
