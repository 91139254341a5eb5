/** Whose address was this? Answered from the history of addresses: what the store believed then, and no proof of a flow. */

import type { FlowDirection } from '../datapath/flows.js';
import { formatSocketAddress, type SocketAddress } from '../net/socket-address.js';
import type { PodStore } from '../pods/pod-store.js';
import { IdentityError } from './errors.js';
import type { AddressHistory } from './history.js';
import { type Assurance, TTL_MS } from './resolve.js';
import type { Workload } from './workload.js';

export interface PastQuery {
  /** Canonical text. */
  readonly address: string;
  /** Where the question is about a flow: `address` is that of its source. */
  readonly flow?: { readonly src: SocketAddress; readonly dst: SocketAddress };
  /** Unix time, milliseconds. */
  readonly at: number;
  /** Only IP_ONLY has answers. */
  readonly minAssurance?: Assurance;
}

export interface PastResolution {
  /** Without labels; TERMINATING where the pod does not have the address any more. */
  readonly workload: Workload;
  readonly assurance: 'IP_ONLY';
  /** Unix times, milliseconds. */
  readonly at: number;
  readonly from: number;
  /** Null: the pod has the address still. */
  readonly until: number | null;
  /** With `original`, where a flow was asked about: by its source. */
  readonly direction?: FlowDirection;
  readonly original?: { readonly src: string; readonly dst: string };
  readonly epoch: string;
  readonly revision: number;
  readonly ttlMs: number;
}

export interface PastIdentityOptions {
  readonly store: Pick<PodStore, 'epoch' | 'revision'>;
  readonly history: Pick<AddressHistory, 'at' | 'keptSince' | 'startedMs'>;
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
    const { store, history, nowMs = Date.now } = this.#options;
    if (at > nowMs()) {
      throw new IdentityError('KEY_INVALID', `at: ${text(at)} is yet to come`);
    }
    const since = history.keptSince();
    if (at < since) {
      const message = `${text(at)} is before what is kept of who had which address: that begins at ${text(since)}`;
      throw new IdentityError('WORKLOAD_NOT_FOUND', message);
    }
    const [holding, ...others] = history.at(address, at);
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
      const message = `at ${text(at)} ${address} was the address of ${nameOf(workload)}, whose service account no source told`;
      throw new IdentityError('WORKLOAD_UNCONFIRMED', message);
    }
    if (minAssurance !== 'IP_ONLY') {
      const message = 'who had an address is known with IP_ONLY: minAssurance IP_ONLY asks for such answers';
      throw new IdentityError('ASSURANCE_TOO_LOW', message);
    }
    return {
      workload: { ...workload, labels: {}, state: until === undefined ? 'LIVE' : 'TERMINATING' },
      assurance: 'IP_ONLY',
      at,
      from,
      until: until ?? null,
      ...(flow === undefined
        ? {}
        : {
            direction: 'EGRESS',
            original: { src: formatSocketAddress(flow.src), dst: formatSocketAddress(flow.dst) },
          }),
      epoch: store.epoch,
      revision: store.revision,
      ttlMs: TTL_MS,
    };
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
