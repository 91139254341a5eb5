/**
 * Whose flow or address was this? Answered from the history of addresses: what the store believed then. The kernel's record
 * of a flow, which stays after its end until newer ones push it out, proves that the pod which had the address sent it.
 */

import type { FlowDirection } from '../datapath/flows.js';
import type { FlowProtocol } from '../net/protocol.js';
import { formatSocketAddress, type SocketAddress } from '../net/socket-address.js';
import type { PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { DatapathView } from '../reconcile/datapath-view.js';
import { IdentityError } from './errors.js';
import type { AddressHistory, Holding } from './history.js';
import { type Assurance, TTL_MS } from './resolve.js';
import type { Told } from './told.js';
import type { Workload } from './workload.js';

interface Flow {
  /** Default TCP. */
  readonly proto?: FlowProtocol;
  readonly src: SocketAddress;
  readonly dst: SocketAddress;
}

interface Recorded {
  readonly holding: Holding;
  readonly direction: FlowDirection;
  readonly startedMs: number;
}

export interface PastQuery {
  /** Canonical text. */
  readonly address: string;
  /** Where the question is about a flow: `address` is that of its source. */
  readonly flow?: Flow;
  /** Unix time, milliseconds. */
  readonly at: number;
  /** Default DATAPATH_RECORDED, which only a flow can have. */
  readonly minAssurance?: Assurance;
}

export interface PastResolution {
  /** Without labels; TERMINATING where the pod does not have the address any more. */
  readonly workload: Workload;
  readonly assurance: 'DATAPATH_RECORDED' | 'IP_ONLY';
  /** Unix times, milliseconds. */
  readonly at: number;
  readonly from: number;
  /** Null: the pod has the address still. */
  readonly until: number | null;
  /** When the flow began, where it was recorded. */
  readonly started?: number;
  /** With `original`, where a flow was asked about; without a record, by its source. */
  readonly direction?: FlowDirection;
  readonly original?: { readonly src: string; readonly dst: string };
  /** Of a flow that the pod has sent: under which name it had looked up the destination, as its proxy has told. */
  readonly name?: string;
  readonly epoch: string;
  readonly revision: number;
  readonly ttlMs: number;
}

export interface PastIdentityOptions {
  readonly store: Pick<PodStore, 'epoch' | 'revision'>;
  readonly history: Pick<AddressHistory, 'at' | 'keptSince' | 'startedMs'>;
  readonly datapath: Pick<DatapathView, 'lookupFlow' | 'podOfEndpoint'>;
  readonly told?: Pick<Told, 'nameOf'>;
  readonly synced: () => boolean;
  /** Unix time. Default Date.now. */
  readonly nowMs?: () => number;
}

export class PastIdentity {
  readonly #options: PastIdentityOptions;

  constructor(options: PastIdentityOptions) {
    this.#options = options;
  }

  /** Throws IdentityError. */
  resolve({ address, flow, at, minAssurance }: PastQuery): PastResolution {
    const { store, history, told, nowMs = Date.now } = this.#options;
    if (at > nowMs()) {
      throw new IdentityError('KEY_INVALID', `at: ${text(at)} is yet to come`);
    }
    const since = history.keptSince();
    if (at < since) {
      const message = `${text(at)} is before what is kept of who had which address: that begins at ${text(since)}`;
      throw new IdentityError('WORKLOAD_NOT_FOUND', message);
    }
    const recorded = flow === undefined ? undefined : this.#recorded(flow, at);
    const [holding, ...others] = recorded === undefined ? history.at(address, at) : [recorded.holding];
    if (holding === undefined) {
      throw this.#nobody(address, at);
    }
    if (others.length > 0) {
      const names = [holding, ...others].map(({ workload }) => nameOf(workload)).join(', ');
      const message = `at ${text(at)} ${address} was the address of ${others.length + 1} pods: ${names}`;
      throw new IdentityError('AMBIGUOUS', message);
    }
    const { from, until, workload } = holding;
    if (workload.spiffeId === '') {
      const message = `at ${text(at)} ${holding.ip} was the address of ${nameOf(workload)}, whose service account no source told`;
      throw new IdentityError('WORKLOAD_UNCONFIRMED', message);
    }
    if (recorded === undefined && minAssurance !== 'IP_ONLY') {
      const what = flow === undefined ? 'who had an address' : 'the flow has no record any more and';
      const message = `${what} is known with IP_ONLY: minAssurance IP_ONLY asks for such answers`;
      throw new IdentityError('ASSURANCE_TOO_LOW', message);
    }
    const name =
      flow === undefined || recorded?.direction === 'INGRESS'
        ? undefined
        : told?.nameOf(workload.uid as PodUid, flow.dst.ip, recorded?.startedMs ?? at);
    return {
      workload: { ...workload, labels: {}, state: until === undefined ? 'LIVE' : 'TERMINATING' },
      assurance: recorded === undefined ? 'IP_ONLY' : 'DATAPATH_RECORDED',
      at,
      from,
      until: until ?? null,
      ...(recorded && { started: recorded.startedMs }),
      ...(flow === undefined
        ? {}
        : {
            direction: recorded?.direction ?? 'EGRESS',
            original: { src: formatSocketAddress(flow.src), dst: formatSocketAddress(flow.dst) },
            ...(name === undefined ? {} : { name }),
          }),
      epoch: store.epoch,
      revision: store.revision,
      ttlMs: TTL_MS,
    };
  }

  /** Undefined where no record tells: none is kept, it is of a later flow, or its pod did not have the address then. */
  #recorded({ proto, src, dst }: Flow, at: number): Recorded | undefined {
    const { datapath, history } = this.#options;
    const record = datapath.lookupFlow(src, dst, proto);
    if (record === undefined || record.startedMs > at) {
      return undefined;
    }
    const uid = datapath.podOfEndpoint(record.endpointId, record.generation);
    const { ip } = record.direction === 'EGRESS' ? src : dst;
    const holding = history.at(ip, at).find(({ workload }) => workload.uid === uid);
    return holding && { holding, direction: record.direction, startedMs: record.startedMs };
  }

  #nobody(address: string, at: number): IdentityError {
    const { history, synced } = this.#options;
    const message = `no pod of this node is known to have had the address ${address} at ${text(at)}`;
    if (at >= history.startedMs && !synced()) {
      return new IdentityError('NOT_SYNCED', `${message}; not every pod source has answered yet`);
    }
    const started =
      at < history.startedMs
        ? `; this agent looks since ${text(history.startedMs)}, one before it may have been away`
        : '';
    return new IdentityError(
      'WORKLOAD_NOT_FOUND',
      `${message}${started}, and what is kept begins at ${text(history.keptSince())}`,
    );
  }
}

function text(unixMs: number): string {
  return new Date(unixMs).toISOString();
}

function nameOf({ namespace, podName }: Pick<Workload, 'namespace' | 'podName'>): string {
  return `${namespace}/${podName}`;
}
