/**
 * Taking away what is nobody's any more, in three verbs. detach: a program comes off an interface. remove: a whole
 * endpoint goes out of the kernel, its program first, for it reads the tables. forget: a pod that no source has known
 * for a while loses the row by which its flows were still answered for.
 */

import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import type { EndpointTables } from '../datapath/endpoints.js';
import type { Role } from '../datapath/manifest.js';
import type { Attachment, Attachments } from '../kernel/attachment.js';
import type { InterfaceSysctls } from '../kernel/sysctls.js';
import { REMEMBERED_MS } from '../pods/gone-pods.js';
import type { PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { InterceptDecision, PlannedEndpoint } from './decisions.js';
import type { Proofs } from './proofs.js';

export interface RemovalOptions {
  readonly store: Pick<PodStore, 'get'>;
  readonly tables: Pick<EndpointTables, 'remove' | 'liveInterfaces' | 'rows' | 'forget'>;
  readonly attachments: Pick<Attachments<Role>, 'release' | 'list'>;
  readonly sysctls: Pick<InterfaceSysctls, 'restore'>;
  readonly proofs: Pick<Proofs, 'removeInterface'>;
  readonly log: Pick<Log, 'info' | 'warn'>;
  readonly nowMs: Clock;
}

export class Removal {
  readonly #options: RemovalOptions;
  /** Since when no source has known a pod that still has a row. */
  readonly #unknownSince = new Map<PodUid, number>();

  constructor(options: RemovalOptions) {
    this.#options = options;
  }

  /** Takes endpoints out of the kernel, but those whose interface, or its number, another pod has by now. */
  removeEndpoints(endpoints: readonly PlannedEndpoint[], wanted: readonly InterceptDecision[]): void {
    const { egress } = interfacesOf(wanted);
    for (const { ifindex } of endpoints.map(({ plan }) => plan)) {
      if (!egress.has(ifindex)) {
        this.#detach({ role: 'egress', ifindex });
        this.#remove(ifindex);
      }
    }
  }

  /** Takes away all that the kernel holds for nobody among `wanted`: programs before the tables that they read. */
  removeUnwanted(wanted: readonly InterceptDecision[]): void {
    const { tables, attachments } = this.#options;
    const interfaces = interfacesOf(wanted);
    for (const attachment of attachments.list()) {
      if (!interfaces[attachment.role].has(attachment.ifindex)) {
        this.#detach(attachment);
      }
    }
    for (const ifindex of tables.liveInterfaces()) {
      if (!interfaces.egress.has(ifindex)) {
        this.#remove(ifindex);
      }
    }
  }

  /** A pod that is there after all: its time begins anew when it goes. */
  remember(uid: PodUid): void {
    this.#unknownSince.delete(uid);
  }

  /** Forgets the pods that no source has known for REMEMBERED_MS. */
  forgetGone(): void {
    const { store, tables, nowMs } = this.#options;
    for (const { uid } of tables.rows()) {
      if (store.get(uid) !== undefined) {
        this.#unknownSince.delete(uid);
        continue;
      }
      const since = this.#unknownSince.get(uid) ?? nowMs();
      this.#unknownSince.set(uid, since);
      if (nowMs() - since >= REMEMBERED_MS) {
        tables.forget(uid);
        this.#unknownSince.delete(uid);
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

/** Which interfaces carry a program of each role. */
function interfacesOf(wanted: readonly InterceptDecision[]): Readonly<Record<Role, ReadonlySet<number>>> {
  const endpoints = wanted.flatMap((decision) => decision.endpoints);
  return {
    egress: new Set(endpoints.map(({ plan }) => plan.ifindex)),
    steer: new Set(endpoints.flatMap(({ at }) => (at.kind === 'bridge' ? [at.bridge.index] : []))),
  };
}
