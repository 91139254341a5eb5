/**
 * Desired against observed, by level: every round reads what the kernel holds, compares it with what the sources
 * want, and applies the difference. Nothing else changes the kernel. A change of a few pods is a round of these alone;
 * the whole is looked at once a second, whether anything has happened or not.
 */

import { setImmediate } from 'node:timers/promises';
import type { Log } from '../base/log.js';
import type { EndpointTables } from '../datapath/endpoints.js';
import type { DatapathPrograms, Role } from '../datapath/manifest.js';
import type { Attachments } from '../kernel/attachment.js';
import type { FamilyOff } from '../kernel/families.js';
import { isDroppedExplicitly } from '../pods/confirmation.js';
import type { Pod, PodUid } from '../pods/pod.js';
import type { BridgeMemory } from './bridge-memory.js';
import type { Decision, InterceptDecision } from './decision.js';
import { Decisions, type DecisionsOptions } from './decisions.js';
import { EndpointInstaller, type InstallerOptions } from './endpoint-installer.js';
import { type Explanation, type ExplanationParts, explain, type SupposedFlow } from './explanation.js';
import type { NodeState } from './node-state.js';
import type { PlannedEndpoint } from './planned-endpoint.js';
import type { Proofs } from './proofs.js';
import { Removal, type RemovalOptions } from './removal.js';
import type { StartPart } from './starting-pods.js';
import { type EndpointStatus, statusOf } from './status.js';

/**
 * A whole round leaves out the pods of which nothing has changed since the last one, as far as that is told by comparing
 * the inputs with themselves: every so many rounds it looks at all of them in full.
 */
const THOROUGH_EVERY = 10;

/** So many are looked at before whatever else waits has its turn: a few milliseconds. */
const PODS_IN_A_ROW = 50;

export interface ReconcilerOptions
  extends Omit<DecisionsOptions & InstallerOptions & RemovalOptions, 'programs' | 'proofs' | 'log'> {
  readonly bridges: Pick<BridgeMemory, 'renew'>;
  readonly node: Pick<NodeState, 'problem' | 'familiesOff' | 'ensure' | 'addresses'>;
  readonly tables: (DecisionsOptions & InstallerOptions & RemovalOptions)['tables'] &
    Pick<EndpointTables, 'addresses' | 'version'>;
  readonly attachments: (InstallerOptions & RemovalOptions)['attachments'] & Pick<Attachments<Role>, 'look'>;
  readonly programs: Pick<DatapathPrograms, 'programs' | 'removeStalePrograms'>;
  readonly proofs: Pick<Proofs, 'get' | 'has' | 'ask' | 'renew' | 'forget' | 'removeInterface'>;
  /** While false, what is pinned is kept even if no source has named it yet. */
  readonly synced: () => boolean;
  readonly log: Log;
}

export class Reconciler {
  readonly #options: ReconcilerOptions;
  readonly #decisions: Decisions;
  readonly #installer: EndpointInstaller;
  readonly #removal: Removal;
  readonly #statuses = new Map<PodUid, EndpointStatus>();
  readonly #watchers = new Set<(uid: PodUid) => void>();
  #round: Promise<void> | undefined;
  #wholeDue = false;
  #due = new Set<PodUid>();
  /** A whole round that began when every source had delivered has ended. */
  #caughtUp = false;
  #looking = false;
  /** Endpoints went since the node was told whose addresses count. */
  #addressesOld = false;
  #looks = 0;
  /** The last result, and what it was made of. */
  #addressesSeen: { wanted: unknown; version: number; addresses: Set<string> } | undefined;
  /** With what the last look for something unwanted found nothing that may become so by time alone. */
  #cleanWith: { wanted: unknown; version: number } | undefined;
  /** What the status of each pod was decided by. */
  readonly #inputs = new Map<PodUid, readonly unknown[]>();

  constructor(options: ReconcilerOptions) {
    this.#options = options;
    this.#decisions = new Decisions(options);
    this.#installer = new EndpointInstaller(options);
    this.#removal = new Removal(options);
  }

  statuses(): readonly EndpointStatus[] {
    return [...this.#statuses.values()];
  }

  statusOf(uid: PodUid): EndpointStatus | undefined {
    return this.#statuses.get(uid);
  }

  /** What would become of a flow of the pod. */
  explain(
    uid: PodUid,
    flow: SupposedFlow,
    node: Pick<ExplanationParts, 'hasListener' | 'atNode' | 'openUdpPorts'>,
  ): Explanation {
    const { tables } = this.#options;
    return explain(flow, {
      decision: this.#decisions.of(uid),
      status: this.#statuses.get(uid),
      isInKernel: (of, ifindex, selection) => {
        const plan = tables.planAt(ifindex);
        return (of === 'flows' ? plan?.selection : plan?.datagrams)?.key === selection?.key;
      },
      ...node,
    });
  }

  nodeProblem(): string | undefined {
    return this.#options.node.problem();
  }

  familiesOff(): readonly FamilyOff[] {
    return this.#options.node.familiesOff();
  }

  /**
   * Whether the pods that the sources named when they had all delivered have been seen to: in place, or told why not.
   */
  caughtUp(): boolean {
    return this.#caughtUp;
  }

  /** Calls `listener` whenever the status of a pod is another. The function returned ends it. */
  onStatus(listener: (uid: PodUid) => void): () => void {
    this.#watchers.add(listener);
    return () => {
      this.#watchers.delete(listener);
    };
  }

  /** Looks at everything. A call during a round makes one more follow it, however many calls there were. */
  reconcile(): Promise<void> {
    this.#wholeDue = true;
    return this.#start();
  }

  /** Another list of instances holds from now on. */
  instancesChanged(): Promise<void> {
    this.#decisions.instancesChanged();
    return this.reconcile();
  }

  /** Other pods are drained from now on, or are not any more. */
  drainsChanged(): Promise<void> {
    return this.reconcilePods(this.#decisions.drainsChanged());
  }

  /** A pod is about to end, or is not any more; resolves when the kernel knows. */
  closingChanged(uid: PodUid): Promise<void> {
    this.#decisions.closingChanged(uid);
    return this.reconcilePods([uid]);
  }

  /** Looks at these pods only, at once. */
  reconcilePods(uids: Iterable<PodUid>): Promise<void> {
    for (const uid of uids) {
      this.#due.add(uid);
    }
    return this.#start();
  }

  /** Interfaces of the host that came, changed or went. */
  async linksChanged(ifindexes: ReadonlySet<number>): Promise<void> {
    for (const ifindex of ifindexes) {
      this.#options.links.forget(ifindex);
    }
    await this.reconcilePods(await this.#decisions.affectedBy(ifindexes));
  }

  /** Finds interfaces that came or went inside a pod without a word to the host; a few pods at each call. */
  async lookInside(): Promise<void> {
    if (this.#looking) {
      return;
    }
    this.#looking = true;
    try {
      await this.reconcilePods(await this.#decisions.changedInside());
    } finally {
      this.#looking = false;
    }
  }

  /** Asks every pod whose proof is old for a new one. */
  async prove(): Promise<void> {
    const targets = [...this.#statuses.keys()].flatMap((uid) => this.#installer.get(uid) ?? []);
    for (const uid of await this.#options.proofs.renew(targets)) {
      this.#publish(uid);
    }
  }

  #start(): Promise<void> {
    this.#round ??= this.#rounds().finally(() => {
      this.#round = undefined;
    });
    return this.#round;
  }

  async #rounds(): Promise<void> {
    while (this.#wholeDue || this.#due.size > 0) {
      const uids = this.#due;
      this.#due = new Set();
      // The few that have just changed do not wait for the many that most likely have not.
      if (uids.size > 0) {
        await this.#few(uids);
      } else {
        this.#wholeDue = false;
        await this.#whole();
      }
    }
  }

  async #few(uids: ReadonlySet<PodUid>): Promise<void> {
    this.#ended(uids, 'queueing');
    const touched = await this.#decisions.update(uids);
    this.#ended(uids, 'deciding');
    await this.#options.node.addresses(this.#addresses());
    this.#ended(uids, 'addressing');
    await this.#apply(touched, false);
    await this.#dropAddresses();
  }

  /** For those that wait to start. */
  #ended(uids: ReadonlySet<PodUid>, part: StartPart): void {
    for (const uid of uids) {
      this.#options.starting.ended(uid, part);
    }
  }

  async #whole(): Promise<void> {
    const { programs, synced } = this.#options;
    // A source that delivers during the round names pods that this round has not decided on: nothing of them may go.
    const knewAll = synced();
    const isQuick = this.#looks++ % THOROUGH_EVERY !== 0;
    const hasOtherPins = this.#options.attachments.look();
    const touched = await this.#decisions.update('all');
    await this.#options.node.ensure(this.#addresses());
    const all = [...touched];
    for (let from = 0; from < all.length; from += PODS_IN_A_ROW) {
      await this.#apply(all.slice(from, from + PODS_IN_A_ROW), isQuick);
      await setImmediate();
      await this.#dueInBetween();
    }
    // Nothing of the round depends on it, and a pod that starts does not wait for it.
    void this.#options.bridges.renew(this.#decisions.toIntercept().flatMap(({ endpoints }) => endpoints));
    if (!knewAll) {
      return;
    }
    await this.#removeUnwanted(isQuick && !hasOtherPins);
    await this.#dropAddresses();
    if (!this.#caughtUp) {
      programs.removeStalePrograms();
      this.#caughtUp = true;
    }
  }

  /** A pod that starts meanwhile does not wait for all the others to be looked at. */
  async #dueInBetween(): Promise<void> {
    const uids = this.#due;
    if (uids.size > 0) {
      this.#due = new Set();
      await this.#few(uids);
    }
  }

  /** Those that are wanted, and those that the kernel holds for whomever: a pod that no source names yet sends too. */
  #addresses(): Set<string> {
    const wanted = this.#decisions.toIntercept();
    const { version } = this.#options.tables;
    const seen = this.#addressesSeen;
    if (seen?.wanted === wanted && seen.version === version) {
      return seen.addresses;
    }
    // For each pod that comes or goes over all that are there: nothing is built that is not needed.
    const addresses = new Set<string>();
    for (const { endpoints } of wanted) {
      for (const { plan } of endpoints) {
        for (const ip of plan.ips) {
          addresses.add(ip);
        }
      }
    }
    for (const ip of this.#options.tables.addresses()) {
      addresses.add(ip);
    }
    this.#addressesSeen = { wanted, version, addresses };
    return addresses;
  }

  async #dropAddresses(): Promise<void> {
    if (this.#addressesOld) {
      this.#addressesOld = false;
      await this.#options.node.addresses(this.#addresses());
    }
  }

  /**
   * All at once: attaching waits for the kernel, and for several pods it waits no longer than for one. `isQuick`: without
   * those that are as they were.
   */
  async #apply(uids: Iterable<PodUid>, isQuick: boolean): Promise<void> {
    const fresh: PodUid[] = [];
    const ended = (uid: PodUid) => {
      if (!this.#options.proofs.has(uid)) {
        fresh.push(uid);
      }
      this.#publish(uid);
    };
    const installing: Promise<void>[] = [];
    for (const uid of uids) {
      const decision = this.#decisions.of(uid);
      if (decision?.kind !== 'intercept') {
        this.#leave(uid, decision);
        this.#publish(uid);
      } else if (isQuick && this.#isUntouched(decision)) {
        ended(uid);
      } else {
        installing.push(this.#install(decision).then(() => ended(uid)));
      }
    }
    await Promise.all(installing);
    if (fresh.length > 0) {
      void this.#proveFresh(fresh);
    }
  }

  #isUntouched(decision: InterceptDecision): boolean {
    try {
      return this.#installer.isUntouched(decision);
    } catch {
      return false; // the look in full meets the same, and tells it
    }
  }

  async #install(decision: InterceptDecision): Promise<void> {
    const { uid } = decision.pod;
    // Intercepted without the node's parts, its packets would be tracked and translated, or lost.
    if (this.nodeProblem() !== undefined && !this.#installer.isAttached(decision)) {
      return;
    }
    const kept = new Set(decision.endpoints.map(({ plan }) => plan.ifindex));
    const before = this.#installer.get(uid)?.decision.endpoints ?? [];
    this.#remove(before.filter(({ plan }) => !kept.has(plan.ifindex)));
    this.#removal.remember(uid);
    const { changed } = await this.#installer.install(decision);
    if (changed) {
      this.#options.proofs.forget(uid);
    }
  }

  /** Not awaited by rounds: an answer that does not come must not hold up the others. */
  async #proveFresh(uids: readonly PodUid[]): Promise<void> {
    const { proofs, log } = this.#options;
    try {
      for (const uid of await proofs.ask(uids.flatMap((uid) => this.#installer.get(uid) ?? []))) {
        this.#publish(uid);
      }
    } catch (error) {
      log.error({ err: error }, 'asking for proof failed');
    }
  }

  /**
   * A pod that has just gone from the sources, or is not to be intercepted any more. One that is missing without a word
   * stays in the kernel for a while: see `Removal.unnamed`.
   */
  #leave(uid: PodUid, decision: Decision | undefined): void {
    const before = this.#installer.get(uid);
    if (before !== undefined) {
      const isDropped = decision !== undefined || isDroppedExplicitly(before.decision.pod);
      if (isDropped) {
        this.#removal.drop(uid);
      }
      if (this.#options.synced()) {
        const { endpoints } = before.decision;
        const stays = decision !== undefined && this.#removal.leave(endpoints.map(({ plan }) => plan));
        this.#remove(isDropped && !stays ? endpoints : []);
        this.#installer.forget(uid);
      }
    } else if (decision !== undefined && this.#options.synced()) {
      // Decided after the agent before us could still act on it: what it has open there goes on as well.
      this.#removal.leave(this.#options.tables.plansOf(uid));
    }
    this.#options.proofs.forget(uid);
  }

  #remove(endpoints: readonly PlannedEndpoint[]): void {
    if (endpoints.length > 0) {
      this.#addressesOld = true;
      this.#removal.removeEndpoints(endpoints, this.#decisions.toIntercept());
    }
  }

  async #removeUnwanted(isQuick: boolean): Promise<void> {
    const { tables } = this.#options;
    const seen = this.#cleanWith;
    const [wantedNow, version] = [this.#decisions.toIntercept(), tables.version];
    if (isQuick && seen?.wanted === wantedNow && seen.version === version) {
      return;
    }
    const kept = await this.#removal.kept();
    const wanted = this.#decisions.toIntercept();
    this.#installer.forgetAllBut(new Set(wanted.map(({ pod }) => pod.uid)));
    if (this.#removal.removeUnwanted(wanted, kept)) {
      this.#addressesOld = true;
    }
    this.#removal.forgetGone();
    this.#cleanWith = this.#removal.isSettled ? { wanted, version } : undefined;
  }

  #publish(uid: PodUid): void {
    const before = this.#statuses.get(uid);
    const decision = this.#decisions.of(uid);
    if (decision === undefined) {
      this.#statuses.delete(uid);
      this.#inputs.delete(uid);
    } else {
      const observed = {
        installed: this.#installer.get(uid),
        nodeProblem: this.#options.node.problem(),
        familiesOff: this.#options.node.familiesOff(),
        proof: this.#options.proofs.get(uid),
      };
      // The same answer, only later, tells nothing new.
      const inputs = [decision, ...Object.values({ ...observed, proof: observed.proof?.result })];
      if (isSame(inputs, this.#inputs.get(uid))) {
        return; // then the status is the same as well
      }
      this.#inputs.set(uid, inputs);
      const status = statusOf(decision, { ...observed, before });
      this.#statuses.set(uid, status);
      this.#tell(decision.pod, before, status);
    }
    for (const watcher of [...this.#watchers]) {
      watcher(uid);
    }
  }

  #tell(pod: Pod, before: EndpointStatus | undefined, { state, reason }: EndpointStatus): void {
    if (before?.state === state && before.reason === reason) {
      return;
    }
    const level = state === 'REFUSED' || state === 'DEGRADED' ? 'warn' : 'info';
    const { namespace, name, runtime } = pod;
    this.#options.log[level]({ pod: `${namespace}/${name}`, runtime, state, reason }, 'pod state');
  }
}

function isSame(values: readonly unknown[], others: readonly unknown[] | undefined): boolean {
  return values.every((value, index) => value === others?.[index]);
}
