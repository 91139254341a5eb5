/**
 * What the CNI plugin asks, on a Unix socket of its own that only root can open: one JSON document in, one out, a
 * connection for each. The answers' codes are those of the CNI specification, "Well-known error codes".
 */

import { chmodSync, closeSync, mkdirSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import type { Logger } from 'pino';
import type { PodUid } from '../pods/pod.js';
import type { CniSource } from '../pods/sources/cni.js';
import {
  attachmentOf,
  type CniAdd,
  type CniRequest,
  cniRequest,
  problemOf,
} from '../pods/sources/cni-attachment.js';
import type { Admissions } from '../reconcile/admission.js';
import { descriptorOf, type PeerCredentials } from './callers.js';
import { removeStaleSocket } from './unix-socket.js';

export const CNI_SOCKET_NAME = 'cni.sock';
const REQUEST_LIMIT = 1 << 20;
const REQUEST_TIMEOUT_MS = 5_000;
const DEFAULT_TIMEOUT_MS = 10_000;
/** A pod that runs is as it is: longer than a repair takes there is nothing to wait for. */
const CHECK_MS = 1_000;
/** The part of what the plugin waits that is left for the way back. */
const MARGIN = 0.1;

const CODE = { invalid: 7, tryAgain: 11, notAvailable: 50, refused: 100 } as const;

export type CniAnswer =
  | { readonly ok: true; readonly state?: string }
  | {
      readonly ok: false;
      readonly code: number;
      readonly msg: string;
      readonly details?: string;
      readonly retry: boolean;
    };

export interface CniServerOptions {
  readonly runDir: string;
  readonly source: CniSource;
  /** A pod that starts, and one that runs. */
  readonly admissions: Pick<Admissions, 'admit' | 'check'>;
  /** What keeps the agent from being ready, in words; empty: it is. */
  readonly blockers: () => readonly string[];
  readonly credentials: (fd: number) => PeerCredentials;
  readonly observeAdd: (result: string, seconds: number) => void;
  readonly log: Pick<Logger, 'info' | 'warn' | 'error'>;
  /** How long a client may take to ask. Default 5000. */
  readonly requestTimeoutMs?: number;
}

export interface CniServer {
  readonly path: string;
  close(): Promise<void>;
}

/** Rejects where the socket cannot be opened; what a request is refused for goes to the plugin. */
export async function startCniServer(options: CniServerOptions): Promise<CniServer> {
  const path = join(options.runDir, CNI_SOCKET_NAME);
  mkdirSync(options.runDir, { recursive: true, mode: 0o755 });
  await removeStaleSocket(path);
  const open = new Set<Socket>();
  // The plugin shuts its side down when it has written: the other side has to stay open for the answer.
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    open.add(socket);
    socket.once('close', () => open.delete(socket));
    serve(socket, options);
  });
  await listen(server, path);
  chmodSync(path, 0o600);
  return {
    path,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        for (const socket of open) {
          socket.destroy();
        }
      }),
  };
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

function serve(socket: Socket, options: CniServerOptions): void {
  const chunks: Buffer[] = [];
  let size = 0;
  const answer = (message: CniAnswer) => socket.end(JSON.stringify(message));
  // Of the whole request: a client that sends a byte now and then must not stay for ever.
  const timer = setTimeout(() => socket.destroy(), options.requestTimeoutMs ?? REQUEST_TIMEOUT_MS);
  socket.once('close', () => clearTimeout(timer));
  socket.on('error', (error) => options.log.warn({ err: error }, 'cni: connection failed'));
  socket.on('data', (chunk) => {
    const before = size;
    size += chunk.length;
    if (size <= REQUEST_LIMIT) {
      chunks.push(chunk);
    } else if (before <= REQUEST_LIMIT) {
      // The rest is read and dropped: closed on, the client would not see the answer.
      answer(refusal(CODE.invalid, `the request is longer than ${REQUEST_LIMIT} bytes`));
    }
  });
  socket.once('end', () => {
    clearTimeout(timer);
    if (size > REQUEST_LIMIT) {
      return;
    }
    const respondTo = async () =>
      refusalOf(socket, options) ?? (await respond(Buffer.concat(chunks).toString('utf8'), options));
    respondTo().then(answer, (error: unknown) => {
      options.log.error({ err: error }, 'cni: request failed');
      answer(refusal(CODE.tryAgain, 'the agent failed to answer; its log says why', true));
    });
  });
}

/** The socket's mode keeps others away; a descriptor that was handed on does not get past this. */
function refusalOf(socket: Socket, { credentials }: CniServerOptions): CniAnswer | undefined {
  const fd = descriptorOf(socket);
  if (fd === undefined) {
    return refusal(CODE.refused, 'the connection is closed');
  }
  const { uid, pidfd } = credentials(fd);
  if (pidfd !== undefined) {
    closeSync(pidfd);
  }
  return uid === 0 ? undefined : refusal(CODE.refused, `uid ${uid} may not ask: only root may`);
}

async function respond(text: string, options: CniServerOptions): Promise<CniAnswer> {
  const request = parse(text);
  if ('ok' in request) {
    return request;
  }
  switch (request.command) {
    case 'ADD':
      return add(request, options);
    case 'DEL':
      options.source.remove(request);
      return { ok: true };
    case 'CHECK':
      return check(request, options);
    case 'STATUS': {
      const blockers = options.blockers();
      return blockers.length === 0
        ? { ok: true }
        : refusal(CODE.notAvailable, `the agent is not ready: ${blockers.join('; ')}`, true);
    }
    case 'GC':
      options.log.info({ dropped: options.source.keep(request.attachments) }, 'cni: attachments collected');
      return { ok: true };
  }
}

function parse(text: string): CniRequest | CniAnswer {
  let given: unknown;
  try {
    given = JSON.parse(text);
  } catch (error) {
    return refusal(CODE.invalid, `the request is not JSON: ${(error as Error).message}`);
  }
  const checked = cniRequest.safeParse(given);
  if (checked.success) {
    return checked.data;
  }
  return refusal(CODE.invalid, problemOf(checked.error, 'the request'));
}

async function add(request: CniAdd, options: CniServerOptions): Promise<CniAnswer> {
  const startedMs = performance.now();
  const attachment = attachmentOf(request);
  const pod = `${attachment.podNamespace}/${attachment.podName}`;
  let uid: PodUid;
  try {
    uid = options.source.add(attachment);
  } catch (error) {
    // A disk that is full or read-only: the runtime is told why, and makes the pod anew later.
    const why = error instanceof Error ? error.message : String(error);
    options.source.settled(attachment);
    options.log.warn({ pod, ifname: request.ifname, err: error }, 'cni: a pod cannot be written down');
    return refusal(CODE.tryAgain, `pod ${pod} cannot be written down: ${why}`);
  }
  const timeoutMs = Math.ceil((request.timeoutMs ?? DEFAULT_TIMEOUT_MS) * (1 - MARGIN));
  const admission = await options.admissions
    .admit(() => options.source.uidOf(attachment) ?? uid, timeoutMs, startedMs)
    .finally(() => options.source.settled(attachment));
  const result = admission.kind === 'ready' ? admission.state : admission.kind;
  options.observeAdd(result, (performance.now() - startedMs) / 1_000);
  if (admission.kind === 'ready') {
    options.log.info({ pod, ifname: request.ifname, state: admission.state }, 'cni: pod added');
    return { ok: true, state: admission.state };
  }
  options.log.warn({ pod, ifname: request.ifname, reason: admission.reason }, `cni: pod ${admission.kind}`);
  return admission.kind === 'refused'
    ? refusal(CODE.refused, `pod ${pod} cannot be intercepted: ${admission.reason}`)
    : refusal(CODE.tryAgain, `pod ${pod} is not intercepted yet: ${admission.reason}`, true);
}

async function check(
  request: Extract<CniRequest, { command: 'CHECK' }>,
  { source, admissions }: CniServerOptions,
): Promise<CniAnswer> {
  const known = source.get(request);
  if (known === undefined) {
    return refusal(CODE.refused, `nothing is known of ${request.ifname} of container ${request.containerId}`);
  }
  const timeoutMs = Math.min(CHECK_MS, Math.ceil((request.timeoutMs ?? CHECK_MS) * (1 - MARGIN)));
  const admission = await admissions.check(() => known.podUid as PodUid, timeoutMs);
  return admission.kind === 'ready'
    ? { ok: true, state: admission.state }
    : refusal(CODE.refused, `pod ${known.podNamespace}/${known.podName}: ${admission.reason}`);
}

function refusal(code: number, msg: string, retry = false): CniAnswer {
  return { ok: false, code, msg, retry };
}
