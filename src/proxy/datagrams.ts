/**
 * The reference proxy's part for UDP: takes datagrams with the address that they were sent to, asks whose the flow is, passes
 * them on to there, and sends the answers back as if from there.
 */

import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import type { Logger } from 'pino';
import { familyOf } from '../net/family.js';
import { formatSocketAddress, type SocketAddress } from '../net/socket-address.js';
import { leadsBack } from './addresses.js';
import { DNS_PORT } from './names.js';
import { settled } from './settled.js';
import { type Asked, knownBy, namesOf, otherEnd, reasonOf, whoIs } from './who.js';

interface Datagram {
  readonly from: SocketAddress;
  readonly to: SocketAddress;
  readonly data: Buffer;
}

interface DatagramListener {
  readonly port: number;
  close(): void;
}

/** How datagrams come and go. */
export interface DatagramSockets {
  /** Told where each was going, which need not be an address of this machine. */
  listen(
    address: SocketAddress,
    v6only: boolean,
    onDatagrams: (datagrams: readonly Datagram[]) => void,
  ): DatagramListener;
  /** Sends one that bears any source. */
  send(from: SocketAddress, to: SocketAddress, data: Uint8Array): boolean;
}

export interface DatagramProxyOptions {
  readonly listen: readonly SocketAddress[];
  /** Closed by its owner, after the proxy. */
  readonly sockets: DatagramSockets;
  /** Closed by its owner, after the proxy. */
  readonly client: Asked;
  readonly log: Pick<Logger, 'info' | 'warn' | 'error' | 'debug'>;
  /** Pass on what is of no pod that is known. Default false. */
  readonly allowUnidentified?: boolean;
  /** How long to keep asking while the agent is away. Default 5000. */
  readonly resolveTimeoutMs?: number;
  /** A flow on which nothing was said for so long is over. Default 60000; of DNS at most 10000. */
  readonly idleTimeoutMs?: number;
  /** At most so many flows: for one more, the one on which nothing was said for longest goes. Default 8192. */
  readonly mostFlows?: number;
  /** Called with each answer, before it is sent. */
  readonly onAnswer?: (
    flow: { readonly client: SocketAddress; readonly server: SocketAddress },
    answer: Buffer,
  ) => void;
}

/** Of a flow whose owner is not known yet. */
const MOST_WAITING = 64;
const LOOK_MS = 1_000;
const RECEIVE_BYTES = 4 << 20;
const DNS_IDLE_MS = 10_000;

interface Flow {
  readonly client: SocketAddress;
  readonly server: SocketAddress;
  readonly upstream: Socket;
  readonly ended: AbortController;
  /** Undefined: they go through. */
  waiting: Buffer[] | undefined;
  saidMs: number;
}

/** Throws where an address cannot be listened at; nothing stays open then. */
export function startDatagramProxy(options: DatagramProxyOptions): DatagramProxy {
  const proxy = new DatagramProxy(options);
  try {
    for (const address of options.listen) {
      proxy.listen(address);
    }
  } catch (error) {
    proxy.close();
    throw error;
  }
  return proxy;
}

export class DatagramProxy {
  /** Where it listens, in the order asked for. */
  readonly addresses: SocketAddress[] = [];
  readonly #options: Required<Omit<DatagramProxyOptions, 'onAnswer'>> &
    Pick<DatagramProxyOptions, 'onAnswer'>;
  readonly #listeners: DatagramListener[] = [];
  /** By both ends; the one on which something was said last comes last. */
  readonly #flows = new Map<string, Flow>();
  readonly #timer: NodeJS.Timeout;

  constructor(options: DatagramProxyOptions) {
    this.#options = {
      allowUnidentified: false,
      resolveTimeoutMs: 5_000,
      idleTimeoutMs: 60_000,
      mostFlows: 8_192,
      ...options,
    };
    this.#timer = setInterval(() => this.#endIdle(), LOOK_MS);
  }

  /** Flows at this moment. */
  active = (): number => this.#flows.size;

  listen({ ip, port }: SocketAddress): void {
    const v6only = this.#options.listen.some((other) => other.port === port && familyOf(other.ip) === 4);
    const listener = this.#options.sockets.listen({ ip, port }, v6only, (datagrams) => {
      for (const { from, to, data } of datagrams) {
        this.#take(from, to, data);
      }
    });
    this.#listeners.push(listener);
    this.addresses.push({ ip, port: listener.port });
  }

  close(): void {
    clearInterval(this.#timer);
    for (const listener of this.#listeners) {
      listener.close();
    }
    for (const key of [...this.#flows.keys()]) {
      this.#end(key);
    }
  }

  #take(client: SocketAddress, server: SocketAddress, data: Buffer): void {
    const key = `${client.ip} ${client.port} ${server.ip} ${server.port}`;
    const flow = this.#flows.get(key) ?? this.#begin(key, client, server);
    if (flow === undefined) {
      return;
    }
    flow.saidMs = performance.now();
    this.#flows.delete(key);
    this.#flows.set(key, flow);
    if (flow.waiting === undefined) {
      flow.upstream.send(data);
    } else if (flow.waiting.length < MOST_WAITING) {
      flow.waiting.push(data);
    }
  }

  #begin(key: string, client: SocketAddress, server: SocketAddress): Flow | undefined {
    if (leadsBack(server, this.addresses)) {
      const told = { ...textOf({ client, server }), reason: 'LOOP' };
      this.#options.log.warn(told, 'datagram refused: it is for this proxy');
      return undefined;
    }
    const [oldest] = this.#flows.keys();
    if (this.#flows.size >= this.#options.mostFlows && oldest !== undefined) {
      this.#end(oldest);
    }
    const upstream = createSocket(familyOf(server.ip) === 6 ? 'udp6' : 'udp4');
    const flow: Flow = { client, server, upstream, ended: new AbortController(), waiting: [], saidMs: 0 };
    // That nobody is there is told to who asked by nothing being answered.
    upstream.on('error', (error) =>
      this.#options.log.debug({ ...textOf(flow), err: error }, 'datagram not passed on'),
    );
    upstream.on('message', (answer) => this.#answer(flow, answer));
    void this.#open(key, flow).catch((error: unknown) => {
      this.#options.log.error({ ...textOf(flow), err: error }, 'flow failed');
      this.#end(key);
    });
    return flow;
  }

  async #open(key: string, flow: Flow): Promise<void> {
    const { client, log, allowUnidentified, resolveTimeoutMs } = this.#options;
    const { client: src, server: dst, upstream, ended } = flow;
    const connecting = settled(once(upstream, 'connect', { signal: ended.signal }));
    upstream.connect(dst.port, dst.ip);
    let told: object;
    try {
      const known = knownBy(await whoIs(client, src, dst, resolveTimeoutMs, ended.signal, 'udp'));
      const { own, direction, assurance, by } = known;
      const other = otherEnd(client, known, src, dst);
      told = { resolved: true, direction, ...namesOf(own), assurance, by, other };
    } catch (error) {
      told = { resolved: false, reason: reasonOf(error) };
      if (!allowUnidentified) {
        if (!ended.signal.aborted) {
          log.warn({ ...textOf(flow), ...told }, 'datagram refused: nobody knows whose it is');
        }
        this.#end(key);
        return;
      }
    }
    const connected = await connecting;
    if (ended.signal.aborted) {
      return;
    }
    if ('error' in connected) {
      const failed = { ...textOf(flow), ...told, connectError: reasonOf(connected.error) };
      log.warn(failed, 'datagram refused: destination not reached');
      this.#end(key);
      return;
    }
    upstream.setRecvBufferSize(RECEIVE_BYTES);
    log.info({ ...textOf(flow), ...told }, 'flow');
    const { waiting = [] } = flow;
    flow.waiting = undefined;
    for (const data of waiting) {
      upstream.send(data);
    }
  }

  #answer(flow: Flow, answer: Buffer): void {
    flow.saidMs = performance.now();
    this.#options.onAnswer?.(flow, answer);
    try {
      this.#options.sockets.send(flow.server, flow.client, answer);
    } catch (error) {
      this.#options.log.debug({ ...textOf(flow), err: error }, 'answer not sent');
    }
  }

  #endIdle(): void {
    const { idleTimeoutMs } = this.#options;
    const nowMs = performance.now();
    for (const [key, { server, saidMs }] of this.#flows) {
      const idleMs = server.port === DNS_PORT ? Math.min(idleTimeoutMs, DNS_IDLE_MS) : idleTimeoutMs;
      if (nowMs - saidMs > idleMs) {
        this.#end(key);
      }
    }
  }

  #end(key: string): void {
    const flow = this.#flows.get(key);
    if (flow !== undefined) {
      this.#flows.delete(key);
      flow.ended.abort();
      flow.upstream.close();
    }
  }
}

function textOf({ client, server }: Pick<Flow, 'client' | 'server'>) {
  return { protocol: 'udp', peer: formatSocketAddress(client), originalDst: formatSocketAddress(server) };
}
