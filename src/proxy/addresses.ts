/** Whether a destination is one of this machine's own, and addresses as a dual-stack socket reports them. */

import { networkInterfaces } from 'node:os';
import { parseIp } from '../net/ip.js';
import type { SocketAddress } from '../net/socket-address.js';

/** A dual-stack socket reports IPv4 in its IPv4-mapped form. */
export function plainIp(ip: string): string {
  return parseIp(ip) ?? ip;
}

/** Connecting there would come back here. Only a destination with a port of ours costs a look at the interfaces. */
export function leadsBack(destination: SocketAddress, listeners: readonly SocketAddress[]): boolean {
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
