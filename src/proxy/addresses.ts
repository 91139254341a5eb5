/** Listen addresses, and whether a destination is one of this machine's own. */

import { isIP } from 'node:net';
import { networkInterfaces } from 'node:os';

export interface Address {
  readonly ip: string;
  readonly port: number;
}

const IPV4_MAPPED = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i;
const BRACKETED = /^\[([^\]]+)\]:(\d{1,5})$/;
const PLAIN = /^([^:]+):(\d{1,5})$/;

/** `127.0.0.1:15001` or `[::1]:15001`; port 0 asks for any. Undefined for anything else. */
export function parseAddress(text: string): Address | undefined {
  const [, ip = '', port = ''] = BRACKETED.exec(text) ?? PLAIN.exec(text) ?? [];
  const family = isIP(ip);
  const bracketed = text.startsWith('[');
  return family !== 0 && (family === 6) === bracketed && Number(port) <= 65_535
    ? { ip, port: Number(port) }
    : undefined;
}

export function formatAddress({ ip, port }: Address): string {
  return ip.includes(':') ? `[${ip}]:${port}` : `${ip}:${port}`;
}

/** A dual-stack socket reports IPv4 in its IPv4-mapped form. */
export function plainIp(ip: string): string {
  return IPV4_MAPPED.exec(ip)?.[1] ?? ip;
}

/** Connecting there would come back here. Only a destination with a port of ours costs a look at the interfaces. */
export function leadsBack(destination: Address, listeners: readonly Address[]): boolean {
  return (
    listeners.some(({ port }) => port === destination.port) &&
    (listeners.some(({ ip }) => ip === destination.ip) || isLocal(destination.ip))
  );
}

function isLocal(ip: string): boolean {
  return (
    ip.startsWith('127.') ||
    ip === '0.0.0.0' ||
    ip === '::' ||
    Object.values(networkInterfaces()).some((addresses) => addresses?.some(({ address }) => address === ip))
  );
}
