/**
 * Which new flows of an endpoint are intercepted, and by which instance: the node's rules, the pod's, and the instances that
 * take certain ports. Judged here in words, and compiled for the kernel (`selections.ts`); both say the same.
 */

import { createHash } from 'node:crypto';
import { ipToBytes, type Prefix } from '../net/ip.js';
import { ALL_PORTS, formatPorts, hasPort, type PortRange } from '../net/ports.js';
import {
  DIRECTIONS,
  type DirectionRules,
  type ProtocolRules,
  SELECT_ALL,
  type SelectedDirection,
  selectsAll,
} from '../pods/selection.js';

/** Ports that an instance of their own takes. */
export interface PortShare {
  readonly ports: readonly PortRange[];
  /** Of the instance, as the kernel has it. */
  readonly number: number;
  readonly name: string;
}

export interface DirectionSelection {
  readonly node: DirectionRules;
  readonly pod: DirectionRules;
  /** The first one that has the port takes the flow. */
  readonly shares: readonly PortShare[];
  /** Whether the endpoint's own instance takes what no share does; otherwise it is left alone. */
  readonly rest: boolean;
}

export interface FlowSelection extends Readonly<Record<SelectedDirection, DirectionSelection>> {
  /** Two that are the same select the same flows. */
  readonly key: string;
}

/** What the kernel holds of an agent before us, whose words are not known. */
export interface KeptSelection {
  readonly key: string;
  readonly number: number;
  /** Of datagrams: the directions that are looked at. */
  readonly looksAt?: Readonly<Record<SelectedDirection, boolean>> | undefined;
}

export type SelectionInForce = FlowSelection | KeptSelection;

/** Undefined where every flow is intercepted by the endpoint's own instance. */
export function selectionOf(
  node: ProtocolRules,
  pod: ProtocolRules,
  shares: Readonly<Record<SelectedDirection, readonly PortShare[]>>,
  rest: Readonly<Record<SelectedDirection, boolean>>,
): FlowSelection | undefined {
  const isTrivial = DIRECTIONS.every(
    (direction) =>
      selectsAll(node[direction]) &&
      selectsAll(pod[direction]) &&
      shares[direction].length === 0 &&
      rest[direction],
  );
  return isTrivial ? undefined : allSelection(node, pod, shares, rest);
}

/** Of UDP: undefined where no datagram is intercepted. */
export function datagramsOf(
  node: ProtocolRules,
  pod: ProtocolRules,
  shares: Readonly<Record<SelectedDirection, readonly PortShare[]>>,
  rest: Readonly<Record<SelectedDirection, boolean>>,
): FlowSelection | undefined {
  const selection = allSelection(node, pod, shares, rest);
  return DIRECTIONS.some((direction) => mayIntercept(selection[direction])) ? selection : undefined;
}

/** Whether some port is intercepted, as far as can be told without looking at each. */
export function mayIntercept({ node, pod, shares, rest }: DirectionSelection): boolean {
  const overlaps = node.ports.some((a) => pod.ports.some((b) => a.from <= b.to && b.from <= a.to));
  return overlaps && (rest || shares.length > 0);
}

function allSelection(
  node: ProtocolRules,
  pod: ProtocolRules,
  shares: Readonly<Record<SelectedDirection, readonly PortShare[]>>,
  rest: Readonly<Record<SelectedDirection, boolean>>,
): FlowSelection {
  const of = (direction: SelectedDirection): DirectionSelection => ({
    node: node[direction],
    pod: pod[direction],
    shares: shares[direction],
    rest: rest[direction],
  });
  const hash = createHash('sha256')
    .update(keyOfNode(node))
    .update(JSON.stringify([pod, shares, rest]));
  return { key: hash.digest('base64'), outbound: of('outbound'), inbound: of('inbound') };
}

const nodeKeys = new WeakMap<ProtocolRules, string>();

/** There may be thousands of them, and they are the same for all pods. */
function keyOfNode(node: ProtocolRules): string {
  const known = nodeKeys.get(node);
  if (known !== undefined) {
    return known;
  }
  const key = createHash('sha256').update(JSON.stringify(node)).digest('base64');
  nodeKeys.set(node, key);
  return key;
}

export interface Judgement {
  readonly intercepted: boolean;
  /** Of an instance that takes the port; undefined: the endpoint's own. */
  readonly share: PortShare | undefined;
  /** Which rule says so, in words. */
  readonly rule: string;
}

const LAYERS = ['node', 'pod'] as const;

const EVERYTHING: DirectionSelection = {
  node: SELECT_ALL.outbound,
  pod: SELECT_ALL.outbound,
  shares: [],
  rest: true,
};

/** `ip`: of the far end. `port`: that is dialled. `udp`: how the rules are called. */
export function judge(
  selection: FlowSelection | undefined,
  direction: SelectedDirection,
  ip: string,
  port: number,
  udp = false,
): Judgement {
  const left = (rule: string): Judgement => ({ intercepted: false, share: undefined, rule });
  const { shares, rest, ...layers } = selection?.[direction] ?? EVERYTHING;
  for (const layer of LAYERS) {
    const rules = layers[layer];
    if (!hasPort(rules.ports, port)) {
      return left(`${nameOf(layer, direction, udp)} ${formatPorts(rules.ports)} does not have port ${port}`);
    }
  }
  const share = shares.find(({ ports }) => hasPort(ports, port));
  if (share === undefined && !rest) {
    return left(`no instance of the pod's app takes ${direction}${udp ? ' UDP' : ''} port ${port}`);
  }
  const address = prefixBytes({ ip, length: ip.includes(':') ? 128 : 32 });
  for (const layer of LAYERS) {
    const rules = layers[layer];
    const excluded = rules.exclude.find((prefix) => contains(prefix, address));
    if (excluded !== undefined) {
      return left(`${cidrNameOf(layer, 'exclude', direction)} ${excluded.ip}/${excluded.length} has ${ip}`);
    }
    if (rules.include !== undefined && !rules.include.some((prefix) => contains(prefix, address))) {
      return left(`${cidrNameOf(layer, 'include', direction)} does not have ${ip}`);
    }
  }
  return {
    intercepted: true,
    share,
    rule: share === undefined ? 'nothing excludes it' : `instance ${share.name} has port ${port}`,
  };
}

function nameOf(layer: (typeof LAYERS)[number], direction: SelectedDirection, udp: boolean): string {
  return layer === 'node'
    ? `interception.${direction}${udp ? 'Udp' : ''}`
    : `nodesentry.io/${direction}${udp ? '-udp' : ''}`;
}

function cidrNameOf(
  layer: (typeof LAYERS)[number],
  what: 'include' | 'exclude',
  direction: SelectedDirection,
): string {
  const capital = `${direction[0]?.toUpperCase()}${direction.slice(1)}`;
  return layer === 'node'
    ? `interception.${what}${capital}Cidrs`
    : `nodesentry.io/${what}-${direction}-cidrs`;
}

export interface CompiledDirection {
  /** By port: 0: left alone; 1: intercepted by the endpoint's own instance; 2 and more: by instance number n - 2. */
  readonly ports: Uint16Array;
  /** Of the node and of the pod; undefined: has no CIDRs. */
  readonly cidrs: readonly (CompiledCidrs | undefined)[];
}

export interface CompiledCidrs {
  /** What is in no include is left alone. */
  readonly mustBeIncluded: boolean;
  /** The 16 bytes of a prefix as latin1, a byte with its length -> what holds for the addresses in it. */
  readonly prefixes: ReadonlyMap<string, CidrFlags>;
}

export interface CidrFlags {
  readonly excluded: boolean;
  readonly included: boolean;
}

export function compile({ node, pod, shares, rest }: DirectionSelection): CompiledDirection {
  const ports = new Uint16Array(65_536).fill(rest ? 1 : 0);
  for (const share of [...shares].reverse()) {
    for (const { from, to } of share.ports) {
      ports.fill(2 + share.number, from, to + 1);
    }
  }
  for (const rules of [node, pod]) {
    leaveOut(ports, rules.ports);
  }
  return { ports, cidrs: [compileCidrs(node), compileCidrs(pod)] };
}

/** Port 0, which nobody can name, goes with `all` alone. */
function leaveOut(ports: Uint16Array, kept: readonly PortRange[]): void {
  if (kept === ALL_PORTS) {
    return;
  }
  let next = 0;
  for (const { from, to } of [...kept].sort((a, b) => a.from - b.from)) {
    if (from > next) {
      ports.fill(0, next, from);
    }
    next = Math.max(next, to + 1);
  }
  ports.fill(0, next);
}

const IPV4_BITS = 96;
const IPV4_ALL = prefixBytes({ ip: '0.0.0.0', length: 0 });

/** Of the node's rules, which may be many and which every selection has. */
const compiledBefore = new WeakMap<DirectionRules, CompiledCidrs>();

function compileCidrs(rules: DirectionRules): CompiledCidrs | undefined {
  if (rules.include === undefined && rules.exclude.length === 0) {
    return undefined;
  }
  const compiled = compiledBefore.get(rules) ?? compilePrefixes(rules);
  compiledBefore.set(rules, compiled);
  return compiled;
}

/** The kernel finds the longest prefix alone, so each has what holds for all around it. */
function compilePrefixes({ include, exclude }: DirectionRules): CompiledCidrs {
  const own = new Map<string, { excluded: boolean; included: boolean }>();
  const add = (prefixes: readonly Prefix[], what: 'excluded' | 'included') => {
    for (const prefix of prefixes) {
      const key = keyOf(prefixBytes(prefix));
      const flags = own.get(key) ?? { excluded: false, included: false };
      flags[what] = true;
      own.set(key, flags);
    }
  };
  add(exclude, 'excluded');
  add(include ?? [], 'included');
  // An IPv4 address stands in its IPv4-mapped form, which a short IPv6 prefix has too, without meaning it.
  const root = keyOf(IPV4_ALL);
  if (!own.has(root)) {
    own.set(root, { excluded: false, included: false });
  }
  const lengths = [...new Set([...own.keys()].map(lengthIn))].sort((a, b) => a - b);
  const prefixes = new Map<string, CidrFlags>();
  for (const [key, flags] of own) {
    const bytes = Buffer.from(key, 'latin1');
    const least = isIpv4(bytes) ? IPV4_BITS : 0;
    const around = lengths
      .filter((length) => length >= least && length < lengthIn(key))
      .map((length) => own.get(keyOf(masked(bytes, length))));
    prefixes.set(key, {
      excluded: flags.excluded || around.some((other) => other?.excluded === true),
      included: flags.included || around.some((other) => other?.included === true),
    });
  }
  return { mustBeIncluded: include !== undefined, prefixes };
}

/** 16 bytes and one with the length in bits, IPv4 in its mapped form; bits after the prefix are 0. */
function prefixBytes({ ip, length }: Prefix): Buffer {
  const bits = ip.includes(':') ? length : length + IPV4_BITS;
  return masked(Buffer.from([...ipToBytes(ip), 0]), bits);
}

function masked(bytes: Buffer, length: number): Buffer {
  const copy = Buffer.from(bytes);
  for (let at = 0; at < 16; at++) {
    const bits = Math.min(8, Math.max(0, length - at * 8));
    copy[at] = (copy[at] ?? 0) & (0xff << (8 - bits)) & 0xff;
  }
  copy[16] = length;
  return copy;
}

function keyOf(bytes: Buffer): string {
  return bytes.toString('latin1');
}

function lengthIn(key: string): number {
  return key.charCodeAt(16);
}

function isIpv4(bytes: Buffer): boolean {
  return (bytes[16] ?? 0) >= IPV4_BITS && bytes.subarray(0, 12).equals(IPV4_ALL.subarray(0, 12));
}

function contains(prefix: Prefix, address: Buffer): boolean {
  const bytes = prefixBytes(prefix);
  return isIpv4(bytes) === isIpv4(address) && masked(address, bytes[16] ?? 0).equals(bytes);
}
