/**
 * Who is at the ends of a connection that this process, a proxy that NodeSentry has adopted, has accepted: by getsockopt(2),
 * which asks nobody and goes on while the agent is down. The same as include/nodesentry.h, for Node.js: `nodesentry/client/socket`,
 * apart from `nodesentry/client`, which needs no native addon.
 */

import type { Socket } from 'node:net';
import { isKernelError } from '../native/errors.js';
import { socketOption } from '../native/sockets.js';

const SOL_NODESENTRY = 0x4e53;
const OPTIONS = { peer: { id: 1, end: 2 }, target: { id: 3, end: 4 } } as const;
const SPIFFE_MAX = 640;
/** `struct nodesentry_end`: offsets, in bytes, by the names of C. A later version only adds to its end. */
export const END_LAYOUT = {
  direction: 4,
  assurance: 5,
  runtime: 6,
  generation: 8,
  pod_uid: 16,
  pod_namespace: 80,
  pod_name: 144,
  service_account: 400,
  app: 656,
  instance: 720,
} as const;
export const END_BYTES = 784;
const RUNTIMES = ['unknown', 'runc', 'runsc', 'rund'] as const;
const ASSURANCES = ['IP_ONLY', 'IP_AND_IFACE', 'DATAPATH_RECORDED'] as const;

/** `peer`: who has opened the connection. `target`: to whom it was opened. */
export type End = keyof typeof OPTIONS;

/** Texts are empty where nothing is known. */
export interface SocketIdentity {
  readonly podUid: string;
  readonly namespace: string;
  readonly podName: string;
  readonly serviceAccount: string;
  readonly app: string;
  readonly runtime: (typeof RUNTIMES)[number];
  /** Grows each time the pod is enrolled anew. */
  readonly generation: number;
  /** As seen by the pod that the connection was intercepted for. */
  readonly direction: 'EGRESS' | 'INGRESS';
  readonly assurance: (typeof ASSURANCES)[number];
  /** Whose listener has accepted the connection. */
  readonly instance: string;
}

/**
 * Why there is no answer. DOOR_CLOSED: this process has no listener that is adopted, or NodeSentry is not there.
 * NOT_INTERCEPTED: not a connection of NodeSentry's. NOT_CONFIRMED: its identity is not confirmed (yet), or it has none.
 * NOT_LOCAL: that end is no enrolled pod of this node. ASSURANCE_TOO_LOW: it is known by its address alone.
 */
export type SocketIdentityReason =
  | 'DOOR_CLOSED'
  | 'NOT_INTERCEPTED'
  | 'NOT_CONFIRMED'
  | 'NOT_LOCAL'
  | 'ASSURANCE_TOO_LOW';

/** EPERM: a kernel before 5.18, which has no other. */
const REASONS: Readonly<Record<string, SocketIdentityReason>> = {
  ENOPROTOOPT: 'DOOR_CLOSED',
  EOPNOTSUPP: 'DOOR_CLOSED',
  ENOENT: 'NOT_INTERCEPTED',
  ENOKEY: 'NOT_CONFIRMED',
  EPERM: 'NOT_CONFIRMED',
  ENXIO: 'NOT_LOCAL',
  EKEYREJECTED: 'ASSURANCE_TOO_LOW',
};

export class SocketIdentityError extends Error {
  override readonly name = 'SocketIdentityError';
  readonly reason: SocketIdentityReason;

  constructor(reason: SocketIdentityReason, cause: unknown) {
    super(`this end of the connection is not named: ${reason}`, { cause });
    this.reason = reason;
  }
}

/** The SPIFFE ID of one end. Throws SocketIdentityError; TypeError where the socket has no descriptor (any more). */
export function spiffeIdOf(socket: Socket, end: End = 'peer'): string {
  return ask(socket, OPTIONS[end].id, SPIFFE_MAX).toString('utf8');
}

/** Everything that is known of one end. Throws as `spiffeIdOf`. */
export function identityOf(socket: Socket, end: End = 'peer'): SocketIdentity {
  const bytes = ask(socket, OPTIONS[end].end, END_BYTES);
  const at = END_LAYOUT;
  const text = (from: number) => bytes.toString('utf8', from, bytes.indexOf(0, from));
  return {
    podUid: text(at.pod_uid),
    namespace: text(at.pod_namespace),
    podName: text(at.pod_name),
    serviceAccount: text(at.service_account),
    app: text(at.app),
    runtime: RUNTIMES[bytes.readUInt8(at.runtime)] ?? 'unknown',
    generation: bytes.readUInt32LE(at.generation),
    direction: bytes.readUInt8(at.direction) === 1 ? 'INGRESS' : 'EGRESS',
    assurance: ASSURANCES[bytes.readUInt8(at.assurance)] ?? 'IP_ONLY',
    instance: text(at.instance),
  };
}

function ask(socket: Socket, option: number, size: number): Buffer {
  try {
    return socketOption(descriptorOf(socket), SOL_NODESENTRY, option, size);
  } catch (error) {
    const reason = isKernelError(error) ? REASONS[error.code] : undefined;
    throw reason === undefined ? error : new SocketIdentityError(reason, error);
  }
}

/** Node.js has no public name for it. */
function descriptorOf(socket: Socket): number {
  const { _handle: handle } = socket as unknown as { readonly _handle?: { readonly fd?: number } | null };
  if (typeof handle?.fd !== 'number' || handle.fd < 0) {
    throw new TypeError('socket must be an open TCP connection');
  }
  return handle.fd;
}
