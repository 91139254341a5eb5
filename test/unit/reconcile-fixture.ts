/** What the tests of src/reconcile stand on: pods with veths, decisions about them, and a kernel made of plain values. */

import { vi } from 'vitest';
import type { Log } from '../../src/base/log.js';
import type { Canaries, CanaryResult, CanaryTarget } from '../../src/datapath/canary.js';
import type { EndpointPlan, EndpointRow, EndpointTables } from '../../src/datapath/endpoints.js';
import type { DatapathPrograms, Role } from '../../src/datapath/manifest.js';
import type { Attachment, Attachments } from '../../src/kernel/attachment.js';
import type { InterfaceSysctls } from '../../src/kernel/sysctls.js';
import type { BpfProgram } from '../../src/native/bpf.js';
import type { Link } from '../../src/net/link.js';
import type { Pod, PodUid } from '../../src/pods/pod.js';
import type { InterceptDecision } from '../../src/reconcile/decision.js';
import type { InstallerOptions } from '../../src/reconcile/endpoint-installer.js';
import type { PlannedEndpoint } from '../../src/reconcile/planned-endpoint.js';
import type { RepairKind } from '../../src/reconcile/repairs.js';
import type { LinkReader } from '../../src/runtimes/location.js';
import type { PodLinks } from '../../src/runtimes/pod-links.js';
import { pod } from './api-fixture.js';

export function link(index: number, name: string, rest: Partial<Link> = {}): Link {
  const base = { kind: 'veth', loopback: false, ethernet: true, master: 0 };
  return { index, name, ...base, peerIndex: undefined, peerNamespaceId: undefined, ...rest };
}

/** Pod n has the address 10.66.0.(n + 1) and the namespace /run/netns/n. */
export function podNumber(n: number, fields: Partial<Pod> = {}): Pod {
  return pod(`web-${n}`, { ips: [`10.66.0.${n + 1}`], netns: `/run/netns/${n}`, ...fields });
}

/**
 * Netlink for the pods 0 to `count` - 1: pod n has its veth's host end at ifindex 100 + n, and namespace ids are the
 * pods' numbers.
 */
export class LinksStandIn {
  readonly inside: Link[][];
  readonly host: Map<number, Link>;
  /** Namespaces that cannot be entered any more. */
  readonly gone = new Set<string>();
  readonly looked: string[] = [];
  /** Whose namespaces were asked for the names in them alone. */
  readonly glimpsed: string[] = [];
  readonly forgotten: (number | undefined)[] = [];

  constructor(count: number) {
    const numbers = Array.from({ length: count }, (_, n) => n);
    this.inside = numbers.map((n) => [link(2, 'eth0', { peerIndex: 100 + n, peerNamespaceId: 0 })]);
    this.host = new Map(
      numbers.map((n) => [100 + n, link(100 + n, `veth${n}`, { peerIndex: 2, peerNamespaceId: n })]),
    );
  }

  asPodLinks(): PodLinks {
    let version = 0;
    const answers: LinkReader & Pick<PodLinks, 'forget' | 'version' | 'podLinksText'> = {
      // Whatever a test changes in `host`, nobody is told of.
      get version() {
        return version++;
      },
      hostLink: async (index) => this.host.get(index),
      hostLinkByName: async () => undefined,
      podLinks: async (netns) => {
        this.looked.push(netns);
        if (this.gone.has(netns)) {
          throw Object.assign(new Error('gone'), { code: 'ENOENT' });
        }
        return this.inside[numberOf(netns)] ?? [];
      },
      podLinksText: (netns) => {
        this.glimpsed.push(netns);
        if (this.gone.has(netns)) {
          throw Object.assign(new Error('gone'), { code: 'ENOENT' });
        }
        return JSON.stringify(this.inside[numberOf(netns)]);
      },
      namespaceId: async (netns) => numberOf(netns),
      isHost: async () => false,
      forget: (ifindex) => this.forgotten.push(ifindex),
    };
    return answers as unknown as PodLinks;
  }
}

function numberOf(netns: string): number {
  return Number(netns.split('/').at(-1));
}

export function routed(ifindex: number, plan: Partial<EndpointPlan> = {}): PlannedEndpoint {
  return {
    at: { kind: 'routed', link: link(ifindex, `veth${ifindex}`), podInterface: 'eth0' },
    plan: {
      ifindex,
      instance: 0,
      failureOpen: false,
      dropOther: false,
      bridgeIndex: 0,
      ips: ['10.66.0.1'],
      ...plan,
    },
  };
}

export function bridged(ifindex: number, bridge: Link): PlannedEndpoint {
  return {
    at: {
      kind: 'bridge',
      link: link(ifindex, `veth${ifindex}`, { master: bridge.index }),
      bridge,
      podInterface: 'eth0',
    },
    plan: routed(ifindex, { dropOther: false, bridgeIndex: bridge.index }).plan,
  };
}

/** To intercept pod n at these interfaces. */
export function decision(
  n: number,
  ...endpoints: readonly [PlannedEndpoint, ...PlannedEndpoint[]]
): InterceptDecision {
  return {
    kind: 'intercept',
    pod: podNumber(n),
    endpoints,
    unreachable: [],
    shortfalls: [],
    instance: 'default',
    failure: 'closed',
    problems: [],
    held: undefined,
  };
}

/** No pod's rate is limited. */
export const NO_SHAPERS = {
  shapers: { look: async () => undefined, of: () => undefined },
  comesFirst: true,
};

export function recordingLog() {
  return { info: vi.fn<Log['info']>(), warn: vi.fn<Log['warn']>(), error: vi.fn<Log['error']>() };
}

/** What waits for `opened` goes on when the test says so. */
export function gate() {
  let open = (): void => undefined;
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open: () => open() };
}

export function kernelError(code: string, errno: number): Error {
  return Object.assign(new Error(`the kernel says ${code}`), { code, errno, syscall: 'bpf' });
}

export const PROGRAMS = {
  bridge_steer: { id: 1 },
  pod_egress: { id: 2 },
  socket_lookup: { id: 3 },
  canary: { id: 4 },
} as unknown as DatapathPrograms['programs'];

/** Answers as a test tells it to, for every interface or for one. */
export class CanariesStandIn implements Pick<Canaries, 'prove' | 'remove'> {
  /** The questions of each call. */
  readonly asked: (readonly CanaryTarget[])[] = [];
  /** By ifindex; `answer` where there is none. */
  readonly answers = new Map<number, CanaryResult>();
  readonly removed: number[] = [];
  answer: CanaryResult = { kind: 'proven' };
  /** No answer before. */
  answered: Promise<void> | undefined;
  failure: Error | undefined;

  async prove(targets: readonly CanaryTarget[]): Promise<CanaryResult[]> {
    this.asked.push(targets);
    await this.answered;
    if (this.failure !== undefined) {
      throw this.failure;
    }
    return targets.map(({ ifindex }) => this.answers.get(ifindex) ?? this.answer);
  }

  remove(ifindex: number): void {
    this.removed.push(ifindex);
  }

  /** The interfaces that were asked at since the last call. */
  take(): number[] {
    return this.asked.splice(0).flatMap((targets) => targets.map(({ ifindex }) => ifindex));
  }
}

interface Written {
  readonly row: EndpointRow;
  readonly plan: EndpointPlan;
}

const keyOf = ({ role, ifindex }: Attachment<Role>) => `${role} ${ifindex}`;

/** Holds endpoints, attachments and sysctls, and tells in which order it was asked for what. */
export class KernelStandIn {
  /** Interfaces of pods that have been taken out, and have connections at the proxy. */
  readonly left = new Set<number>();
  /** Of every pod. */
  open = 0;
  readonly connections = () => this.open;
  readonly done: string[] = [];
  /** By ifindex. */
  readonly endpoints = new Map<number, Written>();
  /** By role and ifindex, such as `egress 100`. */
  readonly attached = new Map<string, BpfProgram>();
  readonly rows = new Map<PodUid, EndpointRow>();
  /** Interfaces whose sysctl is not as an interception needs it. */
  readonly sysctlsWrong = new Set<number>();
  /** Steps that fail, by what `done` calls them. */
  readonly failures = new Map<string, Error>();
  readonly repairs: [kind: RepairKind, what: string][] = [];
  /** No number is the same as this one: at every look each endpoint may be another, unless a test counts. */
  tablesVersion = Number.NaN;

  constructor() {
    Object.defineProperty(this.tables, 'version', { get: () => this.tablesVersion });
  }

  readonly tables: Pick<
    EndpointTables,
    | 'enrol'
    | 'write'
    | 'describe'
    | 'verify'
    | 'remove'
    | 'liveInterfaces'
    | 'rows'
    | 'forget'
    | 'plansOf'
    | 'planAt'
    | 'leave'
    | 'leaving'
    | 'rowOf'
    | 'isLive'
    | 'ownerOf'
    | 'addresses'
    | 'version'
  > = {
    version: 0, // see the constructor
    isLive: (row) => this.endpoints.get(row.ifindex)?.row === row,
    enrol: (uid, ifindex, wasEnrolled, isStarting = false) => {
      this.#step(`enrol ${uid} at ${ifindex}`);
      const before = this.rows.get(uid);
      if (before?.ifindex === ifindex && (wasEnrolled || this.endpoints.get(ifindex)?.row === before)) {
        return before;
      }
      const id = before?.id ?? this.rows.size + 1;
      const row = { uid, id, generation: (before?.generation ?? 0) + 1, ifindex, sinceBirth: isStarting };
      this.rows.set(uid, row);
      return row;
    },
    write: (row, plan) => {
      this.#step(`write ${plan.ifindex}`);
      const before = this.endpoints.get(plan.ifindex);
      this.endpoints.set(plan.ifindex, { row, plan });
      if (before === undefined) {
        return ['the endpoint was missing'];
      }
      return isEqual(before, { row, plan }) ? [] : ['the endpoint was not as written'];
    },
    describe: () => undefined,
    verify: (row, plan) => {
      this.#step(`verify ${plan.ifindex}`);
      const held = this.endpoints.get(plan.ifindex);
      return held !== undefined && isEqual(held, { row, plan }) ? undefined : 'not as programmed';
    },
    remove: (ifindex) => {
      this.#step(`remove ${ifindex}`);
      this.endpoints.delete(ifindex);
    },
    liveInterfaces: () => [...this.endpoints.keys()],
    rows: () => [...this.rows.values()],
    rowOf: (uid) => this.rows.get(uid),
    ownerOf: (ifindex) => this.endpoints.get(ifindex)?.row.uid,
    plansOf: (uid) =>
      [...this.endpoints.values()].filter(({ row }) => row.uid === uid).map(({ plan }) => plan),
    planAt: (ifindex) => this.endpoints.get(ifindex)?.plan,
    leave: (ifindex) => {
      this.#step(`leave ${ifindex}`);
      this.left.add(ifindex);
    },
    leaving: () =>
      new Map([...this.left].map((ifindex) => [ifindex, this.endpoints.get(ifindex)?.plan.ips ?? []])),
    addresses: () => new Set([...this.endpoints.values()].flatMap(({ plan }) => plan.ips)),
    forget: (uid) => {
      this.#step(`forget ${uid}`);
      this.rows.delete(uid);
    },
  };

  readonly attachments: Pick<
    Attachments<Role>,
    'attachAsync' | 'isAttached' | 'isInPlace' | 'look' | 'release' | 'list'
  > = {
    look: () => false,
    isInPlace: (attachment, program) => this.attached.get(keyOf(attachment)) === program,
    attachAsync: async (attachment, program) => {
      const key = keyOf(attachment);
      this.#step(`attach ${key}`);
      const before = this.attached.get(key);
      this.attached.set(key, program);
      if (before === undefined) {
        return 'attached';
      }
      return before === program ? 'kept' : 'updated';
    },
    isAttached: (attachment, program) => {
      const key = keyOf(attachment);
      this.#step(`look at ${key}`);
      return this.attached.get(key) === program;
    },
    release: (attachment) => {
      const key = keyOf(attachment);
      this.#step(`detach ${key}`);
      this.attached.delete(key);
    },
    list: () =>
      [...this.attached.keys()].map((key) => {
        const [role, ifindex] = key.split(' ');
        return { role: role as Role, ifindex: Number(ifindex) };
      }),
  };

  readonly sysctls: Pick<InterfaceSysctls, 'ensure' | 'isRight' | 'restore'> = {
    isRight: (_, ifindex) => !this.sysctlsWrong.has(ifindex),
    ensure: (_, ifindex) => {
      this.#step(`sysctl ${ifindex}`);
      return this.sysctlsWrong.delete(ifindex);
    },
    restore: (ifindex) => {
      this.#step(`restore ${ifindex}`);
      return [];
    },
  };

  /** Returns what was done since the last call. */
  take(): string[] {
    return this.done.splice(0);
  }

  note(kind: RepairKind, what: string): void {
    this.repairs.push([kind, what]);
  }

  #step(what: string): void {
    this.done.push(what);
    const failure = this.failures.get(what);
    if (failure !== undefined) {
      throw failure;
    }
  }
}

function isEqual(a: Written, b: Written): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

export const identityOf: InstallerOptions['identityOf'] = ({ namespace, name, serviceAccount, runtime }) => ({
  namespace,
  podName: name,
  serviceAccount,
  app: '',
  runtime,
  spiffeId: '',
});
