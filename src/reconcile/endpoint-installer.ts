/** Puts one pod's endpoints into the kernel and reads them back: the only place that does. */

import type { Log } from '../base/log.js';
import type { EndpointRow, EndpointTables } from '../datapath/endpoints.js';
import type { EndpointIdentity } from '../datapath/identities.js';
import type { DatapathPrograms, Role } from '../datapath/manifest.js';
import type { Attachment, Attachments, AttachResult } from '../kernel/attachment.js';
import type { InterfaceSysctls } from '../kernel/sysctls.js';
import { isGone } from '../native/errors.js';
import type { Link } from '../net/link.js';
import type { Pod, PodUid } from '../pods/pod.js';
import type { InterceptDecision } from './decision.js';
import type { PlannedEndpoint } from './planned-endpoint.js';
import type { RepairKind, Repairs } from './repairs.js';
import type { StartingPods } from './starting-pods.js';

export interface InstallerOptions {
  readonly programs: Pick<DatapathPrograms, 'programs'>;
  readonly tables: Pick<
    EndpointTables,
    'rowOf' | 'isLive' | 'enrol' | 'write' | 'describe' | 'verify' | 'version'
  >;
  readonly attachments: Pick<Attachments<Role>, 'attachAsync' | 'isAttached' | 'isInPlace'>;
  readonly sysctls: Pick<InterfaceSysctls, 'ensure' | 'isRight'>;
  readonly repairs: Pick<Repairs, 'note'>;
  /** What proxies are told of a pod by system call. */
  readonly identityOf: (pod: Pod) => Omit<EndpointIdentity, 'uid' | 'generation'>;
  /** How many live pods claim an address. */
  readonly claimants: (ip: string) => number;
  /** Pods whose CNI ADD has not been answered yet: they have no process. */
  readonly starting: Pick<StartingPods, 'has' | 'ended'>;
  readonly log: Pick<Log, 'info' | 'warn' | 'error'>;
}

/** What was reached for a pod, as read back. */
export interface Installed {
  readonly decision: InterceptDecision;
  /** Undefined where the pod could not even be given one. */
  readonly row: EndpointRow | undefined;
  /** What is not as it should be; undefined: everything is. */
  readonly missing: string | undefined;
  /** Something that a proof by canary was about has changed. */
  readonly changed: boolean;
}

export class EndpointInstaller {
  readonly #options: InstallerOptions;
  readonly #installed = new Map<PodUid, Installed>();
  /** Of the tables, when the pod was last found or put in place. */
  readonly #versions = new Map<PodUid, number>();
  /** Those that lead to a pod, as told. */
  readonly #addresses = new Map<PodUid, string>();
  /** Of which proxies cannot be told by system call; logged once. */
  readonly #undescribed = new Set<PodUid>();

  constructor(options: InstallerOptions) {
    this.#options = options;
  }

  /** As of the last `install`. */
  get(uid: PodUid): Installed | undefined {
    return this.#installed.get(uid);
  }

  /** Whether the pod is attached, by us or by an agent before us: then it is kept so, whatever the node lacks. */
  isAttached({ pod }: InterceptDecision): boolean {
    const { tables } = this.#options;
    const row = tables.rowOf(pod.uid);
    return this.#installed.get(pod.uid)?.row !== undefined || (row !== undefined && tables.isLive(row));
  }

  forget(uid: PodUid): void {
    this.#installed.delete(uid);
    this.#versions.delete(uid);
    this.#addresses.delete(uid);
    this.#undescribed.delete(uid);
  }

  forgetAllBut(uids: ReadonlySet<PodUid>): void {
    for (const uid of [...this.#installed.keys()].filter((candidate) => !uids.has(candidate))) {
      this.forget(uid);
    }
  }

  /**
   * Whether `install` would find everything as it left it: decision and tables are the very same as then, and each
   * program and sysctl, of whose changes nothing else tells, is where it was. Throws where the kernel cannot be asked.
   */
  isUntouched(decision: InterceptDecision): boolean {
    const { pod, endpoints } = decision;
    const before = this.#installed.get(pod.uid);
    const { tables, sysctls, claimants } = this.#options;
    return (
      before?.decision === decision &&
      before.missing === undefined &&
      this.#versions.get(pod.uid) === tables.version &&
      this.#addresses.get(pod.uid) === addressesOf(decision, claimants).join() &&
      endpoints.every((endpoint) => {
        const entrance = entranceOf(endpoint);
        return sysctls.isRight(entrance.name, entrance.index) && this.#isInPlace(endpoint);
      })
    );
  }

  #isInPlace({ at, plan }: PlannedEndpoint): boolean {
    const { attachments } = this.#options;
    const { pod_egress, pod_ingress, bridge_steer } = this.#options.programs.programs;
    const { ifindex } = plan;
    return (
      attachments.isInPlace({ role: 'egress', ifindex }, pod_egress) &&
      (plan.inbound !== true || attachments.isInPlace({ role: 'ingress', ifindex }, pod_ingress)) &&
      (at.kind !== 'bridge' ||
        attachments.isInPlace({ role: 'steer', ifindex: at.bridge.index }, bridge_steer))
    );
  }

  /** Idempotent; repairs what is not as it should be. Never throws: what could not be put in place is `missing`. */
  async install(decision: InterceptDecision): Promise<Installed> {
    const { pod, endpoints } = decision;
    const { tables, log } = this.#options;
    const before = this.#installed.get(pod.uid);
    let row: EndpointRow | undefined;
    let missing: string | undefined;
    let changed = false;
    try {
      const isStarting = this.#options.starting.has(pod.uid);
      row = tables.enrol(pod.uid, endpoints[0].plan.ifindex, before?.row !== undefined, isStarting);
      changed = row !== before?.row;
      this.#describe(row, decision, changed ? undefined : before?.decision);
      for (const endpoint of endpoints) {
        const wasThere =
          !changed &&
          before?.missing === undefined &&
          before?.decision.endpoints.some((other) => isSame(other, endpoint)) === true;
        const done = await this.#endpoint(row, decision, endpoint, wasThere);
        changed ||= done;
        // What was found as it should be has just been read; what was written, or missing at the last look, is read back.
        if (done || before?.missing !== undefined) {
          missing ??= tables.verify(row, endpoint.plan) ?? this.#missingAttachment(endpoint);
        }
      }
    } catch (error) {
      missing = error instanceof Error ? error.message : String(error);
      if (isGone(error)) {
        log.info({ pod: nameOf(decision), reason: missing }, 'the interface of the pod has just gone');
      } else if (before?.missing !== missing) {
        log.error({ pod: nameOf(decision), err: error }, 'the pod could not be programmed');
      }
    }
    this.#options.starting.ended(pod.uid, 'installing');
    const result: Installed = { decision, row, missing, changed };
    this.#versions.set(pod.uid, tables.version);
    this.#installed.set(pod.uid, result);
    return result;
  }

  /** An address that another pod claims as well, be it enrolled or not, leads to nobody. */
  #describe(row: EndpointRow, decision: InterceptDecision, before?: InterceptDecision): void {
    const { pod } = decision;
    const { tables, identityOf, claimants, log } = this.#options;
    const ips = addressesOf(decision, claimants);
    const key = ips.join();
    if (before?.pod === pod && this.#addresses.get(pod.uid) === key) {
      return;
    }
    try {
      tables.describe(row, identityOf(pod), ips);
      this.#addresses.set(pod.uid, key);
      this.#undescribed.delete(pod.uid);
    } catch (error) {
      // Its traffic does not wait for that: proxies have the other doors, and the next look tries again.
      this.#addresses.delete(pod.uid);
      if (!this.#undescribed.has(pod.uid)) {
        this.#undescribed.add(pod.uid);
        log.warn({ pod: nameOf(decision), err: error }, 'proxies cannot ask by system call who it is');
      }
    }
  }

  /** Returns whether anything had to be done. `wasThere`: it should have been in place already. */
  async #endpoint(
    row: EndpointRow,
    decision: InterceptDecision,
    { at, plan }: PlannedEndpoint,
    wasThere: boolean,
  ): Promise<boolean> {
    const { tables, attachments, programs, sysctls, log, repairs } = this.#options;
    const fields = { pod: nameOf(decision), interface: at.link.name };
    const repaired = (kind: RepairKind, what: string) => {
      if (wasThere) {
        repairs.note(kind, what, fields);
      }
    };
    const entrance = entranceOf({ at });
    if (sysctls.ensure(entrance.name, entrance.index)) {
      repaired('sysctl', `net.ipv4.conf.${entrance.name}.accept_local was 0`);
    }
    const changes = tables.write(row, plan);
    for (const what of changes) {
      repaired('map', what);
    }
    let steered: AttachResult = 'kept';
    if (at.kind === 'bridge') {
      const steer: Attachment<Role> = { role: 'steer', ifindex: at.bridge.index };
      steered = await attachments.attachAsync(steer, programs.programs.bridge_steer);
      if (steered !== 'kept') {
        repaired('attachment', `steering at ${at.bridge.name} was gone: ${steered}`);
        log.info({ bridge: at.bridge.name, ifindex: at.bridge.index }, `steering ${steered}`);
      }
    }
    const egress: Attachment<Role> = { role: 'egress', ifindex: plan.ifindex };
    const done = await attachments.attachAsync(egress, programs.programs.pod_egress);
    if (done !== 'kept') {
      repaired('attachment', `the program at ${at.link.name} was ${was(done)}`);
    }
    const received = plan.inbound === true ? await this.#ingress(plan.ifindex) : 'kept';
    if (received !== 'kept') {
      repaired('attachment', `the program for what the pod at ${at.link.name} is sent was ${was(received)}`);
    }
    const changed = changes.length > 0 || [steered, done, received].some((result) => result !== 'kept');
    if (changed && !wasThere) {
      const { id, generation } = row;
      log.info(
        { ...fields, runtime: decision.pod.runtime, endpoint: id, generation, attachment: done },
        'pod programmed',
      );
    }
    return changed;
  }

  #ingress(ifindex: number): Promise<AttachResult> {
    const { attachments, programs } = this.#options;
    return attachments.attachAsync({ role: 'ingress', ifindex }, programs.programs.pod_ingress);
  }

  #missingAttachment({ at, plan }: PlannedEndpoint): string | undefined {
    const { programs, attachments } = this.#options;
    const ingress: Attachment<Role> = { role: 'ingress', ifindex: plan.ifindex };
    if (plan.inbound === true && !attachments.isAttached(ingress, programs.programs.pod_ingress)) {
      return `the program for what the pod is sent is not attached to ${at.link.name}`;
    }
    if (!attachments.isAttached({ role: 'egress', ifindex: plan.ifindex }, programs.programs.pod_egress)) {
      return `the program is not attached to ${at.link.name}`;
    }
    if (at.kind === 'bridge') {
      const steer: Attachment<Role> = { role: 'steer', ifindex: at.bridge.index };
      if (!attachments.isAttached(steer, programs.programs.bridge_steer)) {
        return `the program is not attached to the bridge ${at.bridge.name}`;
      }
    }
    return undefined;
  }
}

/** Where the stack takes the packet in: a bridge's port only passes it on. */
function entranceOf({ at }: Pick<PlannedEndpoint, 'at'>): Link {
  return at.kind === 'bridge' ? at.bridge : at.link;
}

/** Those that lead to the pod: none that another claims as well. */
function addressesOf(
  { endpoints }: InterceptDecision,
  claimants: InstallerOptions['claimants'],
): readonly string[] {
  return endpoints.flatMap(({ plan }) => plan.ips).filter((ip) => claimants(ip) < 2);
}

function was(done: AttachResult): string {
  return done === 'attached' ? 'gone' : 'of another build';
}

function isSame(a: PlannedEndpoint, b: PlannedEndpoint): boolean {
  return (
    a.plan === b.plan ||
    (a.plan.ifindex === b.plan.ifindex &&
      a.plan.instance === b.plan.instance &&
      a.plan.failureOpen === b.plan.failureOpen &&
      a.plan.dropOther === b.plan.dropOther &&
      (a.plan.shaped ?? false) === (b.plan.shaped ?? false) &&
      (a.plan.inbound ?? false) === (b.plan.inbound ?? false) &&
      (a.plan.observed ?? false) === (b.plan.observed ?? false) &&
      a.plan.selection?.key === b.plan.selection?.key &&
      a.plan.bridgeIndex === b.plan.bridgeIndex &&
      a.plan.ips.join() === b.plan.ips.join())
  );
}

function nameOf({ pod }: InterceptDecision): string {
  return `${pod.namespace}/${pod.name}`;
}
