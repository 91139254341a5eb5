/** Rules, routes and links as rtnetlink tells them, in our own words. */

import netlink from 'netlink';
import { AF, type Family } from '../net/family.js';
import type { Link } from '../net/link.js';

const IFLA_IFNAME = 3;
const IFLA_MTU = 4;
const IFLA_INFO_KIND = 1;
const IFLA_INFO_DATA = 2;
const IFLA_BR_AGEING_TIME = 4;
const VETH_INFO_PEER = 1;
const IFINFOMSG_BYTES = 16;
/**
 * Marks rules and routes as ours in `ip rule` and `ip route` (`proto 73`); rtnetlink(7), RTPROT values above 4 are
 * free.
 */
export const ROUTE_PROTOCOL = 73;

export interface Rule {
  readonly family: Family;
  readonly priority: number;
  readonly table: number;
  readonly mark: number;
  readonly mask: number;
  readonly protocol: number;
  /** Anything the rule matches besides the mark; a rule of ours has none. */
  readonly narrowed: boolean;
}

export interface Route {
  readonly family: Family;
  readonly table: number;
  readonly type: string;
  readonly prefixLength: number;
  readonly interfaceIndex: number | undefined;
  readonly protocol: number;
}

/** What names a rule when it is added or deleted. */
export function ruleAttrs(rule: Omit<Rule, 'narrowed'>): netlink.rt.RuleAttrs {
  return {
    table: rule.table,
    priority: rule.priority,
    fwmark: rule.mark,
    fwmask: rule.mask,
    protocol: rule.protocol,
  };
}

/** `local default`, of our protocol. */
export function localDefault(family: Family): netlink.rt.Route {
  return {
    family: AF[family],
    dstLen: 0,
    srcLen: 0,
    table: 0,
    protocol: ROUTE_PROTOCOL as netlink.rt.RouteProtocol,
    scope: family === 4 ? 'HOST' : 'UNIVERSE',
    type: 'LOCAL',
  };
}

/** Of a message that the package has decoded. */
export function toRule(family: Family, message: netlink.rt.RuleMessage): Rule {
  const { data, attrs } = message;
  const narrowed =
    data.action !== 'toTbl' ||
    (data.dstLen ?? 0) !== 0 ||
    (data.srcLen ?? 0) !== 0 ||
    (data.tos ?? 0) !== 0 ||
    data.flags?.invert === true ||
    attrs.iifname !== undefined ||
    attrs.oifname !== undefined ||
    attrs.uidRange !== undefined ||
    attrs.ipProto !== undefined ||
    attrs.sportRange !== undefined ||
    attrs.dportRange !== undefined ||
    attrs.l3Mdev !== undefined;
  return {
    family,
    priority: attrs.priority ?? 0,
    table: attrs.table ?? data.table ?? 0,
    mark: attrs.fwmark ?? 0,
    mask: attrs.fwmask ?? 0,
    protocol: attrs.protocol ?? 0,
    narrowed,
  };
}

/** Of a message that the package has decoded. */
export function toRoute(family: Family, message: netlink.rt.RouteMessage): Route {
  const { data, attrs } = message;
  return {
    family,
    table: attrs.table ?? data.table ?? 0,
    type: String(data.type ?? 'UNSPEC'),
    prefixLength: data.dstLen ?? 0,
    interfaceIndex: attrs.oif,
    protocol:
      typeof data.protocol === 'string' ? netlink.rt.RouteProtocol[data.protocol] : (data.protocol ?? 0),
  };
}

/** Of a message that the package has decoded. */
export function toLink(message: netlink.rt.LinkMessage): Link {
  const { data, attrs } = message;
  return {
    index: data.index ?? 0,
    name: attrs.ifname ?? '',
    kind: linkKind(attrs.linkinfo),
    loopback: data.flags?.loopback === true,
    up: data.flags?.up === true,
    ethernet: data.type === 'ETHER',
    peerIndex: attrs.link !== undefined && attrs.link.length >= 4 ? attrs.link.readUInt32LE(0) : undefined,
    peerNamespaceId: typeof attrs.linkNetnsid === 'number' ? attrs.linkNetnsid : undefined,
    master: attrs.master ?? 0,
    ...ageingOf(attrs.linkinfo),
  };
}

/** IFLA_LINKINFO of a veth pair (if_link.h): its kind, and the name of the other end with the same MTU. */
export function vethInfo(peer: string, mtu: number): Buffer {
  const size = Buffer.alloc(4);
  size.writeUInt32LE(mtu, 0);
  const other = Buffer.concat([
    Buffer.alloc(IFINFOMSG_BYTES),
    attribute(IFLA_IFNAME, Buffer.from(`${peer}\0`)),
    attribute(IFLA_MTU, size),
  ]);
  return Buffer.concat([
    attribute(IFLA_INFO_KIND, Buffer.from('veth')),
    attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, other)),
  ]);
}

function attribute(type: number, data: Buffer): Buffer {
  const length = 4 + data.length;
  const whole = Buffer.alloc((length + 3) & ~3);
  whole.writeUInt16LE(length, 0);
  whole.writeUInt16LE(type, 2);
  data.copy(whole, 4);
  return whole;
}

/** The package leaves IFLA_LINKINFO unparsed: nested attributes, of which IFLA_INFO_KIND is a C string. */
function linkKind(info: Buffer | undefined): string {
  for (const attribute of attributes(info ?? Buffer.alloc(0))) {
    if (attribute.type === IFLA_INFO_KIND) {
      return attribute.data.toString('latin1').replace(/\0.*$/s, '');
    }
  }
  return '';
}

/** IFLA_BR_AGEING_TIME within IFLA_INFO_DATA, in hundredths of a second. */
function ageingOf(info: Buffer | undefined): Pick<Link, 'ageingMs'> {
  if (linkKind(info) !== 'bridge') {
    return {};
  }
  for (const { type, data } of attributes(info ?? Buffer.alloc(0))) {
    for (const inner of type === IFLA_INFO_DATA ? attributes(data) : []) {
      if (inner.type === IFLA_BR_AGEING_TIME && inner.data.length >= 4) {
        return { ageingMs: inner.data.readUInt32LE(0) * 10 };
      }
    }
  }
  return {};
}

/** Netlink attributes: length (header included) and type, host byte order, each padded to 4 bytes (netlink(7)). */
export function* attributes(buffer: Buffer): Generator<{ type: number; data: Buffer }> {
  for (let offset = 0; offset + 4 <= buffer.length; ) {
    const length = buffer.readUInt16LE(offset);
    if (length < 4 || offset + length > buffer.length) {
      return;
    }
    yield {
      type: buffer.readUInt16LE(offset + 2) & 0x3fff,
      data: buffer.subarray(offset + 4, offset + length),
    };
    offset += (length + 3) & ~3;
  }
}
