/** An address with a port, as text and in two parts. */

import { isIPv6 } from 'node:net';
import { familyOf } from './family.js';
import { parseIp } from './ip.js';

export interface SocketAddress {
  /** Canonical text, never IPv4-mapped. */
  readonly ip: string;
  readonly port: number;
}

const PORT = /^(?:0|[1-9]\d{0,4})$/;
const BRACKETED = /^\[([^\]]+)\]:(\d+)$/;
const PLAIN = /^([\d.]+):(\d+)$/;

/** `10.0.0.1:80` or `[fd00::1]:80`; undefined for anything else. Port 0 is accepted here. */
export function parseSocketAddress(text: string): SocketAddress | undefined {
  const bracketed = BRACKETED.exec(text);
  const [, host, portText] = bracketed ?? PLAIN.exec(text) ?? [];
  if (host === undefined || portText === undefined || !PORT.test(portText)) {
    return undefined;
  }
  if (bracketed !== null && !isIPv6(host)) {
    return undefined;
  }
  const ip = parseIp(host);
  const port = Number(portText);
  return ip === undefined || port > 65535 ? undefined : { ip, port };
}

/** As `parseSocketAddress` reads it. */
export function formatSocketAddress({ ip, port }: SocketAddress): string {
  return familyOf(ip) === 6 ? `[${ip}]:${port}` : `${ip}:${port}`;
}
