/**
 * Which flows are to be intercepted: by the port that is dialled and by the address at the far end. A pod's annotations say
 * it, and the node's configuration; a flow is intercepted where both select it (docs/selection.md).
 */

import { type Prefix, parsePrefix } from '../net/ip.js';
import { ALL_PORTS, PORTS_EXPECTED, type PortRange, parsePorts } from '../net/ports.js';

export const DIRECTIONS = ['outbound', 'inbound'] as const;
export type SelectedDirection = (typeof DIRECTIONS)[number];

export interface DirectionRules {
  /** That are dialled: by the pod outbound, at the pod inbound. */
  readonly ports: readonly PortRange[];
  /** The far address has to be in one of these; undefined: any will do. */
  readonly include: readonly Prefix[] | undefined;
  /** And in none of these. */
  readonly exclude: readonly Prefix[];
}

/** Of one protocol. */
export type ProtocolRules = Readonly<Record<SelectedDirection, DirectionRules>>;

/** Of TCP, and of UDP, for which the same far addresses count. */
export interface SelectionRules extends ProtocolRules {
  readonly udp: ProtocolRules;
}

const EVERYTHING: DirectionRules = { ports: ALL_PORTS, include: undefined, exclude: [] };

const ALL: ProtocolRules = { outbound: EVERYTHING, inbound: EVERYTHING };

export const SELECT_ALL: SelectionRules = { ...ALL, udp: ALL };

export const CIDRS_EXPECTED = 'CIDRs such as 10.0.0.0/8,fd00::/8';

/** CIDRs between commas, at least one; undefined for anything else. */
export function parseCidrs(text: string): readonly Prefix[] | undefined {
  const prefixes = text.split(',').map((part) => parsePrefix(part.trim()));
  return prefixes.every((prefix) => prefix !== undefined) ? prefixes : undefined;
}

/**
 * What `given` says below the keys `outbound`, `outbound-udp`, `include-outbound-cidrs` and so on. Values that cannot be read are
 * told to `wrong` and count as not given. The same object where nothing is said.
 */
export function readSelection(
  given: (key: string) => string | undefined,
  wrong: (key: string, expected: string, value: string) => void,
): SelectionRules {
  const read = <T>(key: string, expected: string, parse: (text: string) => T | undefined): T | undefined => {
    const value = given(key);
    const parsed = value === undefined ? undefined : parse(value);
    if (value !== undefined && parsed === undefined) {
      wrong(key, expected, value);
    }
    return parsed;
  };
  const rulesOf = (direction: SelectedDirection): { tcp: DirectionRules; udp: DirectionRules } => {
    const ports = read(direction, PORTS_EXPECTED, parsePorts);
    const udpPorts = read(`${direction}-udp`, PORTS_EXPECTED, parsePorts);
    const include = read(`include-${direction}-cidrs`, CIDRS_EXPECTED, parseCidrs);
    const exclude = read(`exclude-${direction}-cidrs`, CIDRS_EXPECTED, parseCidrs);
    const rules = (of: readonly PortRange[] | undefined): DirectionRules =>
      of === undefined && include === undefined && exclude === undefined
        ? EVERYTHING
        : { ports: of ?? ALL_PORTS, include, exclude: exclude ?? [] };
    return { tcp: rules(ports), udp: rules(udpPorts) };
  };
  const [outbound, inbound] = [rulesOf('outbound'), rulesOf('inbound')];
  return [outbound, inbound].every(({ tcp, udp }) => tcp === EVERYTHING && udp === EVERYTHING)
    ? SELECT_ALL
    : {
        outbound: outbound.tcp,
        inbound: inbound.tcp,
        udp: { outbound: outbound.udp, inbound: inbound.udp },
      };
}

export function selectsAll({ ports, include, exclude }: DirectionRules): boolean {
  return ports === ALL_PORTS && include === undefined && exclude.length === 0;
}
