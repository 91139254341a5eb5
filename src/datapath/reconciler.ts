/**
 * Desired against observed, by level: every round reads what the kernel holds, compares it with what the sources
 * want, and applies the difference. Nothing else changes the kernel.
 */

import type { FailurePolicy, Pod, PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import { type Desired, type DesiredOptions, DesiredStates } from './desired.js';
import type { EndpointRow, EndpointTables } from './endpoints.js';
import type { RouteSocket } from './netlink.js';
import { ensureTable } from './nftables.js';
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

export interface ReconcilerOptions extends Omit<DesiredOptions, 'store' | 'log'> {
  readonly store: PodStore;
  readonly socket: RouteSocket;
  readonly programs: Programs;
  readonly tables: EndpointTables;
  readonly redirect: Redirect;
  readonly sysctls: InterfaceSysctls;
  readonly settings: PolicyRoutesSettings;
  /** While false, what is pinned is kept even if no source has named it yet. */
  readonly synced: () => boolean;
  readonly log: ReconcilerLog;
  readonly now: () => number;
}

export class Reconciler {
  readonly #options: ReconcilerOptions;
  readonly #statuses = new Map<PodUid, EndpointStatus>();
  readonly #desired: DesiredStates;
  readonly #gone = new Map<PodUid, number>();
  #round: Promise<void> | undefined;
  #again = false;
  #stalePrograms = true;
  /** Why the last round could not put the node-wide parts in place; undefined when they are. */
  #nodeProblem: string | undefined = 'the first round has not run yet';

  constructor(options: ReconcilerOptions) {
    this.#options = options;
    this.#desired = new DesiredStates(options);
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
    const { desired, leftAlone } = await this.#desired.compute();
    for (const { pod, state, reason, failure } of leftAlone) {
      this.#setStatus(pod, state, reason, failure);
    }
    const known = new Set(this.#options.store.list().map((pod) => pod.uid));
    for (const uid of [...this.#statuses.keys()].filter((candidate) => !known.has(candidate))) {
      this.#statuses.delete(uid);
    }
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
