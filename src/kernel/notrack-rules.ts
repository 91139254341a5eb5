/**
 * Our own nftables table, beside everybody else's, as it has to be. Intercepted packets and their replies are left out
 * of connection tracking, so that a DNAT rule in `nat PREROUTING` (kube-proxy's) does not change the destination that the
 * proxy sees. Who relies on what of it: docs/datapath.md, "Who relies on whom".
 */

import { formatMark, hex, type Mark } from '../net/mark.js';
import type { Json } from './nft.js';
import { STEERING_LINK } from './steering-link.js';

export interface Chain {
  readonly name: string;
  /** Undefined for one that only our own rules jump to. */
  readonly hook?: string;
  /** -300 is raw: before connection tracking (-200) and everybody's filters. Above 0 comes nothing but routing. */
  readonly prio?: number;
}

export interface Rule {
  readonly chain: string;
  /** Tells who looks at the node what the rule is for, and with which mark. */
  readonly comment: string;
  /** nft(8). */
  readonly text: string;
  /** The same as nft lists it, which is what is compared: libnftables-json(5). */
  readonly expr: readonly Json[];
}

/**
 * What is no business of ours meets in each chain at a hook one look at each thing that would make it so: a source or a
 * destination among the pods' addresses, our own interface, our mark, our priorities. All else stands behind a jump.
 */
export const CHAINS: readonly Chain[] = [
  { name: 'from_pod' },
  { name: 'answer' },
  { name: 'to_pod' },
  { name: 'local_marked' },
  { name: 'local_left' },
  { name: 'local_taken' },
  { name: 'prerouting', hook: 'prerouting', prio: -310 },
  { name: 'after_conntrack', hook: 'prerouting', prio: -190 },
  { name: 'before_routing', hook: 'prerouting', prio: 1000 },
  // After everybody's filters (0, security 50), before IPVS (98, 99).
  { name: 'input', hook: 'input', prio: 97 },
  { name: 'output', hook: 'output', prio: -300 },
];

/** A part of a rule in both forms. */
type Part = Pick<Rule, 'text' | 'expr'>;

/** In the order in which they run. */
export function notrackRules(mark: Mark): readonly Rule[] {
  const marked = formatMark(mark);
  const [others, ours] = [hex(~mark.mask >>> 0), hex(mark.value)];
  const isMarked: Part = {
    text: `meta mark and ${hex(mark.mask)} == ${ours}`,
    expr: [equals({ '&': [META_MARK, mark.mask] }, mark.value)],
  };
  const setMark: Part = {
    text: `meta mark set meta mark and ${others} or ${ours}`,
    expr: [markIsSet(mark)],
  };
  const setWholeMark: Part = {
    text: `meta mark set ${ours}`,
    expr: [{ mangle: { key: META_MARK, value: mark.value } }],
  };
  const clearMark: Part = { text: `meta mark set meta mark and ${others}`, expr: [markIsCleared(mark)] };
  const rule = (chain: string, what: string, parts: readonly Part[]): Rule => ({
    chain,
    comment: `${chain} ${what} ${marked}`,
    text: parts.map(({ text }) => text).join(' '),
    expr: parts.flatMap(({ expr }) => expr),
  });
  return [
    // An intercepted packet without a socket: the program could not or need not assign one, and says so by the priority.
    rule('prerouting', 'left to look-up', [IS_LEFT_TO_LOOKUP, NOTRACK, clearMark, ACCEPT]),
    ...FAMILIES.map(({ family, isFromPod }) =>
      rule('prerouting', `from a pod ${family}`, [isFromPod, IS_TCP, jump('from_pod')]),
    ),
    // An intercepted packet is not tracked. It does not bear our mark while the chains of others run: a reverse-path
    // check by mark (Calico's `rpfilter --validmark`, firewalld's) would find our local route and drop it. A packet of
    // somebody else's may have the same bit for a reason of its own, and goes on as it is. The same for a packet whose
    // connection is at the proxy's socket already, and which our program did not see: should it be missing for a moment,
    // the packet goes on to the proxy instead of to a destination that knows nothing of it.
    rule('from_pod', 'connected', [IS_TRANSPARENT, NOT_LISTENING, NOTRACK, clearMark, ACCEPT]),
    rule('from_pod', 'intercepted', [isMarked, IS_TRANSPARENT, NOTRACK, clearMark, ACCEPT]),
    // A datagram is given to the listener, each of them, and none without our program. It bears its mark no longer, as above.
    ...FAMILIES.map(({ family, isFromPod }) =>
      rule('prerouting', `datagram ${family}`, [
        isMarked,
        IS_UDP,
        isFromPod,
        IS_TRANSPARENT,
        NOTRACK,
        clearMark,
        ACCEPT,
      ]),
    ),
    // What is for an inbound listener was given its socket at our own interface. The reset of a redirect has taken its
    // connection tracking away, which goes on for the packets that come after it.
    rule('prerouting', 'steered', [isMarked, IS_STEERED, NOTRACK, clearMark]),
    rule('after_conntrack', 'left to conntrack', [IS_LEFT_TO_CONNTRACK, jump('answer')]),
    // A pod's segment that belongs to no flow of its own, where it can have no older one: it answers somebody who dialled
    // the pod, or is not let through.
    rule('answer', 'nobody', [IS_TCP, ANSWERS_NOBODY, REJECT]),
    rule('answer', 'somebody', [FORGET_PRIORITY]),
    rule('before_routing', 'left to look-up', [IS_LEFT_TO_LOOKUP, setMark, ACCEPT]),
    // Now everybody has seen the mark of a packet that is not ours, and our policy rule would deliver it on this node.
    rule('before_routing', 'foreign', [isMarked, clearMark]),
    // Ours gets its mark back by the socket that it was given. One that did not would be dropped by the stack, which
    // forwards no packet that has a socket (ip_forward).
    ...FAMILIES.map(({ family, isFromPod }) =>
      rule('before_routing', `intercepted ${family}`, [UNTRACKED, isFromPod, IS_TAKEN, setMark, ACCEPT]),
    ),
    ...FAMILIES.map(({ family, isFromPod }) =>
      rule('before_routing', `datagram ${family}`, [
        UNTRACKED,
        IS_UDP,
        isFromPod,
        IS_TRANSPARENT,
        setMark,
        ACCEPT,
      ]),
    ),
    // What a pod says of a packet that the proxy has sent it from the dialled address, too large for what is behind the pod or
    // to nobody, is for the proxy's socket: whoever has that address knows nothing of the connection.
    ...ERRORS.map(({ name, isError, family }) =>
      rule('before_routing', `pod's ${name}`, [
        isError,
        FAMILIES[family].isFromPod,
        IS_TRANSPARENT,
        setMark,
        ACCEPT,
      ]),
    ),
    rule('before_routing', 'steered', [UNTRACKED, IS_STEERED, IS_TAKEN, setMark]),
    rule('before_routing', 'steered datagram', [UNTRACKED, IS_STEERED, IS_UDP, IS_TRANSPARENT, setMark]),
    ...FAMILIES.map(({ family, isToPod }) =>
      rule('before_routing', `to a pod ${family}`, [isToPod, jump('to_pod')]),
    ),
    // What comes after it arrives by some other interface, is tracked and, where the client dialled a service, translated by
    // now. Its socket is the proxy's, at the pod's address: the stack would not forward it.
    // But not its first one, which has to pass the filters of a forwarded packet and our program behind them, whatever
    // listener the look-up names; in TIME_WAIT a socket is not whole, so it has no such property, and takes it.
    rule('to_pod', 'to a service', [IS_TCP, IS_WILDCARD, RETURN]),
    rule('to_pod', 'first', [STARTS, NOT_LISTENING, RETURN]),
    rule('to_pod', 'inbound', [IS_TAKEN, setMark]),
    // What a router says of a packet that the proxy has sent from a pod's address, too large for the path or to nobody, is
    // for the proxy's socket, that of the packet which the error quotes: the pod knows nothing of that connection.
    ...ERRORS.map(({ name, isError }) => rule('to_pod', name, [isError, IS_TRANSPARENT, setMark])),
    rule('input', 'left to look-up', [IS_LEFT_TO_LOOKUP, jump('local_left')]),
    // Delivered without a socket it reaches a transparent one, by its connection or by what socket_lookup names, or none.
    rule('local_left', 'found', [IS_TAKEN, FORGET_PRIORITY, RETURN]),
    rule('local_left', 'datagram', [IS_UDP, IS_TRANSPARENT, FORGET_PRIORITY, RETURN]),
    rule('local_left', 'lost', [IS_LEFT_TO_LOOKUP, DROP]),
    rule('input', 'marked', [isMarked, jump('local_marked')]),
    // What is for a pod, by our own interface: routed by now, it needs its mark no more, and IPVS would take the proxy's answer out
    // of connection tracking, which has to translate it where the client dialled a service. Whoever that is, be it another pod.
    rule('local_marked', 'steered past IPVS', [IS_STEERED, clearMark, ACCEPT]),
    // kube-proxy's IPVS would take an intercepted packet to a service whatever its socket, but for a service of ours that
    // it knows by the whole mark (ipvs-bypass.ts).
    ...FAMILIES.map(({ family, isFromPod }) =>
      rule('local_marked', `past IPVS ${family}`, [isFromPod, IS_TCP, UNTRACKED, setWholeMark, ACCEPT]),
    ),
    ...FAMILIES.map(({ family, isFromPod }) =>
      rule('local_marked', `datagram past IPVS ${family}`, [
        isFromPod,
        IS_UDP,
        UNTRACKED,
        setWholeMark,
        ACCEPT,
      ]),
    ),
    // But not what else is for a pod, of a connection that it has been steered for.
    ...FAMILIES.map(({ family, isToPod }) =>
      rule('local_marked', `inbound past IPVS ${family}`, [isToPod, IS_TCP, clearMark]),
    ),
    // Should IPVS take one all the same, it goes nowhere.
    rule('output', 'marked', [isMarked, jump('local_taken')]),
    ...FAMILIES.map(({ family, isFromPod }) =>
      rule('local_taken', `by IPVS ${family}`, [isFromPod, IS_TCP, DROP]),
    ),
    ...FAMILIES.map(({ family, isFromPod }) =>
      rule('local_taken', `datagram by IPVS ${family}`, [isFromPod, IS_UDP, DROP]),
    ),
    // The proxy's replies: to an enrolled pod, from a transparent socket of this node (ADR 2).
    ...FAMILIES.map(({ family, isToPod }) =>
      rule('output', `replies ${family}`, [IS_TCP, isToPod, IS_TRANSPARENT, NOTRACK]),
    ),
    // The same of datagrams, but for one in a pod's name: it answers what another pod has sent there, by a service perhaps,
    // whose address only connection tracking can give back.
    ...FAMILIES.map(({ family, isToPod, isFromOther }) =>
      rule('output', `datagram replies ${family}`, [IS_UDP, isToPod, isFromOther, IS_TRANSPARENT, NOTRACK]),
    ),
  ];
}

/** `PRIORITY_LEFT_TO_CONNTRACK` of bpf/include/layout.h, as nft writes it. */
export const LEFT_TO_CONNTRACK = '4e53:1';
/** `PRIORITY_LEFT_TO_LOOKUP`. */
export const LEFT_TO_LOOKUP = '4e53:2';
const PRIORITY = { meta: { key: 'priority' } };
const IS_LEFT_TO_CONNTRACK: Part = {
  text: `meta priority ${LEFT_TO_CONNTRACK}`,
  expr: [equals(PRIORITY, LEFT_TO_CONNTRACK)],
};
const IS_LEFT_TO_LOOKUP: Part = {
  text: `meta priority ${LEFT_TO_LOOKUP}`,
  expr: [equals(PRIORITY, LEFT_TO_LOOKUP)],
};
const FORGET_PRIORITY: Part = {
  text: 'meta priority set none',
  expr: [{ mangle: { key: PRIORITY, value: 'none' } }],
};
/** Our own chain at the hook ends here. */
const ACCEPT: Part = { text: 'accept', expr: [{ accept: null }] };
const DROP: Part = { text: 'drop', expr: [{ drop: null }] };
const REJECT: Part = { text: 'reject with tcp reset', expr: [{ reject: { type: 'tcp reset' } }] };
const ANSWERS_NOBODY: Part = {
  text: 'ct state invalid,new',
  expr: [{ match: { op: 'in', left: { ct: { key: 'state' } }, right: ['invalid', 'new'] } }],
};
const META_MARK = { meta: { key: 'mark' } };
const TCP = equals({ meta: { key: 'l4proto' } }, 'tcp');
const TRANSPARENT = equals({ socket: { key: 'transparent' } }, 1);
const NOTRACK: Part = { text: 'notrack', expr: [{ notrack: null }] };
const UNTRACKED: Part = {
  text: 'ct state untracked',
  expr: [{ match: { op: 'in', left: { ct: { key: 'state' } }, right: 'untracked' } }],
};
/** A wildcard socket is a listener: a new connection is not meant. */
const NOT_LISTENING: Part = {
  text: 'socket wildcard 0',
  expr: [equals({ socket: { key: 'wildcard' } }, 0)],
};
const IS_STEERED: Part = {
  text: `meta iifname "${STEERING_LINK}"`,
  expr: [equals({ meta: { key: 'iifname' } }, STEERING_LINK)],
};
const IS_UDP: Part = { text: 'meta l4proto udp', expr: [equals({ meta: { key: 'l4proto' } }, 'udp')] };
const IS_TCP: Part = { text: 'meta l4proto tcp', expr: [TCP] };
const IS_TRANSPARENT: Part = { text: 'socket transparent 1', expr: [TRANSPARENT] };
/** A transparent socket takes it, be it one that the packet was given. */
const IS_TAKEN: Part = { text: 'meta l4proto tcp socket transparent 1', expr: [TCP, TRANSPARENT] };
const IS_WILDCARD: Part = {
  text: 'socket wildcard 1',
  expr: [equals({ socket: { key: 'wildcard' } }, 1)],
};
const STARTS: Part = {
  text: 'tcp flags & (fin | syn | rst | ack) == syn',
  expr: [
    equals({ '&': [{ payload: { protocol: 'tcp', field: 'flags' } }, ['fin', 'syn', 'rst', 'ack']] }, 'syn'),
  ],
};
const RETURN: Part = { text: 'return', expr: [{ return: null }] };

const FAMILIES = [
  {
    family: 'IPv4',
    isFromPod: pods('ip', 'saddr', 'pods4'),
    isToPod: pods('ip', 'daddr', 'pods4'),
    isFromOther: others('ip', 'pods4'),
  },
  {
    family: 'IPv6',
    isFromPod: pods('ip6', 'saddr', 'pods6'),
    isToPod: pods('ip6', 'daddr', 'pods6'),
    isFromOther: others('ip6', 'pods6'),
  },
] as const;

const ERRORS = [
  { name: 'error to the proxy IPv4', family: 0, isError: icmp('icmp', 'destination-unreachable') },
  { name: 'error to the proxy IPv6', family: 1, isError: icmp('icmpv6', 'destination-unreachable') },
  { name: 'error to the proxy IPv6, of size', family: 1, isError: icmp('icmpv6', 'packet-too-big') },
] as const;

function icmp(protocol: 'icmp' | 'icmpv6', type: string): Part {
  return {
    text: `${protocol} type ${type}`,
    expr: [equals({ payload: { protocol, field: 'type' } }, type)],
  };
}

function pods(protocol: 'ip' | 'ip6', field: 'saddr' | 'daddr', set: string): Part {
  return {
    text: `${protocol} ${field} @${set}`,
    expr: [equals({ payload: { protocol, field } }, `@${set}`)],
  };
}

/** Not from a pod. */
function others(protocol: 'ip' | 'ip6', set: string): Part {
  return {
    text: `${protocol} saddr != @${set}`,
    expr: [{ match: { op: '!=', left: { payload: { protocol, field: 'saddr' } }, right: `@${set}` } }],
  };
}

function jump(target: string): Part {
  return { text: `jump ${target}`, expr: [{ jump: { target } }] };
}

function equals(left: Json, right: Json): Json {
  return { match: { op: '==', left, right } };
}

/** The kernel holds one `and` and one `xor`; of what the former clears, nft lists only what is not set again. */
function markIsSet({ value, mask }: Mark): Json {
  const kept: Json = value === mask ? META_MARK : { '&': [META_MARK, ~(mask & ~value) >>> 0] };
  return { mangle: { key: META_MARK, value: { '|': [kept, value] } } };
}

function markIsCleared({ mask }: Mark): Json {
  return { mangle: { key: META_MARK, value: { '&': [META_MARK, ~mask >>> 0] } } };
}
