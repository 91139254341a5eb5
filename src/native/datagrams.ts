/** Datagrams for a proxy: with the address that they were sent to, and answered as if from there. */

import { isIP } from 'node:net';
import { checkBytes, checkFunction, checkPositive, checkUnsigned, throwingOutside } from './addon.js';
import { addon } from './kernel-addon.js';

export interface DatagramAddress {
  readonly ip: string;
  readonly port: number;
}

export interface ReceivedDatagram {
  readonly from: DatagramAddress;
  /** Where it was going, be that another machine's address. */
  readonly to: DatagramAddress;
  readonly data: Buffer;
}

export interface DatagramListener {
  /** That the kernel has chosen where it was asked for 0. */
  readonly port: number;
  /** Dropped, for too many were waiting. */
  readonly lost: number;
  close(): void;
}

/** How many wait while JavaScript is busy. */
const QUEUE_LIMIT = 16_384;

/**
 * Takes datagrams at this address, in batches, until it is closed; alone it does not keep the process alive. Whoever makes
 * the socket transparent (IP_TRANSPARENT) and gives it datagrams that go elsewhere has them told with their own destination:
 * ip(7), IP_RECVORIGDSTADDR. `v6only` is heeded for IPv6 alone. KernelError, such as EADDRINUSE.
 */
export function listenForDatagrams(
  { ip, port }: DatagramAddress,
  v6only: boolean,
  onDatagrams: (datagrams: ReceivedDatagram[]) => void,
): DatagramListener {
  checkIp(ip);
  checkUnsigned(port, 'port', 65_535);
  checkFunction(onDatagrams, 'onDatagrams');
  return new addon.DatagramListener(
    ip,
    port,
    v6only,
    QUEUE_LIMIT,
    throwingOutside((batch) =>
      onDatagrams(
        batch.map(({ fromIp, fromPort, toIp, toPort, data }) => ({
          from: { ip: fromIp, port: fromPort },
          to: { ip: toIp, port: toPort },
          data,
        })),
      ),
    ),
  );
}

/** Sends datagrams from any address and port, of one family; opened when it is first used. */
export class DatagramSender {
  readonly #sockets = new Map<4 | 6, InstanceType<typeof addon.DatagramSender>>();

  /**
   * Returns whether it was sent: not, where there is no room for it at this moment. `from` need not be one of this machine's.
   * Needs CAP_NET_RAW. KernelError, such as EMSGSIZE for more than fits into one datagram.
   */
  send(from: DatagramAddress, to: DatagramAddress, data: Uint8Array): boolean {
    checkIp(from.ip);
    checkIp(to.ip);
    checkPositive(from.port, 'port', 65_535);
    checkPositive(to.port, 'port', 65_535);
    checkBytes(data, 'data');
    const family = isIP(to.ip) === 6 ? 6 : 4;
    const socket = this.#sockets.get(family) ?? new addon.DatagramSender(family);
    this.#sockets.set(family, socket);
    return socket.send(from.ip, from.port, to.ip, to.port, data);
  }

  close(): void {
    for (const socket of this.#sockets.values()) {
      socket.close();
    }
    this.#sockets.clear();
  }
}

function checkIp(ip: string): void {
  if (isIP(ip) === 0) {
    throw new TypeError('ip must be an IP address');
  }
}
