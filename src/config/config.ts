/** The configuration as the rest of the program reads it: complete, checked, addresses parsed. */

import type { Family } from '../net/family.js';
import type { Mark } from '../net/mark.js';
import type { PortRange } from '../net/ports.js';
import type { EnrolMode, InterceptionMode, OtherProtocols } from '../pods/annotations.js';
import type { FailurePolicy, RuntimeKind } from '../pods/pod.js';
import type { Resources } from '../pods/quantity.js';
import type { SelectionRules } from '../pods/selection.js';

export interface Config {
  readonly node: string;
  readonly trustDomain: string;
  readonly interception: {
    readonly mark: Mark;
    readonly table: number;
    readonly rulePriority: number;
    readonly failure: FailurePolicy;
    readonly enrol: EnrolMode;
    readonly other: OtherProtocols;
    readonly mode: InterceptionMode;
    /** That stay open where other protocols are dropped. */
    readonly udpPorts: readonly number[];
    readonly splice: SpliceMode;
    /** Which flows of any pod, at most: what it does not select, no pod's annotation does. */
    readonly selection: SelectionRules;
  };
  readonly sources: {
    /** Absolute path. */
    readonly static?: { readonly file: string };
    /** `serviceAccount`: of pods whose own no source knows; without it such a pod has no identity. */
    readonly cri?: { readonly endpoint: string; readonly serviceAccount?: string | undefined };
    readonly cni?: CniConfig;
    readonly kubernetes?: KubernetesConfig;
  };
  /** In order of precedence. */
  readonly instances: readonly Instance[];
  /** Who starts the instances that have a command. */
  readonly supervision: { readonly by: (typeof SUPERVISORS)[number] };
  readonly identity: {
    /** For how long a pod that has gone is remembered. */
    readonly rememberSeconds: number;
    /** For how long, and of how many, it is kept who had an address. */
    readonly history: { readonly seconds: number; readonly entries: number };
  };
  /** What the file adds; `runtimeKindOf` knows the built-in names. */
  readonly runtimes: { readonly handlers: Readonly<Record<string, RuntimeKind>> };
  readonly api: { readonly allow: readonly AllowedCaller[]; readonly rateLimit: RateLimit };
  /** Where pods' hooks are answered; undefined: nowhere. */
  readonly lifecycle?: { readonly port: number } | undefined;
  /** Without `listen` metrics are on the Unix socket alone. */
  readonly metrics: { readonly listen?: ListenerAddress | undefined };
  readonly log: { readonly level: LogLevel };
  readonly capacity: CapacityConfig;
}

/** auto: where the kernel does it without a flaw, and for pods that ask for it. */
export const SPLICE_MODES = ['disabled', 'auto', 'enabled'] as const;
export type SpliceMode = (typeof SPLICE_MODES)[number];

/** `resize`: the container of the node's proxy is given what the pods say that it needs. */
export const CAPACITY_MODES = ['report', 'resize'] as const;
export type CapacityMode = (typeof CAPACITY_MODES)[number];

export interface CapacityConfig {
  readonly mode: CapacityMode;
  readonly target?: CapacityTarget | undefined;
  /** What the proxy needs without any pod. */
  readonly base: Resources;
  readonly headroomPercent: number;
  readonly hysteresis: { readonly downSeconds: number; readonly percent: number };
  /** Undefined: none. */
  readonly limit: { readonly cpuMillis?: number | undefined; readonly memoryBytes?: number | undefined };
}

export interface CapacityTarget {
  readonly namespace: string;
  /** Of labels; it names one pod of a node. */
  readonly selector: string;
  readonly container: string;
}

export interface KubernetesConfig {
  /** Absolute path; without one the agent is a pod of the cluster itself. */
  readonly kubeconfig?: string;
  /** What the agent writes at the API server: events on pods, the startup taint taken away, the node's annotation. */
  readonly events: boolean;
  readonly removeStartupTaint: boolean;
  readonly annotateNode: boolean;
}

/** The usual places of a node. */
export const CNI_DEFAULTS = {
  confDir: '/etc/cni/net.d',
  binDir: '/opt/cni/bin',
  stateDir: '/var/lib/nodesentry/cni',
} as const;

export interface CniConfig {
  /** Whether the agent keeps its plugin in the node's CNI configuration. */
  readonly install: boolean;
  /** Absolute paths. */
  readonly confDir: string;
  readonly binDir: string;
  readonly stateDir: string;
  /** What an ADD ends in while the agent is away. */
  readonly failure: FailurePolicy;
  /** For a whole ADD. */
  readonly timeoutMs: number;
}

export interface Instance {
  readonly name: string;
  /** Undefined: every app. */
  readonly apps: readonly string[] | undefined;
  /** Undefined: what no other instance takes. Else the flows to these ports alone, of every app that it serves. */
  readonly ports?: readonly PortRange[] | undefined;
  /** At most one address per family; no address of a family: the failure policy applies to it. */
  readonly outbound: readonly ListenerAddress[];
  readonly inbound: readonly ListenerAddress[];
  /** Where it takes datagrams; default nowhere. */
  readonly outboundUdp?: readonly ListenerAddress[] | undefined;
  readonly inboundUdp?: readonly ListenerAddress[] | undefined;
  /** Where pods dial it by themselves, such as an HTTP proxy. */
  readonly explicit?: readonly ListenerAddress[] | undefined;
  /** Directions that are intercepted even where they have no address: the proxy announces its listeners. */
  readonly announced?: readonly ('outbound' | 'inbound')[] | undefined;
  /** Who may hold the listeners; all that are given must match. */
  readonly owner: ListenerOwner;
  /** When it is asked whether it still accepts (0: never), and how long that may take. */
  readonly health: { readonly checkSeconds: number; readonly failSeconds: number };
  /** How it is started; undefined: others do that. */
  readonly run?: InstanceRun | undefined;
}

export interface InstanceRun {
  /** The absolute path of an executable, and its arguments. */
  readonly command: readonly [string, ...string[]];
  /** In which it finds PATH besides. */
  readonly environment: Readonly<Record<string, string>>;
  readonly directory: string;
  /** Undefined: those of its supervisor. */
  readonly user?: number | undefined;
  readonly group?: number | undefined;
  /** `handed`: the supervisor opens the listeners; `own`: the command does. */
  readonly sockets: (typeof SOCKET_MODES)[number];
  /** For so long it is kept after the last pod of its apps has gone. */
  readonly graceSeconds: number;
  /** For so long after `stopSignal` it may go on. */
  readonly stopSeconds: number;
  readonly stopSignal: (typeof STOP_SIGNALS)[number];
  readonly limits: InstanceLimits;
}

/** `separate`: `nodesentry supervise`, in a process of its own. */
export const SUPERVISORS = ['agent', 'separate'] as const;

/** HAProxy ends after its last connection at SIGUSR1, nginx at SIGQUIT. */
export const STOP_SIGNALS = ['SIGTERM', 'SIGINT', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2'] as const;

export const SOCKET_MODES = ['handed', 'own'] as const;

/** Of all its processes together. */
export interface InstanceLimits {
  readonly memory?: number | undefined;
  /** Thousandths of a processor. */
  readonly cpu?: number | undefined;
  readonly pids?: number | undefined;
}

export interface ListenerOwner {
  readonly uid?: number | undefined;
  readonly gid?: number | undefined;
  readonly exe?: string | undefined;
  readonly cgroup?: string | undefined;
}

export interface ListenerAddress {
  readonly host: string;
  readonly port: number;
  readonly family: Family;
  /** Canonical `host:port` or `[host]:port`. */
  readonly text: string;
}

/**
 * `resolve`: who somebody is. `watch`: who is on the node, and what changes of it. `admin`: how the agent is and what goes
 * through it: status, flows, metrics.
 */
export const SCOPES = ['resolve', 'watch', 'admin'] as const;
export type Scope = (typeof SCOPES)[number];

export type AllowedCaller = (
  | { readonly uid: number }
  | { readonly gid: number }
  | { readonly exe: string }
) & {
  /** Default all. */
  readonly scopes?: readonly Scope[] | undefined;
};

/** Of one caller. */
export interface RateLimit {
  /** Questions: each of a batch counts. */
  readonly perSecond: number;
  /** At once, after a pause. */
  readonly burst: number;
}

export const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** The proxy instance that serves an app: the first of the list that matches, but for those of certain ports alone. */
export function instanceFor(
  config: Pick<Config, 'instances'>,
  app: string | undefined,
): Instance | undefined {
  return config.instances.find((instance) => instance.ports === undefined && serves(instance, app));
}

/**
 * The instances that take the app's flows to certain ports, the one that takes a port first where several name it: those of
 * the app before those of every app, and then in the order of the list.
 */
export function portInstancesFor(
  config: Pick<Config, 'instances'>,
  app: string | undefined,
): readonly Instance[] {
  const all = config.instances.filter((instance) => instance.ports !== undefined && serves(instance, app));
  return [...all.filter(({ apps }) => apps !== undefined), ...all.filter(({ apps }) => apps === undefined)];
}

/** All of both. */
export function instancesFor(
  config: Pick<Config, 'instances'>,
  app: string | undefined,
): readonly Instance[] {
  const main = instanceFor(config, app);
  return [...portInstancesFor(config, app), ...(main === undefined ? [] : [main])];
}

/** Whether it is for UDP alone: of TCP nothing goes to it, and it has no listener for it. */
export function takesDatagramsOnly({ ports, outbound, inbound, announced }: Instance): boolean {
  return ports !== undefined && outbound.length + inbound.length === 0 && announced === undefined;
}

function serves({ apps }: Instance, app: string | undefined): boolean {
  return apps === undefined || (app !== undefined && apps.includes(app));
}

/** Whether an address without a family of its own also takes IPv4: `[::]`, alone in its list. */
export function servesBothFamilies(list: readonly ListenerAddress[]): boolean {
  return list.length === 1 && list[0]?.host === '::';
}
