/**
 * Desired against observed, by level: every round reads what the kernel holds, compares it with what the sources
 * want, and applies the difference. Nothing else changes the kernel.
 */

import { interceptionOf } from '../pods/annotations.js';
import { appOf, type FailurePolicy, type Pod, type PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import { runtimeOf } from '../runtimes/index.js';
import type { Location } from '../runtimes/runtime.js';
import type { EndpointPlan, EndpointRow, EndpointTables } from './endpoints.js';
import type { RouteSocket } from './netlink.js';
import { ensureTable } from './nftables.js';
import type { PodLinks } from './pod-links.js';
import { ensurePolicyRoutes, type PolicyRoutesSettings } from './policy-routes.js';
import type { Programs } from './programs.js';
import type { Attachment, Redirect } from './redirect.js';
import type { EndpointState, EndpointStatus } from './status.js';
import type { InterfaceSysctls } from './sysctls.js';

const REMEMBER_MS = 60_000;

export interface ReconcilerLog {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export interface ReconcilerOptions {
  readonly store: PodStore;
  readonly links: PodLinks;
  readonly socket: RouteSocket;
  readonly programs: Programs;
  readonly tables: EndpointTables;
  readonly redirect: Redirect;
  readonly sysctls: InterfaceSysctls;
  readonly settings: PolicyRoutesSettings;
  readonly defaults: { readonly enrol: 'labelled' | 'all'; readonly failure: FailurePolicy };
  /** Which instance serves an app; undefined where the configuration has none for it. */
  readonly instanceFor: (
    app: string | undefined,
  ) => { readonly name: string; readonly index: number } | undefined;
  /** While false, what is pinned is kept even if no source has named it yet. */
  readonly synced: () => boolean;
  readonly log: ReconcilerLog;
  readonly now: () => number;
}

type Located = Extract<Location, { kind: 'routed' | 'bridge' }>;

interface Desired {
  readonly pod: Pod;
  readonly location: Located;
  readonly plan: EndpointPlan;
  readonly instance: string;
  readonly failure: FailurePolicy;
  readonly problems: readonly string[];
}

export class Reconciler {
  readonly #options: ReconcilerOptions;
  readonly #statuses = new Map<PodUid, EndpointStatus>();
  readonly #locations = new Map<PodUid, { pod: Pod; location: Location }>();
  readonly #gone = new Map<PodUid, number>();
  #round: Promise<void> | undefined;
  #again = false;
  #stalePrograms = true;
  /** Why the last round could not put the node-wide parts in place; undefined when they are. */
  #nodeProblem: string | undefined = 'the first round has not run yet';

  constructor(options: ReconcilerOptions) {
    this.#options = options;
  }

  statuses(): readonly EndpointStatus[] {
    return [...this.#statuses.values()];
  }

  statusOf(uid: PodUid): EndpointStatus | undefined {
    return this.#statuses.get(uid);
  }

  nodeProblem(): string | undefined {
    return this.#nodeProblem;
  }

  /** Runs a round; a call during a round makes one more follow it, however many calls there were. */
  reconcile(): Promise<void> {
    if (this.#round !== undefined) {
      this.#again = true;
      return this.#round;
    }
    this.#round = this.#rounds().finally(() => {
      this.#round = undefined;
    });
    return this.#round;
  }

  async #rounds(): Promise<void> {
    do {
      this.#again = false;
      await this.#once();
    } while (this.#again);
  }

  async #once(): Promise<void> {
    const { links, tables } = this.#options;
    links.refresh();
    tables.refresh();
    const desired = await this.#desire();
    await this.#ensureNode(desired);
    const attachments = this.#ensureBridges(desired);
    for (const entry of desired) {
      this.#ensureEndpoint(entry);
      attachments.add(`egress-${entry.plan.ifindex}`);
    }
    if (this.#options.synced()) {
      this.#withdraw(desired, attachments);
      this.#forget();
      if (this.#stalePrograms) {
        this.#options.programs.removeStalePrograms();
        this.#stalePrograms = false;
      }
    }
  }

  /** What every known pod should be; those that cannot be get their status here. */
  async #desire(): Promise<Desired[]> {
    const { store } = this.#options;
    const desired: Desired[] = [];
    const pods = store.list();
    const known = new Set(pods.map((pod) => pod.uid));
    for (const uid of [...this.#statuses.keys()].filter((candidate) => !known.has(candidate))) {
      this.#statuses.delete(uid);
      this.#locations.delete(uid);
    }
    for (const pod of pods) {
      const entry = await this.#desireOne(pod);
      if (entry !== undefined) {
        desired.push(entry);
      }
    }
    return this.#refuseSharedInterfaces(desired);
  }

  async #desireOne(pod: Pod): Promise<Desired | undefined> {
    const { defaults, instanceFor } = this.#options;
    const { enrolled, failure, problems } = interceptionOf(pod, defaults);
    const reason = problems.length === 0 ? undefined : problems.join('; ');
    if (!enrolled) {
      this.#setStatus(pod, 'NOT_ENROLLED', reason, failure);
      return undefined;
    }
    const location = await this.#locate(pod);
    if (location.kind === 'refused') {
      this.#setStatus(
        pod,
        location.retry ? 'PENDING' : 'REFUSED',
        `${location.code}: ${location.reason}`,
        failure,
      );
      return undefined;
    }
    const app = appOf(pod);
    const instance = instanceFor(app);
    if (instance === undefined) {
      this.#setStatus(
        pod,
        'REFUSED',
        `NO_INSTANCE: no instance is configured for app ${app ?? '(none)'}`,
        failure,
      );
      return undefined;
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

  /** An interface is evidence of one pod; two that claim it are both refused rather than one of them guessed. */
  #refuseSharedInterfaces(desired: readonly Desired[]): Desired[] {
    const claims = new Map<number, Desired[]>();
    for (const entry of desired) {
      claims.set(entry.plan.ifindex, [...(claims.get(entry.plan.ifindex) ?? []), entry]);
    }
    return [...claims.values()].flatMap((entries) => {
      if (entries.length === 1) {
        return entries;
      }
      for (const { pod, location, failure } of entries) {
        const others = entries
          .filter((other) => other.pod !== pod)
          .map(({ pod: other }) => `${other.namespace}/${other.name}`);
        this.#setStatus(
          pod,
          'REFUSED',
          `INTERFACE_SHARED: ${location.link.name} is also claimed by ${others.join(', ')}`,
          failure,
        );
      }
      return [];
    });
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
      location = { kind: 'refused', code: 'NO_INTERFACE', reason: messageOf(error), retry: true };
    }
    this.#locations.set(pod.uid, { pod, location });
    return location;
  }

  async #ensureNode(desired: readonly Desired[]): Promise<void> {
    const { socket, settings, redirect, programs, log } = this.#options;
    try {
      const ips = [...new Set(desired.flatMap((entry) => entry.pod.ips))];
      const routes = await ensurePolicyRoutes(socket, settings);
      const table = await ensureTable({
        mark: settings.mark,
        pods4: ips.filter((ip) => !ip.includes(':')),
        pods6: ips.filter((ip) => ip.includes(':')),
      });
      const lookup = redirect.attachLookup(programs.programs.reuse);
      const lookups = lookup === 'kept' ? [] : [`socket lookup ${lookup}`];
      for (const what of [...routes.repaired, ...table.repaired, ...lookups]) {
        log.info({ what }, 'put in place');
      }
      this.#nodeProblem = undefined;
    } catch (error) {
      if (this.#nodeProblem !== messageOf(error)) {
        log.error({ err: error }, 'the node-wide parts of the datapath are not in place');
      }
      this.#nodeProblem = messageOf(error);
    }
  }

  #ensureBridges(desired: readonly Desired[]): Set<string> {
    const { programs, redirect, log } = this.#options;
    const names = new Set<string>();
    for (const { location } of desired) {
      if (location.kind !== 'bridge' || names.has(`steer-${location.bridge.index}`)) {
        continue;
      }
      const { index, name } = location.bridge;
      names.add(`steer-${index}`);
      const done = this.#attempt(() =>
        redirect.attach({ role: 'steer', ifindex: index }, programs.programs.bridge_steer),
      );
      if (done instanceof Error) {
        log.error({ bridge: name, err: done }, 'steering could not be attached');
      } else if (done !== 'kept') {
        log.info({ bridge: name, ifindex: index }, `steering ${done}`);
      }
    }
    return names;
  }

  #ensureEndpoint(entry: Desired): void {
    const { tables, redirect, programs, sysctls, log } = this.#options;
    const { pod, location, plan } = entry;
    const attachment: Attachment = { role: 'egress', ifindex: plan.ifindex };
    const wasEnrolled = this.#statuses.get(pod.uid)?.endpointId !== undefined;
    let row: EndpointRow | undefined;
    const outcome = this.#attempt(() => {
      // Where the stack takes the packet in: a bridge's port only passes it on.
      const entrance = location.kind === 'bridge' ? location.bridge : location.link;
      sysctls.ensure(entrance.name, entrance.index);
      row = tables.enrol(pod.uid, plan.ifindex, wasEnrolled);
      this.#gone.delete(pod.uid);
      const changed = tables.program(row, plan);
      const done = redirect.attach(attachment, programs.programs.pod_egress);
      if (changed || done !== 'kept') {
        const fields = {
          pod: `${pod.namespace}/${pod.name}`,
          interface: location.link.name,
          runtime: pod.runtime,
        };
        log.info(
          { ...fields, endpoint: row.id, generation: row.generation, attachment: done },
          'pod programmed',
        );
      }
      return tables.verify(row, plan) ?? this.#missingAttachment(entry, attachment);
    });
    const failed = outcome instanceof Error ? messageOf(outcome) : undefined;
    if (failed !== undefined && this.#statuses.get(pod.uid)?.reason !== failed) {
      log.error({ pod: `${pod.namespace}/${pod.name}`, err: outcome }, 'the pod could not be programmed');
    }
    const missing = failed ?? (outcome as string | undefined) ?? this.#nodeProblem;
    const notes = [
      ...(missing === undefined ? [] : [missing]),
      ...entry.problems,
      ...(location.others.length === 0 ? [] : [`not intercepted in this pod: ${location.others.join(', ')}`]),
    ];
    const state: EndpointState = missing === undefined ? 'INTERCEPTED' : wasEnrolled ? 'DEGRADED' : 'PENDING';
    this.#setStatus(pod, state, notes.length === 0 ? undefined : notes.join('; '), entry.failure, {
      interface: location.link.name,
      ifindex: plan.ifindex,
      topology: location.kind,
      ...(row === undefined ? {} : { endpointId: row.id, generation: row.generation }),
      instance: entry.instance,
      programmed: failed === undefined,
      verified: missing === undefined,
    });
  }

  #missingAttachment({ location }: Desired, attachment: Attachment): string | undefined {
    const { programs, redirect } = this.#options;
    if (!redirect.isAttached(attachment, programs.programs.pod_egress)) {
      return `the program is not attached to ${location.link.name}`;
    }
    if (location.kind === 'bridge') {
      const steer: Attachment = { role: 'steer', ifindex: location.bridge.index };
      if (!redirect.isAttached(steer, programs.programs.bridge_steer)) {
        return `the program is not attached to the bridge ${location.bridge.name}`;
      }
    }
    return undefined;
  }

  /** What the kernel holds for nobody: programs come off before the tables that they read. */
  #withdraw(desired: readonly Desired[], attachments: ReadonlySet<string>): void {
    const { tables, redirect, sysctls, log } = this.#options;
    const wanted = new Set(desired.map((entry) => entry.plan.ifindex));
    for (const attachment of redirect.list()) {
      if (!attachments.has(`${attachment.role}-${attachment.ifindex}`)) {
        const done = this.#attempt(() => redirect.detach(attachment));
        sysctls.restore(attachment.ifindex);
        log.info({ ...attachment, ...(done instanceof Error ? { err: done } : {}) }, 'program detached');
      }
    }
    for (const ifindex of tables.liveInterfaces()) {
      if (!wanted.has(ifindex)) {
        tables.withdraw(ifindex);
        log.info({ ifindex }, 'endpoint withdrawn');
      }
    }
  }

  /** Rows of pods that no source has known for a minute. */
  #forget(): void {
    const { store, tables, now } = this.#options;
    for (const { uid } of tables.rows()) {
      if (store.get(uid) !== undefined) {
        this.#gone.delete(uid);
        continue;
      }
      const since = this.#gone.get(uid) ?? now();
      this.#gone.set(uid, since);
      if (now() - since >= REMEMBER_MS) {
        tables.forget(uid);
        this.#gone.delete(uid);
      }
    }
  }

  #setStatus(
    pod: Pod,
    state: EndpointState,
    reason: string | undefined,
    failure: FailurePolicy,
    programmed: Partial<EndpointStatus> = {},
  ): void {
    const before = this.#statuses.get(pod.uid);
    const status = {
      podUid: pod.uid,
      state,
      reason,
      failure,
      programmed: false,
      verified: false,
      ...programmed,
    };
    this.#statuses.set(pod.uid, status);
    if (before?.state !== state || before.reason !== reason) {
      const level = state === 'REFUSED' || state === 'DEGRADED' ? 'warn' : 'info';
      this.#options.log[level](
        { pod: `${pod.namespace}/${pod.name}`, runtime: pod.runtime, state, reason },
        'pod state',
      );
    }
  }

  /** One pod's failure must not keep the others from being programmed. */
  #attempt<T>(step: () => T): T | Error {
    try {
      return step();
    } catch (error) {
      return error instanceof Error ? error : new Error(String(error));
    }
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
