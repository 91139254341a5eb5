/** The port at which the agent answers life-cycle hooks. It listens on loopback alone: only the datapath brings pods here. */

import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Log } from '../base/log.js';
import { parseIp } from '../net/ip.js';
import type { SocketAddress } from '../net/socket-address.js';
import type { Hooks, HookTimes } from './hooks.js';

export interface LifecycleServer {
  readonly addresses: readonly { readonly host: string; readonly port: number; readonly family: 4 | 6 }[];
  close(): Promise<void>;
}

export interface LifecycleServerOptions {
  readonly port: number;
  readonly hooks: () => Pick<Hooks, 'callerOf' | 'postStart' | 'preStop'> | undefined;
  readonly log: Pick<Log, 'warn' | 'error'>;
}

const HOSTS = [
  { host: '127.0.0.1', family: 4 },
  { host: '::1', family: 6 },
] as const;
const DEFAULT_S = { 'post-start': 30, 'pre-stop': 25 } as const;
const MAX_S = 3_600;
const DEFAULT_QUIET_MS = 1_000;
const NO_FAMILY: ReadonlySet<string> = new Set(['EADDRNOTAVAIL', 'EAFNOSUPPORT']);

/** A family that the node does not have is left out. Rejects where the port is taken. */
export async function startLifecycleServer(options: LifecycleServerOptions): Promise<LifecycleServer> {
  const servers: Server[] = [];
  const addresses: LifecycleServer['addresses'][number][] = [];
  for (const { host, family } of HOSTS) {
    const server = createServer((request, response) => {
      answer(request, response, options).catch((error: unknown) => {
        options.log.error({ err: error }, 'a life-cycle hook failed');
        send(response, 500, { error: 'the agent failed to answer; its log says why' });
      });
    });
    try {
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen({ host, port: options.port, exclusive: true }, () => resolve());
      });
    } catch (error) {
      if (NO_FAMILY.has((error as NodeJS.ErrnoException).code ?? '')) {
        continue;
      }
      throw new Error(`lifecycle.port: ${(error as Error).message}`, { cause: error });
    }
    servers.push(server);
    addresses.push({ host, family, port: (server.address() as AddressInfo).port });
  }
  return {
    addresses,
    close: async () => {
      await Promise.all(
        servers.map((server) => {
          server.closeAllConnections();
          return new Promise((resolve) => server.close(resolve));
        }),
      );
    },
  };
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  { hooks: current }: LifecycleServerOptions,
): Promise<void> {
  const hooks = current();
  const url = new URL(request.url ?? '/', 'http://agent');
  const hook = url.pathname.slice(1);
  if (hook !== 'post-start' && hook !== 'pre-stop') {
    send(response, 404, { error: 'there are /post-start and /pre-stop' });
    return;
  }
  if (request.method !== 'GET' && request.method !== 'POST') {
    response.setHeader('allow', 'GET, POST');
    send(response, 405, { error: 'GET or POST' });
    return;
  }
  if (hooks === undefined) {
    send(response, 503, { error: 'the agent is starting' });
    return;
  }
  const times = timesOf(url.searchParams, hook);
  if (typeof times === 'string') {
    send(response, 400, { error: times });
    return;
  }
  const { socket } = request;
  const uid = hooks.callerOf(
    addressOf(socket.remoteAddress, socket.remotePort),
    addressOf(socket.localAddress, socket.localPort),
  );
  if (uid === undefined) {
    send(response, 403, { error: 'only an intercepted pod can ask, or the kubelet one of its ports' });
    return;
  }
  const gone = new AbortController();
  response.once('close', () => gone.abort());
  if (hook === 'post-start') {
    const found = await hooks.postStart(uid, times, gone.signal);
    send(response, found.ready ? 200 : 503, found);
  } else {
    send(response, 200, await hooks.preStop(uid, times, gone.signal));
  }
}

/** What is wrong with them, in words, or the times. */
function timesOf(given: URLSearchParams, hook: keyof typeof DEFAULT_S): HookTimes | string {
  const unknown = [...given.keys()].find((key) => key !== 'deadlineSeconds' && key !== 'quietSeconds');
  if (unknown !== undefined) {
    return `${unknown}: there is no such parameter (there are deadlineSeconds and quietSeconds)`;
  }
  const deadline = numberOf(given.get('deadlineSeconds'), DEFAULT_S[hook]);
  const quiet = numberOf(given.get('quietSeconds'), DEFAULT_QUIET_MS / 1_000);
  if (deadline === undefined || quiet === undefined) {
    const field = deadline === undefined ? 'deadlineSeconds' : 'quietSeconds';
    return `${field}: expected a number from 0 to ${MAX_S}, got ${JSON.stringify(given.get(field))}`;
  }
  return { deadlineMs: deadline * 1_000, quietMs: quiet * 1_000 };
}

function numberOf(text: string | null, whenLeftOut: number): number | undefined {
  if (text === null) {
    return whenLeftOut;
  }
  return /^\d{1,4}(?:\.\d{1,3})?$/.test(text) && Number(text) <= MAX_S ? Number(text) : undefined;
}

function addressOf(ip = '', port = 0): SocketAddress {
  return { ip: parseIp(ip) ?? ip, port };
}

function send(response: ServerResponse, status: number, body: object): void {
  if (!response.writableEnded) {
    response.writeHead(status, { 'content-type': 'application/json', connection: 'close' });
    response.end(`${JSON.stringify(body)}\n`);
  }
}
