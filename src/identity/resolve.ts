/**
 * Whose flow is this, or: which pod is this? A flow is answered from what the datapath recorded, else from the source
 * address, never by a guess.
 */

import type { FlowDirection, FlowMode, FlowRecord } from '../datapath/flows.js';
import type { FlowProtocol } from '../net/protocol.js';
import { formatSocketAddress, type SocketAddress } from '../net/socket-address.js';
import type { Pod, PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { DatapathView } from '../reconcile/datapath-view.js';
import { IdentityError, type IdentityReason } from './errors.js';
import { Naming, type NamingOptions } from './naming.js';
import { type ProcessKey, podsByInterface, podsByNetnsCookie, podsByProcess } from './pod-keys.js';
import { type Workload, type WorkloadPlace, type WorkloadState, workloadOf } from './workload.js';

/** Weakest first. */
export const ASSURANCES = ['IP_ONLY', 'IP_AND_IFACE', 'DATAPATH_RECORDED'] as const;

/**
 * DATAPATH_RECORDED: the hook saw this flow enter by the pod's interface. IP_AND_IFACE: the address says so, and the
 * interface of this very flow was checked; nothing checks it today, so it is never answered. IP_ONLY: only the address
 * says so, and others can send from it: a neighbour on the bridge, a process of the node, another node.
 */
export type Assurance = (typeof ASSURANCES)[number];

export interface FlowQuery {
  readonly proto: FlowProtocol;
  readonly src: SocketAddress;
  readonly dst: SocketAddress;
  /** Default DATAPATH_RECORDED: what is weaker is for those who ask for it. */
  readonly minAssurance?: Assurance;
}

export interface AddressQuery {
  /** Canonical text. */
  readonly address: string;
  /** An address alone has IP_ONLY. */
  readonly minAssurance?: Assurance;
}

/** Of a pod itself: nothing was sent, so nothing has an assurance. */
export type PodQuery =
  | { readonly podUid: PodUid }
  | { readonly hostInterface: string }
  | { readonly netnsCookie: bigint }
  | ProcessKey;

export type ResolveQuery = FlowQuery | AddressQuery | PodQuery;

/** An end of a flow: a pod of this node, or why none is named. WORKLOAD_NOT_FOUND: the address is of no pod of this node. */
export type Party =
  | { readonly workload: Workload; readonly assurance: Assurance }
  | { readonly workload: null; readonly reason: IdentityReason };

export interface Resolution {
  /** Whose flow it is: the source of EGRESS, the destination of INGRESS. */
  readonly workload: Workload;
  readonly direction: FlowDirection;
  readonly original: { readonly src: string; readonly dst: string };
  /** Empty where no instance serves the pod. */
  readonly instance: string;
  readonly assurance: Assurance;
  readonly epoch: string;
  readonly revision: number;
  /** How long a caller may keep this answer for this flow. */
  readonly ttlMs: number;
  readonly source: Party;
  readonly destination: Party;
  /** Left out where the flow is not recorded. */
  readonly mode?: FlowMode;
}

/** Where no flow is meant. */
export type PodResolution = Pick<Resolution, 'workload' | 'instance' | 'epoch' | 'revision' | 'ttlMs'> & {
  /** Of an address. */
  readonly assurance?: Assurance;
};

export interface IdentityOptions extends WorkloadPlace, NamingOptions {
  /** SO_NETNS_COOKIE of the network namespace at a path; undefined where it has gone, or the kernel does not tell. */
  readonly netnsCookieAt: (path: string) => bigint | undefined;
  readonly store: Pick<PodStore, 'epoch' | 'revision' | 'get' | 'list' | 'byIp' | 'removed' | 'departed'>;
  readonly datapath: Pick<
    DatapathView,
    'lookupFlow' | 'endpoints' | 'endpointOf' | 'podOfEndpoint' | 'isLiveEndpoint'
  >;
}

const DEFAULT_ASSURANCE: Assurance = 'DATAPATH_RECORDED';
export const TTL_MS = 1_000;

interface Answer {
  readonly workload: Workload;
  readonly direction: FlowDirection;
  /** Of a record. */
  readonly mode?: FlowMode;
  readonly instance: string;
  readonly assurance: Assurance;
}

export class IdentityService {
  readonly #options: IdentityOptions;
  readonly #naming: Naming;

  constructor(options: IdentityOptions) {
    this.#options = options;
    this.#naming = new Naming(options);
  }

  /** Throws IdentityError. */
  resolve(query: FlowQuery): Resolution;
  resolve(query: ResolveQuery): Resolution | PodResolution;
  resolve(query: ResolveQuery): Resolution | PodResolution {
    if ('src' in query) {
      return this.#ofFlow(query);
    }
    const { epoch, revision } = this.#options.store;
    const { workload, instance, assurance } =
      'address' in query ? this.#ofAddress(query) : this.#ofPod(query);
    return { workload, instance, ...(assurance && { assurance }), epoch, revision, ttlMs: TTL_MS };
  }

  /** A flow whose record counts is never answered from its address instead. */
  #ofFlow(query: FlowQuery): Resolution {
    const { store, datapath } = this.#options;
    const { proto, src, dst, minAssurance = DEFAULT_ASSURANCE } = query;
    const flow = datapath.lookupFlow(src, dst, proto);
    const answer =
      flow === undefined
        ? this.#byAddress(src.ip, 'the flow was not recorded')
        : (this.#byRecord(flow) ?? this.#byAddress(src.ip, 'the flow was recorded for a pod that has gone'));
    requireAssurance('the flow', answer.assurance, minAssurance);
    const own: Party = { workload: answer.workload, assurance: answer.assurance };
    const isOut = answer.direction === 'EGRESS';
    return {
      workload: answer.workload,
      direction: answer.direction,
      original: { src: formatSocketAddress(src), dst: formatSocketAddress(dst) },
      instance: answer.instance,
      assurance: answer.assurance,
      epoch: store.epoch,
      revision: store.revision,
      ttlMs: TTL_MS,
      source: isOut ? own : this.#party(src.ip, minAssurance),
      destination: isOut ? this.#party(dst.ip, minAssurance) : own,
      ...(answer.mode === undefined ? {} : { mode: answer.mode }),
    };
  }

  #ofAddress({ address, minAssurance = DEFAULT_ASSURANCE }: AddressQuery): Answer {
    const answer = this.#byAddress(address, 'no flow is meant');
    requireAssurance('the address', answer.assurance, minAssurance);
    return answer;
  }

  #ofPod(query: PodQuery): Pick<Answer, 'workload' | 'instance'> & { readonly assurance?: undefined } {
    const { datapath } = this.#options;
    const found = this.#podNow(this.#uidOf(query));
    if (found === undefined) {
      throw this.#naming.unknown(`no pod of this node ${textOf(query)}`);
    }
    this.#naming.requireNamed(found.pod);
    const endpoint = datapath.endpointOf(found.pod.uid);
    return {
      workload: workloadOf(found.pod, endpoint?.generation ?? 0, found.state, this.#options),
      instance: endpoint?.instance ?? '',
    };
  }

  /** Throws IdentityError where there is none, or more than one. */
  #uidOf(query: PodQuery): PodUid {
    if ('podUid' in query) {
      return query.podUid;
    }
    const { store, datapath } = this.#options;
    const [uid, ...others] =
      'hostInterface' in query
        ? podsByInterface(query.hostInterface, datapath)
        : 'netnsCookie' in query
          ? podsByNetnsCookie(query.netnsCookie, store, this.#options.netnsCookieAt)
          : podsByProcess(query, store);
    if (uid === undefined) {
      throw this.#naming.unknown(`no pod of this node ${textOf(query)}`);
    }
    if (others.length > 0) {
      const uids = [uid, ...others].join(', ');
      throw new IdentityError(
        'AMBIGUOUS',
        `${others.length + 1} pods of this node ${textOf(query)}: ${uids}`,
      );
    }
    return uid;
  }

  /**
   * A pod by its UID, also after it went, for as long as the store remembers it. Without SPIFFE ID and service account
   * while no authority has told of it, and where none is known. Throws IdentityError.
   */
  workload(uid: PodUid): { readonly pod: Pod; readonly workload: Workload } {
    const found = this.#podNow(uid);
    if (found === undefined) {
      throw this.#naming.unknown(`no pod of this node has the UID ${uid}`);
    }
    return { pod: found.pod, workload: this.#shown(found.pod, found.state) };
  }

  /**
   * A pod that a source names now, as its addresses name it: a pod on the host's network has none of its own, and one that
   * only a source without authority still names has no name. Undefined where there is none.
   */
  live(uid: PodUid): Workload | undefined {
    const pod = this.#options.store.get(uid);
    if (pod === undefined) {
      return undefined;
    }
    const workload = this.#shown(pod, 'LIVE');
    return pod.hostNetwork ? { ...workload, ips: [] } : workload;
  }

  /** Without SPIFFE ID and service account while no authority has told of the pod. */
  #shown(pod: Pod, state: WorkloadState): Workload {
    const generation = this.#options.datapath.endpointOf(pod.uid)?.generation ?? 0;
    const workload = workloadOf(pod, generation, state, this.#options);
    return this.#naming.isConfirmed(pod) ? workload : { ...workload, spiffeId: '', serviceAccount: '' };
  }

  /**
   * Undefined where the record does not count: it outlives its endpoint, and who got the address since, and is not
   * enrolled, can have sent the same again without a record.
   */
  #byRecord(flow: FlowRecord): Answer | undefined {
    const { store, datapath } = this.#options;
    const isLive = datapath.isLiveEndpoint(flow.endpointId, flow.generation);
    const uid = datapath.podOfEndpoint(flow.endpointId, flow.generation);
    const found = uid === undefined ? undefined : this.#podNow(uid);
    const { ip } = flow.direction === 'EGRESS' ? flow.src : flow.dst;
    const isOwn = isLive && found?.state !== 'TERMINATING';
    if (!isOwn && (found === undefined || store.byIp(ip).some((other) => other.uid !== uid))) {
      return undefined;
    }
    if (found === undefined) {
      throw this.#naming.unknown(
        `the flow was recorded for endpoint ${flow.endpointId} (generation ${flow.generation}), whose pod is not known`,
      );
    }
    this.#naming.requireNamed(found.pod);
    return {
      workload: workloadOf(found.pod, flow.generation, found.state, this.#options),
      direction: flow.direction,
      mode: flow.mode,
      instance: flow.instance,
      assurance: 'DATAPATH_RECORDED',
    };
  }

  #byAddress(ip: string, why: string): Answer {
    const { store, datapath } = this.#options;
    const [pod, ...others] = store.byIp(ip);
    if (pod === undefined) {
      throw this.#naming.unknown(`${why}, and no pod of this node has the address ${ip}`);
    }
    if (others.length > 0) {
      const names = [pod, ...others].map(({ namespace, name }) => `${namespace}/${name}`).join(', ');
      throw new IdentityError(
        'AMBIGUOUS',
        `${why}, and ${ip} is the address of ${others.length + 1} pods: ${names}`,
      );
    }
    this.#naming.requireNamed(pod);
    const endpoint = datapath.endpointOf(pod.uid);
    return {
      workload: workloadOf(pod, endpoint?.generation ?? 0, 'LIVE', this.#options),
      direction: 'EGRESS',
      instance: endpoint?.instance ?? '',
      assurance: 'IP_ONLY',
    };
  }

  /** The end that no record proves: known by its address, if at all. */
  #party(ip: string, minAssurance: Assurance): Party {
    try {
      const { workload, assurance } = this.#byAddress(ip, 'its end of the flow is not recorded');
      return rank(assurance) < rank(minAssurance)
        ? { workload: null, reason: 'ASSURANCE_TOO_LOW' }
        : { workload, assurance };
    } catch (error) {
      if (error instanceof IdentityError) {
        return { workload: null, reason: error.code };
      }
      throw error;
    }
  }

  #podNow(uid: PodUid): { readonly pod: Pod; readonly state: WorkloadState } | undefined {
    const { store } = this.#options;
    const live = store.get(uid);
    // Gone for the authority, while a source that cannot name it still lists it: its flows are those of a pod that ends.
    const departed = live === undefined || this.#naming.isConfirmed(live) ? undefined : store.departed(uid);
    if (live !== undefined && (departed === undefined || !this.#naming.isConfirmed(departed.pod))) {
      return { pod: live, state: 'LIVE' };
    }
    const removed = departed ?? store.removed(uid);
    return removed === undefined ? undefined : { pod: removed.pod, state: 'TERMINATING' };
  }
}

function textOf(query: PodQuery): string {
  if ('podUid' in query) {
    return `has the UID ${query.podUid}`;
  }
  if ('netnsCookie' in query) {
    return `is known by the network namespace with the cookie ${query.netnsCookie}`;
  }
  return 'hostInterface' in query
    ? `is known by the interface ${query.hostInterface}`
    : `is known by the network namespace of process ${query.pid}`;
}

function requireAssurance(what: string, assurance: Assurance, minAssurance: Assurance): void {
  if (rank(assurance) < rank(minAssurance)) {
    throw new IdentityError(
      'ASSURANCE_TOO_LOW',
      `${what} is known with ${assurance}, which is less than ${minAssurance}: minAssurance ${assurance} asks for such answers`,
    );
  }
}

function rank(assurance: Assurance): number {
  return ASSURANCES.indexOf(assurance);
}
