/**
 * Taking away what is nobody's any more, in three verbs, and what stays for a while though nobody names it. detach: a
 * program comes off an interface. remove: a whole endpoint goes out of the kernel, its program first, for it reads the
 * tables. forget: a pod that no source has known for a while loses the row by which its flows were still answered for.
 */

import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import type { EndpointPlan, EndpointTables } from '../datapath/endpoints.js';
import type { Role } from '../datapath/manifest.js';
import type { Attachment, Attachments } from '../kernel/attachment.js';
import type { InterfaceSysctls } from '../kernel/sysctls.js';
import { REMEMBERED_MS } from '../pods/gone-pods.js';
import type { PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { PodLinks } from '../runtimes/pod-links.js';
import type { InterceptDecision } from './decision.js';
import type { PlannedEndpoint } from './planned-endpoint.js';
import type { Proofs } from './proofs.js';

/**
 * So long a pod that no source names, and that nobody has dropped explicitly, keeps what the kernel holds of it while its
 * interface is there: one answer of a runtime can leave it out, and the next but one cannot be the same mistake. The CRI is
 * asked every 10 s at the least.
 */
export const UNNAMED_MS = 30_000;

/** By role, the interfaces that are not to be touched. */
export type Kept = Readonly<Record<PodRole, ReadonlySet<number>>>;

/** The program at our own interface is the node's, not any pod's. */
type PodRole = Exclude<Role, 'inbound-steer'>;

export interface RemovalOptions {
  readonly store: Pick<PodStore, 'get'>;
  readonly tables: Pick<
    EndpointTables,
    'remove' | 'liveInterfaces' | 'rows' | 'forget' | 'ownerOf' | 'planAt' | 'leave' | 'leaving'
  >;
  /** How many TCP connections proxies of the node have with or for whoever has these addresses. */
  readonly connections: (ips: readonly string[]) => number;
  readonly links: Pick<PodLinks, 'hostLink'>;
  readonly attachments: Pick<Attachments<Role>, 'release' | 'list'>;
  readonly sysctls: Pick<InterfaceSysctls, 'restore'>;
  readonly proofs: Pick<Proofs, 'removeInterface'>;
  readonly log: Pick<Log, 'info' | 'warn'>;
  readonly nowMs: Clock;
  /** For how long a pod that no source knows keeps its row. Default REMEMBERED_MS. */
  readonly rememberMs?: number;
}

export class Removal {
  readonly #options: RemovalOptions;
  /** Since when no source has known a pod that still has a row. */
  readonly #unknownSince = new Map<PodUid, number>();
  readonly #dropped = new Set<PodUid>();
  /** Something stays until a later look, or could not be taken away at this one. */
  #hasLeft = false;

  constructor(options: RemovalOptions) {
    this.#options = options;
  }

  /** Takes endpoints out of the kernel, but those whose interface, or its number, another pod has by now. */
  removeEndpoints(endpoints: readonly PlannedEndpoint[], wanted: readonly InterceptDecision[]): void {
    const { egress } = interfacesOf(wanted);
    for (const { ifindex, inbound } of endpoints.map(({ plan }) => plan)) {
      if (!egress.has(ifindex)) {
        this.#detach({ role: 'egress', ifindex });
        if (inbound === true) {
          this.#detach({ role: 'ingress', ifindex });
        }
        this.#remove(ifindex);
      }
    }
  }

  /**
   * Takes away all that the kernel holds for nobody among `wanted` and is not to be `kept`: programs before the tables that
   * they read. Returns whether there was an endpoint among it.
   */
  removeUnwanted(wanted: readonly InterceptDecision[], kept: Kept = NOTHING): boolean {
    const { tables, attachments } = this.#options;
    const interfaces = interfacesOf(wanted);
    const isUnwanted = ({ role, ifindex }: Attachment<Role>) =>
      role !== 'inbound-steer' && !interfaces[role].has(ifindex) && !kept[role].has(ifindex);
    for (const attachment of attachments.list().filter(isUnwanted)) {
      this.#detach(attachment);
    }
    const unwanted = tables.liveInterfaces().filter((ifindex) => isUnwanted({ role: 'egress', ifindex }));
    for (const ifindex of unwanted) {
      this.#remove(ifindex);
    }
    return unwanted.length > 0;
  }

  /**
   * A pod that is not to be intercepted any more, and is still there: what it has open at the proxy goes on. False where it
   * has nothing open, so that it can be taken out at once.
   */
  leave(plans: readonly Pick<EndpointPlan, 'ifindex' | 'ips'>[]): boolean {
    const { tables, connections } = this.#options;
    if (plans.length === 0 || connections(plans.flatMap(({ ips }) => ips)) === 0) {
      return false;
    }
    for (const { ifindex } of plans) {
      tables.leave(ifindex);
    }
    return true;
  }

  /**
   * What stays of pods that no source names, for UNNAMED_MS, and of those that leave, as long as they have a connection at
   * the proxy; either while their interface is there.
   */
  async kept(): Promise<Kept> {
    const { tables, links, connections } = this.#options;
    const egress = new Set<number>();
    const steer = new Set<number>();
    const ingress = new Set<number>();
    const leaving = tables.leaving();
    for (const ifindex of tables.liveInterfaces()) {
      const uid = tables.ownerOf(ifindex);
      const ips = leaving.get(ifindex);
      const stays = ips === undefined ? uid !== undefined && this.#mayBeBack(uid) : connections(ips) > 0;
      if (uid !== undefined && stays && (await links.hostLink(ifindex)) !== undefined) {
        const held = tables.planAt(ifindex);
        egress.add(ifindex);
        steer.add(held?.bridgeIndex ?? 0);
        if (held?.inbound === true) {
          ingress.add(ifindex);
        }
      }
    }
    this.#hasLeft = egress.size > 0;
    return { egress, steer, ingress };
  }

  /** Nothing is kept or remembered only for a while: as long as nothing else changes there is nothing to take away. */
  get isSettled(): boolean {
    return !this.#hasLeft && this.#unknownSince.size === 0;
  }

  #mayBeBack(uid: PodUid): boolean {
    const { store, nowMs } = this.#options;
    if (store.get(uid) !== undefined || this.#dropped.has(uid)) {
      return false;
    }
    const since = this.#unknownSince.get(uid) ?? nowMs();
    this.#unknownSince.set(uid, since);
    return nowMs() - since < UNNAMED_MS;
  }

  /** A pod that its last source dropped explicitly: nothing of it stays. */
  drop(uid: PodUid): void {
    this.#dropped.add(uid);
  }

  /** A pod that is there after all: its time begins anew when it goes. */
  remember(uid: PodUid): void {
    this.#dropped.delete(uid);
    this.#unknownSince.delete(uid);
  }

  /** Forgets the pods that no source has known for `rememberMs`. */
  forgetGone(): void {
    const { store, tables, nowMs, rememberMs = REMEMBERED_MS } = this.#options;
    for (const { uid } of tables.rows()) {
      if (store.get(uid) !== undefined) {
        this.#unknownSince.delete(uid);
        continue;
      }
      const since = this.#unknownSince.get(uid) ?? nowMs();
      this.#unknownSince.set(uid, since);
      if (nowMs() - since >= rememberMs) {
        tables.forget(uid);
        this.remember(uid);
      }
    }
  }

  /** One interface's failure must not keep the others from being looked at: the next whole round tries again. */
  #detach(attachment: Attachment<Role>): void {
    const { attachments, sysctls, log } = this.#options;
    try {
      attachments.release(attachment);
      log.info({ ...attachment }, 'program detached');
    } catch (error) {
      this.#hasLeft = true;
      log.warn({ ...attachment, err: error }, 'the program could not be detached');
    }
    try {
      sysctls.restore(attachment.ifindex);
    } catch (error) {
      log.warn({ ...attachment, err: error }, 'the sysctl of the interface could not be restored');
    }
  }

  #remove(ifindex: number): void {
    const { tables, proofs, log } = this.#options;
    tables.remove(ifindex);
    proofs.removeInterface(ifindex);
    log.info({ ifindex }, 'endpoint removed');
  }
}

const NOTHING: Kept = { egress: new Set(), steer: new Set(), ingress: new Set() };

/** Which interfaces carry a program of each role. */
function interfacesOf(wanted: readonly InterceptDecision[]): Kept {
  const endpoints = wanted.flatMap((decision) => decision.endpoints);
  return {
    egress: new Set(endpoints.map(({ plan }) => plan.ifindex)),
    steer: new Set(endpoints.flatMap(({ at }) => (at.kind === 'bridge' ? [at.bridge.index] : []))),
    ingress: new Set(endpoints.flatMap(({ plan }) => (plan.inbound === true ? [plan.ifindex] : []))),
  };
}
