/**
 * The reference proxy: takes what the node hands over, asks whose it is, and passes it on to where it was going.
 *
 * It does nothing special to listen: the agent makes the listening socket transparent, and from then on the local
 * address of an accepted connection is the original destination.
 */

import { createServer, type Server, Socket } from 'node:net';
import type { Logger } from 'pino';
import { familyOf } from '../net/family.js';
import { formatSocketAddress, type SocketAddress } from '../net/socket-address.js';
import { leadsBack, plainIp } from './addresses.js';
import { type Outcome, settled } from './settled.js';
import { reset, tunnel } from './tunnel.js';
import { type Asked, type Known, knownBy, type Named, namesOf, otherEnd, reasonOf, whoIs } from './who.js';

export interface ProxyOptions {
  readonly listen: readonly SocketAddress[];
  /** Closed by its owner, after the proxy. */
  readonly client: Asked;
  readonly log: Pick<Logger, 'info' | 'warn' | 'error' | 'debug'>;
  /** Pass flows on whose pod is not known. Default false. */
  readonly allowUnidentified?: boolean;
  /** Default 5000. */
  readonly connectTimeoutMs?: number;
  /** How long to keep asking while the agent is away. Default 5000. */
  readonly resolveTimeoutMs?: number;
  /** Default one hour; 0 for never. */
  readonly idleTimeoutMs?: number;
  /** Where an accepted connection was going. Default its local address, as on a transparent socket. */
  readonly destinationOf?: (client: Socket) => SocketAddress | undefined;
  /**
   * An unconnected socket from which the destination of this client is dialled; undefined, the default, for one of the
   * node's own address. The proxy closes it.
   */
  readonly socketFrom?: (clientIp: string) => number | undefined;
  /**
   * What the kernel says of an accepted connection, without asking anybody; undefined where it says nothing, and then the
   * agent is asked. Default: it is always asked.
   */
  readonly recordedAt?: (client: Socket) => Known | undefined;
  /** What the destination is sent first, before anything of the client's. Default nothing. */
  readonly headerOf?: (flow: ProxiedFlow) => Buffer | undefined;
}

export interface ProxiedFlow {
  readonly peer: SocketAddress;
  readonly destination: SocketAddress;
  /** Undefined where nothing proves who has opened the connection: always, of what a pod receives. */
  readonly sender: Named | undefined;
}

export interface StartedProxy {
  /** Where it listens, in the order asked for. */
  readonly addresses: readonly SocketAddress[];
  /** Flows at this moment. */
  readonly active: () => number;
  close(): Promise<void>;
}

const BACKLOG = 4_096;
const KEEP_ALIVE_MS = 60_000;

/** Throws where an address cannot be listened at; nothing stays open then. */
export async function startProxy(options: ProxyOptions): Promise<StartedProxy> {
  const running = new RunningProxy(options);
  try {
    for (const address of options.listen) {
      await running.listen(address);
    }
  } catch (error) {
    await running.close();
    throw error;
  }
  return running;
}

class RunningProxy implements StartedProxy {
  readonly addresses: SocketAddress[] = [];
  readonly #options: Required<ProxyOptions>;
  readonly #servers: Server[] = [];
  readonly #clients = new Set<Socket>();

  constructor(options: ProxyOptions) {
    this.#options = {
      allowUnidentified: false,
      connectTimeoutMs: 5_000,
      resolveTimeoutMs: 5_000,
      idleTimeoutMs: 3_600_000,
      destinationOf: localAddressOf,
      socketFrom: () => undefined,
      recordedAt: () => undefined,
      headerOf: () => undefined,
      ...options,
    };
  }

  active = (): number => this.#clients.size;

  async listen({ ip, port }: SocketAddress): Promise<void> {
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, (client) =>
      this.#accept(client),
    );
    this.#servers.push(server);
    // `[::]` takes IPv4 too, unless IPv4 on that port is asked for by itself.
    const ipv6Only = this.#options.listen.some((other) => other.port === port && familyOf(other.ip) === 4);
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen({ host: ip, port, backlog: BACKLOG, ipv6Only }, () => {
        server.off('error', reject);
        resolve();
      });
    });
    server.on('error', (error) => this.#options.log.error({ err: error }, 'accepting failed'));
    const bound = server.address();
    if (bound !== null && typeof bound === 'object') {
      this.addresses.push({ ip, port: bound.port });
    }
  }

  async close(): Promise<void> {
    const closed = this.#servers.map(
      (server) => new Promise<void>((resolve) => server.close(() => resolve())),
    );
    for (const client of this.#clients) {
      reset(client);
    }
    await Promise.all(closed);
  }

  #accept(client: Socket): void {
    const { remoteAddress, remotePort } = client;
    const destination = this.#options.destinationOf(client);
    client.on('error', () => {}); // told by 'close', which always follows
    if (remoteAddress === undefined || remotePort === undefined || destination === undefined) {
      client.destroy(); // reset by its peer before it was accepted
      return;
    }
    this.#clients.add(client);
    client.once('close', () => this.#clients.delete(client));
    client.setKeepAlive(true, KEEP_ALIVE_MS);
    const peer = { ip: plainIp(remoteAddress), port: remotePort };
    void this.#serve(client, peer, destination).catch((error: unknown) => {
      this.#options.log.error({ err: error }, 'flow failed');
      reset(client);
    });
  }

  async #serve(client: Socket, peer: SocketAddress, destination: SocketAddress): Promise<void> {
    const { log, allowUnidentified, connectTimeoutMs, idleTimeoutMs, socketFrom } = this.#options;
    const startedMs = performance.now();
    const flow = { peer: formatSocketAddress(peer), originalDst: formatSocketAddress(destination) };
    if (leadsBack(destination, this.addresses)) {
      log.warn({ ...flow, reason: 'LOOP' }, 'flow refused: its destination is this proxy');
      reset(client);
      return;
    }
    const gone = new AbortController();
    const abort = (): void => gone.abort();
    client.once('close', abort);
    const connecting = settled(
      connectTo(destination, () => socketFrom(peer.ip), connectTimeoutMs, gone.signal),
    );
    const who = await settled(this.#who(client, peer, destination, gone.signal));
    const identified = 'value' in who;
    if (!identified && !allowUnidentified) {
      gone.abort(); // fail closed, and do not leave a connection behind
    }
    const connected = await connecting;
    client.off('close', abort);
    const report = {
      ...flow,
      ...('value' in who ? this.#named(who.value, peer, destination) : { reason: reasonOf(who.error) }),
    };
    if (!identified && !allowUnidentified) {
      closeIf(connected);
      log.warn(report, 'flow refused: nobody knows whose it is');
      reset(client);
    } else if ('error' in connected) {
      log.warn(
        { ...report, connectError: reasonOf(connected.error) },
        'flow refused: destination not reached',
      );
      reset(client);
    } else if (client.destroyed || connected.value.destroyed) {
      closeIf(connected);
      reset(client);
      log.info({ ...report, resolved: identified }, 'flow ended before it was passed on');
    } else {
      log.info({ ...report, resolved: identified }, 'flow');
      const upstream = connected.value;
      const sender = identified ? who.value.sender : undefined;
      const header = this.#options.headerOf({ peer, destination, sender });
      if (header !== undefined) {
        upstream.write(header);
      }
      tunnel(client, upstream, idleTimeoutMs, () =>
        log.debug(
          {
            ...flow,
            bytesOut: upstream.bytesWritten,
            bytesIn: client.bytesWritten,
            durationMs: Math.round(performance.now() - startedMs),
          },
          'flow ended',
        ),
      );
    }
  }

  async #who(
    socket: Socket,
    peer: SocketAddress,
    destination: SocketAddress,
    signal: AbortSignal,
  ): Promise<Known> {
    const { client, recordedAt, resolveTimeoutMs } = this.#options;
    return recordedAt(socket) ?? knownBy(await whoIs(client, peer, destination, resolveTimeoutMs, signal));
  }

  #named(known: Known, peer: SocketAddress, destination: SocketAddress): object {
    const { own, direction, assurance, by } = known;
    const other = otherEnd(this.#options.client, known, peer, destination);
    return { direction, ...namesOf(own), assurance, by, other };
  }
}

function localAddressOf({ localAddress, localPort }: Socket): SocketAddress | undefined {
  return localAddress === undefined || localPort === undefined
    ? undefined
    : { ip: plainIp(localAddress), port: localPort };
}

/**
 * Node connects a socket that it is given like one of its own, if `connect` comes in the turn of `new Socket`: polled
 * before, it ends with ENOTCONN. One whose connect() has begun elsewhere Node takes for connected.
 */
function connectTo(
  { ip, port }: SocketAddress,
  open: () => number | undefined,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = new Socket({ fd: open(), allowHalfOpen: true });
    socket.setNoDelay(true).setKeepAlive(true, KEEP_ALIVE_MS);
    const fail = (error: Error): void => {
      finish();
      socket.destroy();
      reject(error);
    };
    const onAbort = (): void => fail(failure('ABORTED'));
    const timer = setTimeout(() => fail(failure('ETIMEDOUT')), timeoutMs);
    const finish = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
      socket.off('error', fail);
    };
    socket.on('error', () => {}); // once connected, told by 'close'
    socket.once('error', fail);
    socket.once('connect', () => {
      finish();
      resolve(socket);
    });
    signal.addEventListener('abort', onAbort, { once: true });
    socket.connect({ host: ip, port });
  });
}

function failure(code: string): Error {
  return Object.assign(new Error(code), { code });
}

function closeIf(connected: Outcome<Socket>): void {
  if ('value' in connected) {
    reset(connected.value);
  }
}
