/**
 * A connection of the agent's own to an instance's listener. It goes by the slot, as a pod's would: its record in `flows`
 * names the listener, whatever it dials. The kernel completes the handshake by itself, so what counts is that a process has
 * accepted it.
 */

import { randomInt } from 'node:crypto';
import { createConnection, type Socket } from 'node:net';
import type { BpfMap } from '../native/bpf.js';
import { tcpInode } from '../native/sockets.js';
import type { Family } from '../net/family.js';
import { ipToBytes } from '../net/ip.js';
import type { Layouts } from './layouts.js';

/** dialling: the handshake is not over. queued: nobody has accepted it. gone: refused. */
export type ProbeState = 'dialling' | 'queued' | 'accepted' | 'gone';

export interface ProbeTarget {
  /** Of the instance, or of a generation of it. */
  readonly number: number;
  readonly direction: 'outbound' | 'inbound';
  readonly family: Family;
}

export interface ProbeOptions {
  readonly flows: BpfMap;
  readonly layouts: Pick<Layouts, 'flow' | 'flowKey' | 'limits'>;
}

const IPPROTO_TCP = 6;
const LOOPBACK = { 4: '127.0.0.1', 6: '::1' } as const;
const LOOPBACK_INDEX = 1;
/** Nobody's service: a proxy that dials on finds nobody there. */
const PORT = 1;
const LOCAL_PORTS = [20_000, 32_767] as const;

export class ListenerProbe {
  readonly #flows: BpfMap;
  readonly #key: Buffer;
  readonly #address: Uint8Array;
  readonly #port: number;
  readonly #socket: Socket;
  #isOver = false;
  #accepted = false;

  constructor({ flows, layouts }: ProbeOptions, { number, direction, family }: ProbeTarget) {
    const host = LOOPBACK[family];
    this.#flows = flows;
    this.#address = ipToBytes(host);
    this.#port = randomInt(...LOCAL_PORTS);
    this.#key = layouts.flowKey.encode({
      src: this.#address,
      dst: this.#address,
      sport: this.#port,
      dport: PORT,
      protocol: IPPROTO_TCP,
    });
    const record = {
      started_ns: process.hrtime.bigint(),
      endpoint: layouts.limits.agentEndpoint,
      ifindex: LOOPBACK_INDEX,
      instance: number,
      direction: direction === 'inbound' ? 1 : 0,
    };
    flows.set(this.#key, layouts.flow.encode(record));
    this.#socket = createConnection({ host, port: PORT, localAddress: host, localPort: this.#port });
    // Nobody but who has accepted it can say something or end it; or its listener goes, which is noticed by itself.
    let isOpen = false;
    this.#socket.on('connect', () => {
      isOpen = true;
    });
    this.#socket.on('data', () => {
      this.#accepted = true;
    });
    this.#socket.on('error', (error: NodeJS.ErrnoException) => {
      isOpen ||= error.code === 'ECONNRESET'; // a handshake that is refused is ECONNREFUSED
    });
    this.#socket.on('close', () => {
      this.#isOver = true;
      this.#accepted ||= isOpen;
    });
  }

  state(): ProbeState {
    if (this.#accepted) {
      return 'accepted';
    }
    const inode = tcpInode(
      { address: this.#address, port: PORT },
      { address: this.#address, port: this.#port },
    );
    if (inode !== undefined && inode > 0) {
      this.#accepted = true;
      return 'accepted';
    }
    if (this.#isOver) {
      return 'gone';
    }
    return this.#socket.connecting ? 'dialling' : 'queued';
  }

  close(): void {
    this.#socket.destroy();
    this.#flows.delete(this.#key);
  }
}
