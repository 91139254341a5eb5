/** Frames as a pod would send them, byte by byte, with right checksums; tests bend one field at a time. */

import { ipToBytes } from '../../src/net/ip.js';

export const TCP = { FIN: 0x01, SYN: 0x02, RST: 0x04, PSH: 0x08, ACK: 0x10 } as const;
export const PROTOCOL = {
  TCP: 6,
  UDP: 17,
  ICMP6: 58,
  HOP_BY_HOP: 0,
  ROUTING: 43,
  FRAGMENT: 44,
  AH: 51,
  DESTINATION: 60,
} as const;

export interface FrameOptions {
  readonly src: string;
  readonly dst: string;
  readonly sport?: number;
  readonly dport?: number;
  readonly flags?: number;
  readonly sequence?: number;
  readonly acknowledgement?: number;
  readonly tcpOptions?: Uint8Array;
  readonly payload?: Uint8Array;
  readonly protocol?: number;
  /** VLAN tags in the frame, outermost first. */
  readonly vlans?: readonly number[];
  /** Multiple of 4 bytes. */
  readonly ipOptions?: Uint8Array;
  /** IPv4 flags and fragment offset field. */
  readonly fragment?: number;
  /** Extension headers, each `[its own number, bytes with a placeholder for the next header at 0]`. */
  readonly extensions?: readonly (readonly [number, Uint8Array])[];
  readonly patch?: (frame: Buffer, offsets: { l3: number; l4: number }) => void;
}

export const POD_MAC = Buffer.from('02000000000a', 'hex');
export const HOST_MAC = Buffer.from('02000000000b', 'hex');

export function sum16(...chunks: readonly Uint8Array[]): number {
  const bytes = Buffer.concat(
    chunks.map((chunk) => (chunk.length % 2 === 0 ? chunk : Buffer.concat([chunk, Buffer.alloc(1)]))),
  );
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) {
    sum += bytes.readUInt16BE(i);
  }
  while (sum > 0xffff) {
    sum = (sum & 0xffff) + (sum >>> 16);
  }
  return sum;
}

function isV6(ip: string): boolean {
  return ip.includes(':');
}

function addressBytes(ip: string): Buffer {
  const bytes = Buffer.from(ipToBytes(ip));
  return isV6(ip) ? bytes : bytes.subarray(12);
}

/** The pseudo-header's part of a TCP or UDP checksum (RFC 9293, 3.1; RFC 8200, 8.1). */
export function pseudoHeader(src: string, dst: string, protocol: number, length: number): Buffer {
  const tail = Buffer.alloc(isV6(src) ? 8 : 4);
  if (isV6(src)) {
    tail.writeUInt32BE(length, 0);
    tail[7] = protocol;
  } else {
    tail[1] = protocol;
    tail.writeUInt16BE(length, 2);
  }
  return Buffer.concat([addressBytes(src), addressBytes(dst), tail]);
}

function transport(options: FrameOptions): Buffer {
  const {
    src,
    dst,
    tcpOptions = Buffer.alloc(0),
    payload = Buffer.alloc(0),
    protocol = PROTOCOL.TCP,
  } = options;
  if (protocol !== PROTOCOL.TCP) {
    const header = Buffer.alloc(8);
    header.writeUInt16BE(options.sport ?? 40000, 0);
    header.writeUInt16BE(options.dport ?? 53, 2);
    header.writeUInt16BE(8 + payload.length, 4);
    return Buffer.concat([header, payload]);
  }
  const header = Buffer.alloc(20);
  header.writeUInt16BE(options.sport ?? 40000, 0);
  header.writeUInt16BE(options.dport ?? 80, 2);
  header.writeUInt32BE(options.sequence ?? 1000, 4);
  header.writeUInt32BE(options.acknowledgement ?? 0, 8);
  header[12] = ((20 + tcpOptions.length) / 4) << 4;
  header[13] = options.flags ?? TCP.SYN;
  header.writeUInt16BE(64240, 14);
  const segment = Buffer.concat([header, tcpOptions, payload]);
  segment.writeUInt16BE(~sum16(pseudoHeader(src, dst, PROTOCOL.TCP, segment.length), segment) & 0xffff, 16);
  return segment;
}

function network(options: FrameOptions, body: Buffer): { header: Buffer; extensions: Buffer } {
  const { src, dst, ipOptions = Buffer.alloc(0), extensions = [], protocol = PROTOCOL.TCP } = options;
  if (!isV6(src)) {
    const header = Buffer.concat([Buffer.alloc(20), ipOptions]);
    header[0] = 0x40 | (header.length / 4);
    header.writeUInt16BE(header.length + body.length, 2);
    header.writeUInt16BE(options.fragment ?? 0x4000, 6);
    header[8] = 64;
    header[9] = protocol;
    addressBytes(src).copy(header, 12);
    addressBytes(dst).copy(header, 16);
    header.writeUInt16BE(~sum16(header) & 0xffff, 10);
    return { header, extensions: Buffer.alloc(0) };
  }
  const chain = extensions.map(([, bytes], index) => {
    const copy = Buffer.from(bytes);
    copy[0] = extensions[index + 1]?.[0] ?? protocol;
    return copy;
  });
  const all = Buffer.concat(chain);
  const header = Buffer.alloc(40);
  header[0] = 0x60;
  header.writeUInt16BE(all.length + body.length, 4);
  header[6] = extensions[0]?.[0] ?? protocol;
  header[7] = 64;
  addressBytes(src).copy(header, 8);
  addressBytes(dst).copy(header, 24);
  return { header, extensions: all };
}

export function frame(options: FrameOptions): Buffer {
  const body = transport(options);
  const { header, extensions } = network(options, body);
  const tags = (options.vlans ?? []).map((id) => Buffer.from([0x81, 0x00, id >> 8, id & 0xff]));
  const type = Buffer.from(isV6(options.src) ? [0x86, 0xdd] : [0x08, 0x00]);
  const ethernet = Buffer.concat([HOST_MAC, POD_MAC, ...tags, type]);
  const whole = Buffer.concat([ethernet, header, extensions, body]);
  options.patch?.(whole, { l3: ethernet.length, l4: ethernet.length + header.length + extensions.length });
  return whole;
}

/** What a test wants to know of a TCP packet that came back; throws where a checksum is wrong. */
export function readTcp(bytes: Buffer): {
  src: string;
  dst: string;
  sport: number;
  dport: number;
  sequence: number;
  acknowledgement: number;
  flags: number;
  toMac: Buffer;
} {
  const v6 = bytes.readUInt16BE(12) === 0x86dd;
  const l4 = 14 + (v6 ? 40 : (bytes.readUInt8(14) & 0x0f) * 4);
  const text = (from: number): string =>
    v6
      ? Array.from({ length: 8 }, (_, i) => bytes.readUInt16BE(from + i * 2).toString(16)).join(':')
      : [...bytes.subarray(from, from + 4)].join('.');
  const [src, dst] = v6 ? [text(22), text(38)] : [text(26), text(30)];
  if (!v6 && sum16(bytes.subarray(14, l4)) !== 0xffff) {
    throw new Error('the IPv4 header checksum is wrong');
  }
  const segment = bytes.subarray(l4);
  if (sum16(pseudoHeader(src, dst, PROTOCOL.TCP, segment.length), segment) !== 0xffff) {
    throw new Error('the TCP checksum is wrong');
  }
  return {
    src,
    dst,
    sport: segment.readUInt16BE(0),
    dport: segment.readUInt16BE(2),
    sequence: segment.readUInt32BE(4),
    acknowledgement: segment.readUInt32BE(8),
    flags: segment.readUInt8(13),
    toMac: bytes.subarray(0, 6),
  };
}
