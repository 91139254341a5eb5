/**
 * Our own nftables table, beside everybody else's, as it has to be. Intercepted packets and their replies are left out
 * of connection tracking, so that a DNAT rule in `nat PREROUTING` (kube-proxy's) does not change the destination that the
 * proxy sees. Who relies on what of it: docs/datapath.md, "Who relies on whom".
 */

import { formatMark, hex, type Mark } from '../net/mark.js';
import type { Json } from './nft.js';

export interface Chain {
  readonly name: string;
  readonly hook: string;
  /** -300 is raw: before connection tracking (-200) and everybody's filters. */
  readonly prio: number;
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

export const CHAINS: readonly Chain[] = [
  { name: 'prerouting', hook: 'prerouting', prio: -310 },
  { name: 'after_raw', hook: 'prerouting', prio: -290 },
  { name: 'output', hook: 'output', prio: -300 },
];

/** In the order in which they run. */
export function notrackRules(mark: Mark): readonly Rule[] {
  const marked = formatMark(mark);
  const [others, ours] = [hex(~mark.mask >>> 0), hex(mark.value)];
  const setMark = `meta mark set meta mark and ${others} or ${ours}`;
  // A wildcard socket is a listener: a new connection is never marked here.
  const connected = `meta l4proto tcp socket transparent 1 socket wildcard 0 ${setMark}`;
  const connectedListed = [TCP, TRANSPARENT, NOT_LISTENING, markIsSet(mark)];
  return [
    // A pod's packet whose connection is at the proxy's socket already, and which our program did not see: should it be
    // missing for a moment, the packet goes on to the proxy instead of to a destination that knows nothing of it.
    {
      chain: 'prerouting',
      comment: `prerouting connected IPv4 ${marked}`,
      text: `ip saddr @pods4 ${connected}`,
      expr: [address('ip', 'saddr', 'pods4'), ...connectedListed],
    },
    {
      chain: 'prerouting',
      comment: `prerouting connected IPv6 ${marked}`,
      text: `ip6 saddr @pods6 ${connected}`,
      expr: [address('ip6', 'saddr', 'pods6'), ...connectedListed],
    },
    // An intercepted packet is not tracked. It does not bear our mark while the raw chains of others run: a reverse-path
    // check by mark (Calico's `rpfilter --validmark`) would find our local route and drop it.
    {
      chain: 'prerouting',
      comment: `prerouting intercepted ${marked}`,
      text: `meta mark and ${hex(mark.mask)} == ${ours} notrack meta mark set meta mark and ${others}`,
      expr: [equals({ '&': [META_MARK, mark.mask] }, mark.value), NOTRACK, markIsCleared(mark)],
    },
    // It gets its mark back by the socket that it was given. One that did not would be dropped by the stack, which
    // forwards no packet that has a socket (ip_forward).
    {
      chain: 'after_raw',
      comment: `prerouting marked again ${marked}`,
      text: `ct state untracked meta l4proto tcp socket transparent 1 ${setMark}`,
      expr: [UNTRACKED, TCP, TRANSPARENT, markIsSet(mark)],
    },
    // The proxy's replies: to an enrolled pod, from a transparent socket of this node (ADR 2).
    {
      chain: 'output',
      comment: 'output replies IPv4',
      text: 'meta l4proto tcp ip daddr @pods4 socket transparent 1 notrack',
      expr: [TCP, address('ip', 'daddr', 'pods4'), TRANSPARENT, NOTRACK],
    },
    {
      chain: 'output',
      comment: 'output replies IPv6',
      text: 'meta l4proto tcp ip6 daddr @pods6 socket transparent 1 notrack',
      expr: [TCP, address('ip6', 'daddr', 'pods6'), TRANSPARENT, NOTRACK],
    },
  ];
}

const META_MARK = { meta: { key: 'mark' } };
const NOTRACK = { notrack: null };
const UNTRACKED = { match: { op: 'in', left: { ct: { key: 'state' } }, right: 'untracked' } };
const TCP = equals({ meta: { key: 'l4proto' } }, 'tcp');
const TRANSPARENT = equals({ socket: { key: 'transparent' } }, 1);
const NOT_LISTENING = equals({ socket: { key: 'wildcard' } }, 0);

function equals(left: Json, right: Json): Json {
  return { match: { op: '==', left, right } };
}

function address(protocol: 'ip' | 'ip6', field: 'saddr' | 'daddr', set: string): Json {
  return equals({ payload: { protocol, field } }, `@${set}`);
}

/** The kernel holds one `and` and one `xor`; of what the former clears, nft lists only what is not set again. */
function markIsSet({ value, mask }: Mark): Json {
  const kept: Json = value === mask ? META_MARK : { '&': [META_MARK, ~(mask & ~value) >>> 0] };
  return { mangle: { key: META_MARK, value: { '|': [kept, value] } } };
}

function markIsCleared({ mask }: Mark): Json {
  return { mangle: { key: META_MARK, value: { '&': [META_MARK, ~mask >>> 0] } } };
}
