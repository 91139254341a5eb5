/** IP addresses and socket addresses as text and as the 16 bytes that the kernel maps hold. */

import { isIPv4, isIPv6 } from 'node:net';

/** Structurally the `SocketAddress` of the datapath. */
export interface IpAndPort {
  /** Canonical text, never IPv4-mapped. */
  readonly ip: string;
  readonly port: number;
}

const MAPPED_PREFIX = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
const PORT = /^(?:0|[1-9]\d{0,4})$/;
const BRACKETED = /^\[([^\]]+)\]:(\d+)$/;
const PLAIN = /^([\d.]+):(\d+)$/;

/**
 * Canonical text of an address: RFC 5952 for IPv6, dotted decimal for IPv4 and for IPv4-mapped IPv6. Undefined
 * for anything else, a prefix length or a zone among it.
 */
export function parseIp(text: string): string | undefined {
  const bytes = toBytes(text);
  return bytes === undefined ? undefined : bytesToIp(bytes);
}

/** 16 bytes, IPv4 in its IPv4-mapped form (RFC 4291, 2.5.5.2). RangeError for what is not an address. */
export function ipToBytes(ip: string): Uint8Array {
  const bytes = toBytes(ip);
  if (bytes === undefined) {
    throw new RangeError(`not an IP address: ${JSON.stringify(ip)}`);
  }
  return bytes;
}

/** Canonical text of 16 bytes; an IPv4-mapped address comes out as IPv4. */
export function bytesToIp(bytes: Uint8Array): string {
  if (bytes.length !== 16) {
    throw new RangeError(`an address has 16 bytes, not ${bytes.length}`);
  }
  if (MAPPED_PREFIX.every((byte, index) => bytes[index] === byte)) {
    return bytes.subarray(12).join('.');
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, 16);
  const words = Array.from({ length: 8 }, (_, index) => view.getUint16(index * 2));
  const zeros = longestZeroRun(words);
  const hex = (part: readonly number[]): string => part.map((word) => word.toString(16)).join(':');
  return zeros.length < 2
    ? hex(words)
    : `${hex(words.slice(0, zeros.start))}::${hex(words.slice(zeros.start + zeros.length))}`;
}

/** `10.0.0.1:80` or `[fd00::1]:80`; undefined for anything else. Port 0 is accepted here. */
export function parseSocketAddress(text: string): IpAndPort | undefined {
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

export function formatSocketAddress(address: IpAndPort): string {
  return address.ip.includes(':') ? `[${address.ip}]:${address.port}` : `${address.ip}:${address.port}`;
}

/** Of canonical text. */
export function familyOf(ip: string): 4 | 6 {
  return ip.includes(':') ? 6 : 4;
}

function toBytes(text: string): Uint8Array | undefined {
  if (isIPv4(text)) {
    return Uint8Array.from([...MAPPED_PREFIX, ...text.split('.').map(Number)]);
  }
  if (!isIPv6(text) || text.includes('%')) {
    return undefined;
  }
  const [head = '', tail] = text.split('::');
  const left = groups(head);
  const right = groups(tail ?? '');
  const bytes = new Uint8Array(16);
  bytes.set(left, 0);
  bytes.set(right, 16 - right.length);
  return bytes;
}

/** The bytes of `a:b:c`, whose last part may be dotted decimal. */
function groups(text: string): number[] {
  return text === ''
    ? []
    : text.split(':').flatMap((part) => {
        if (part.includes('.')) {
          return part.split('.').map(Number);
        }
        const word = Number.parseInt(part, 16);
        return [word >> 8, word & 0xff];
      });
}

/** The run that `::` stands for: the longest, the first among equals (RFC 5952, 4.2.3). */
function longestZeroRun(words: readonly number[]): { start: number; length: number } {
  let best = { start: 0, length: 0 };
  let start = 0;
  words.forEach((word, index) => {
    if (word !== 0) {
      start = index + 1;
    } else if (index + 1 - start > best.length) {
      best = { start, length: index + 1 - start };
    }
  });
  return best;
}
