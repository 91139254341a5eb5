/**
 * Desired against observed, by level: every round reads what the kernel holds, compares it with what the sources
 * want, and applies the difference. Nothing else changes the kernel. A change of a few pods is a round of these alone;
 * the whole is looked at once a second, whether anything has happened or not.
 */

import { setImmediate } from 'node:timers/promises';
import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import type { EndpointTables } from '../datapath/endpoints.js';
import type { DatapathPrograms, Role } from '../datapath/manifest.js';
import type { Attachments } from '../kernel/attachment.js';
import type { InterfaceSysctls } from '../kernel/sysctls.js';
import type { Pod, PodUid } from '../pods/pod.js';
import { type PodStore, REMEMBERED_MS } from '../pods/pod-store.js';
import { type Desired, type DesiredOptions, DesiredStates } from './decisions.js';
import { EndpointProgrammer } from './endpoint-installer.js';
import type { NodeState } from './node-state.js';
import type { Proofs } from './proofs.js';
import type { Repairs } from './repairs.js';
import { type EndpointStatus, statusOf } from './status.js';

/** So many are looked at before whatever else waits has its turn: a few milliseconds. */
const PODS_IN_A_ROW = 50;

export interface ReconcilerOptions extends Omit<DesiredOptions, 'store' | 'log'> {
  readonly store: PodStore;
  readonly node: NodeState;
  readonly programs: DatapathPrograms;
  readonly tables: EndpointTables;
  readonly attachments: Attachments<Role>;
  readonly sysctls: InterfaceSysctls;
  readonly proofs: Proofs;
  readonly repairs: Repairs;
  /** While false, what is pinned is kept even if no source has named it yet. */
  readonly synced: () => boolean;
  readonly log: Log;
  readonly nowMs: Clock;
}

export class Reconciler {
  readonly #options: ReconcilerOptions;
  readonly #desired: DesiredStates;
  readonly #programmer: EndpointProgrammer;
  readonly #statuses = new Map<PodUid, EndpointStatus>();
  readonly #gone = new Map<PodUid, number>();
  readonly #watchers = new Set<(uid: PodUid) => void>();
  #round: Promise<void> | undefined;
  #wholeDue = false;
  #due = new Set<PodUid>();
  #stalePrograms = true;
  #looking = false;

  constructor(options: ReconcilerOptions) {
    this.#options = options;
    this.#desired = new DesiredStates(options);
    this.#programmer = new EndpointProgrammer(options);
  }

  statuses(): readonly EndpointStatus[] {
    return [...this.#statuses.values()];
  }

  statusOf(uid: PodUid): EndpointStatus | undefined {
    return this.#statuses.get(uid);
  }

  nodeProblem(): string | undefined {
    return this.#options.node.problem();
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
    await this.reconcilePods(await this.#desired.affectedBy(ifindexes));
  }

  /** Finds interfaces that came or went inside a pod without a word to the host; a few pods at each call. */
  async lookInside(): Promise<void> {
    if (this.#looking) {
      return;
    }
    this.#looking = true;
    try {
      await this.reconcilePods(await this.#desired.changedInside());
    } finally {
      this.#looking = false;
    }
  }

  /** Asks every pod whose proof is old for a new one. */
  async prove(): Promise<void> {
    const targets = [...this.#statuses.keys()].flatMap((uid) => this.#programmer.get(uid) ?? []);
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
    const touched = await this.#desired.update(uids);
    await this.#options.node.addresses(this.#addresses());
    await this.#apply(touched);
  }

  async #whole(): Promise<void> {
    const { programs, synced } = this.#options;
    const touched = await this.#desired.update('all');
    await this.#options.node.ensure(this.#addresses());
    const all = [...touched];
    for (let from = 0; from < all.length; from += PODS_IN_A_ROW) {
      await this.#apply(all.slice(from, from + PODS_IN_A_ROW));
      await setImmediate();
      await this.#dueInBetween();
    }
    if (synced()) {
      this.#withdrawUnwanted();
      this.#forget();
      if (this.#stalePrograms) {
        programs.removeStalePrograms();
        this.#stalePrograms = false;
      }
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

  #addresses(): Set<string> {
    return new Set(this.#desired.desired().flatMap(({ pod }) => pod.ips));
  }

  /** All at once: attaching waits for the kernel, and for several pods it waits no longer than for one. */
  async #apply(uids: Iterable<PodUid>): Promise<void> {
    const fresh: PodUid[] = [];
    await Promise.all(
      [...uids].map(async (uid) => {
        const outcome = this.#desired.outcome(uid);
        if (outcome?.kind === 'desired') {
          await this.#program(outcome);
          if (!this.#options.proofs.has(uid)) {
            fresh.push(uid);
          }
        } else {
          this.#leave(uid);
        }
        this.#publish(uid);
      }),
    );
    void this.#proveFresh(fresh);
  }

  async #program(desired: Desired): Promise<void> {
    const { uid } = desired.pod;
    const kept = new Set(desired.endpoints.map(({ plan }) => plan.ifindex));
    const before = this.#programmer.get(uid)?.desired.endpoints ?? [];
    this.#takeOff(before.filter(({ plan }) => !kept.has(plan.ifindex)));
    this.#gone.delete(uid);
    const { changed } = await this.#programmer.program(desired);
    if (changed) {
      this.#options.proofs.forget(uid);
    }
  }

  /** Not awaited by rounds: an answer that does not come must not hold up the others. */
  async #proveFresh(uids: readonly PodUid[]): Promise<void> {
    const { proofs, log } = this.#options;
    try {
      for (const uid of await proofs.ask(uids.flatMap((uid) => this.#programmer.get(uid) ?? []))) {
        this.#publish(uid);
      }
    } catch (error) {
      log.error({ err: error }, 'asking for proof failed');
    }
  }

  /** A pod that has just gone from the sources, or is not to be intercepted any more. */
  #leave(uid: PodUid): void {
    const before = this.#programmer.get(uid);
    if (before !== undefined && this.#options.synced()) {
      this.#takeOff(before.desired.endpoints);
      this.#programmer.forget(uid);
    }
    this.#options.proofs.forget(uid);
  }

  #takeOff(endpoints: readonly { readonly plan: { readonly ifindex: number } }[]): void {
    const { attachments, tables, sysctls, proofs, log } = this.#options;
    for (const { plan } of endpoints) {
      // Unless another pod has the interface, or its number, by now.
      if (
        this.#desired
          .desired()
          .some((other) => other.endpoints.some((at) => at.plan.ifindex === plan.ifindex))
      ) {
        continue;
      }
      const done = attempt(() => attachments.release({ role: 'egress', ifindex: plan.ifindex }));
      sysctls.restore(plan.ifindex);
      tables.withdraw(plan.ifindex);
      proofs.withdraw(plan.ifindex);
      log.info(
        { ifindex: plan.ifindex, ...(done instanceof Error ? { err: done } : {}) },
        'endpoint withdrawn',
      );
    }
  }

  /** What the kernel holds for nobody: programs come off before the tables that they read. */
  #withdrawUnwanted(): void {
    const { tables, attachments, sysctls, proofs, log } = this.#options;
    const wanted = this.#desired.desired();
    this.#programmer.keep(new Set(wanted.map(({ pod }) => pod.uid)));
    const endpoints = new Set<number>();
    const bridges = new Set<number>();
    for (const { at, plan } of wanted.flatMap((desired) => desired.endpoints)) {
      endpoints.add(plan.ifindex);
      if (at.kind === 'bridge') {
        bridges.add(at.bridge.index);
      }
    }
    for (const attachment of attachments.list()) {
      if (!(attachment.role === 'egress' ? endpoints : bridges).has(attachment.ifindex)) {
        const done = attempt(() => attachments.release(attachment));
        sysctls.restore(attachment.ifindex);
        log.info({ ...attachment, ...(done instanceof Error ? { err: done } : {}) }, 'program detached');
      }
    }
    for (const ifindex of tables.liveInterfaces()) {
      if (!endpoints.has(ifindex)) {
        tables.withdraw(ifindex);
        proofs.withdraw(ifindex);
        log.info({ ifindex }, 'endpoint withdrawn');
      }
    }
  }

  /** Rows of pods that no source has known for a minute. */
  #forget(): void {
    const { store, tables, nowMs } = this.#options;
    for (const { uid } of tables.rows()) {
      if (store.get(uid) !== undefined) {
        this.#gone.delete(uid);
        continue;
      }
      const since = this.#gone.get(uid) ?? nowMs();
      this.#gone.set(uid, since);
      if (nowMs() - since >= REMEMBERED_MS) {
        tables.forget(uid);
        this.#gone.delete(uid);
      }
    }
  }

  #publish(uid: PodUid): void {
    const before = this.#statuses.get(uid);
    const outcome = this.#desired.outcome(uid);
    if (outcome === undefined) {
      this.#statuses.delete(uid);
    } else {
      const status = statusOf(outcome, {
        programmed: this.#programmer.get(uid),
        nodeProblem: this.#options.node.problem(),
        proof: this.#options.proofs.get(uid),
        before,
      });
      this.#statuses.set(uid, status);
      this.#tell(outcome.pod, before, status);
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

/** One interface's failure must not keep the others from being looked at. */
function attempt(step: () => void): Error | undefined {
  try {
    step();
    return undefined;
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}
