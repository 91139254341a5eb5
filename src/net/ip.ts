/** IP addresses as text and as the 16 bytes that the kernel maps hold, and prefixes. */

import { isIPv4, isIPv6 } from 'node:net';
import ipaddr from 'ipaddr.js';
import { familyOf } from './family.js';

/**
 * Canonical text of an address: RFC 5952 for IPv6, dotted decimal for IPv4 and for IPv4-mapped IPv6. Undefined
 * for anything else, a prefix length or a zone among it.
 */
export function parseIp(text: string): string | undefined {
  return parse(text)?.toString();
}

/** 16 bytes, IPv4 in its IPv4-mapped form (RFC 4291, 2.5.5.2). RangeError for what is not an address. */
export function ipToBytes(ip: string): Uint8Array {
  const address = parsed(ip);
  return Uint8Array.from(
    (address instanceof ipaddr.IPv4 ? address.toIPv4MappedAddress() : address).toByteArray(),
  );
}

/** In network byte order, 4 or 16 bytes by family. RangeError for what is not an address. */
export function ipToNetworkBytes(ip: string): Uint8Array {
  return Uint8Array.from(parsed(ip).toByteArray());
}

/** Canonical text of 16 bytes; an IPv4-mapped address comes out as IPv4. RangeError for another length. */
export function bytesToIp(bytes: Uint8Array): string {
  if (bytes.length !== 16) {
    throw new RangeError(`an address has 16 bytes, not ${bytes.length}`);
  }
  return canonical(ipaddr.fromByteArray([...bytes])).toString();
}

export interface Prefix {
  /** Canonical text; bits after the prefix may be set. */
  readonly ip: string;
  readonly length: number;
}

/**
 * `10.66.0.3/24` or `fd00::/8`; undefined for anything else, an address without a length among it. A mapped one comes out as
 * IPv4, as its address does.
 */
export function parsePrefix(text: string): Prefix | undefined {
  const [address = '', bits = '', ...rest] = text.split('/');
  const ip = parseIp(address);
  if (ip === undefined || rest.length > 0 || !/^\d{1,3}$/.test(bits)) {
    return undefined;
  }
  const most = familyOf(ip) === 6 ? 128 : 32;
  const length = Number(bits) - (familyOf(address) === 6 ? 128 - most : 0);
  return length < 0 || length > most ? undefined : { ip, length };
}

/**
 * The library also takes `0x7f.1`, `010.0.0.1` and zones for addresses, so Node says what one is; and it takes a dotted
 * end for IPv4-mapped whatever stands before it (`::1.2.3.4`), so it is never shown one.
 */
function parse(text: string): ipaddr.IPv4 | ipaddr.IPv6 | undefined {
  if (isIPv4(text)) {
    return ipaddr.parse(text);
  }
  return isIPv6(text) && !text.includes('%') ? canonical(ipaddr.parse(withoutDots(text))) : undefined;
}

/** The dotted end of an IPv6 address as two groups (RFC 4291, 2.2). */
function withoutDots(text: string): string {
  return text.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_, ...parts: string[]) => {
    const [a = 0, b = 0, c = 0, d = 0] = parts.slice(0, 4).map(Number);
    return `${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`;
  });
}

function parsed(ip: string): ipaddr.IPv4 | ipaddr.IPv6 {
  const address = parse(ip);
  if (address === undefined) {
    throw new RangeError(`not an IP address: ${JSON.stringify(ip)}`);
  }
  return address;
}

function canonical(address: ipaddr.IPv4 | ipaddr.IPv6): ipaddr.IPv4 | ipaddr.IPv6 {
  return address instanceof ipaddr.IPv6 && address.isIPv4MappedAddress() ? address.toIPv4Address() : address;
}
