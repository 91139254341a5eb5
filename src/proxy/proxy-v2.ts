/**
 * The header of the PROXY protocol, version 2 (proxy-protocol.txt of HAProxy, 2.2): between which addresses the flow is, and as
 * TLVs who sends it.
 */

import { familyOf } from '../net/family.js';
import { ipToNetworkBytes } from '../net/ip.js';
import type { SocketAddress } from '../net/socket-address.js';

/** Types of the TLVs. 0xE0 to 0xEF are for whoever has a use of their own. */
export interface ProxyV2Types {
  /** Of the SPIFFE ID. */
  readonly id: number;
  /** Of the namespace and the name of the pod, as `default/web-0`. */
  readonly pod: number;
}

export const DEFAULT_TYPES: ProxyV2Types = { id: 0xe0, pod: 0xe1 };

export interface ProxyV2Sender {
  readonly spiffeId: string;
  readonly namespace: string;
  readonly podName: string;
}

const SIGNATURE = Buffer.from('\r\n\r\n\0\r\nQUIT\n', 'latin1');
/** Version 2, command PROXY. */
const PROXY = 0x21;
const TCP = { 4: 0x11, 6: 0x21 } as const;

/** Without TLVs where nobody is known to send it. RangeError for ends of two families. */
export function proxyV2Header(
  src: SocketAddress,
  dst: SocketAddress,
  sender: ProxyV2Sender | undefined,
  types: ProxyV2Types,
): Buffer {
  const family = familyOf(src.ip);
  if (familyOf(dst.ip) !== family) {
    throw new RangeError(`one family for both ends, not ${src.ip} and ${dst.ip}`);
  }
  const body = Buffer.concat([
    ipToNetworkBytes(src.ip),
    ipToNetworkBytes(dst.ip),
    uint16(src.port),
    uint16(dst.port),
    ...(sender === undefined
      ? []
      : [tlv(types.id, sender.spiffeId), tlv(types.pod, `${sender.namespace}/${sender.podName}`)]),
  ]);
  return Buffer.concat([SIGNATURE, Buffer.of(PROXY, TCP[family]), uint16(body.length), body]);
}

function tlv(type: number, text: string): Buffer {
  const value = Buffer.from(text);
  return Buffer.concat([Buffer.of(type), uint16(value.length), value]);
}

/** In network byte order. */
function uint16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}
