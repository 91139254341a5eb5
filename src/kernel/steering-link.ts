/**
 * The agent's own interface: a veth pair of which one end is used, the other only has to be there. What is on its way to a
 * pod is sent to that end as if it had been received by it, for only at tc ingress can a packet be given a socket. Nobody's
 * packets come by it but ours.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Link } from '../net/link.js';
import { DatapathError } from './errors.js';
import { NetlinkError, type RouteSocket } from './netlink.js';

export const STEERING_LINK = 'nodesentry0';
export const STEERING_PEER = 'nodesentry1';
/** Of an interface without any the reverse-path check refuses all (RFC 7600: an address that stands for none). */
const ADDRESS = '192.0.0.8';
/** A packet that was made larger than any interface's MTU (GSO, BIG TCP) comes by it unharmed. */
const MTU = 65_535;

/**
 * Of the one end, by the path below net/. Loose: what comes by it was received elsewhere, so that its source is never
 * looked for here; accept_local, for where `src_valid_mark` has the look-up for that check meet our own route. It never
 * speaks, so it needs no address of its own.
 */
const SYSCTLS: readonly (readonly [string, string])[] = [
  [`ipv4/conf/${STEERING_LINK}/rp_filter`, '2'],
  [`ipv4/conf/${STEERING_LINK}/accept_local`, '1'],
  [`ipv6/conf/${STEERING_LINK}/disable_ipv6`, '0'],
  ...[STEERING_LINK, STEERING_PEER].flatMap((name) => [
    [`ipv6/conf/${name}/addr_gen_mode`, '1'] as const,
    [`ipv6/conf/${name}/accept_ra`, '0'] as const,
  ]),
];

type LinkSocket = Pick<RouteSocket, 'link' | 'addVethPair' | 'addHostAddress' | 'setUp'>;

export interface EnsuredLink {
  readonly ifindex: number;
  /** What was put right, in words. */
  readonly repaired: readonly string[];
}

/** DatapathError LINK_CONFLICT where somebody else's interface bears the name. */
export async function ensureSteeringLink(socket: LinkSocket, procSys: string): Promise<EnsuredLink> {
  const repaired: string[] = [];
  let link = await socket.link(STEERING_LINK);
  if (link !== undefined && !(await isOurs(socket, link))) {
    throw new DatapathError(
      'LINK_CONFLICT',
      `the interface ${STEERING_LINK} is somebody else's (${link.kind || 'a device'}): rename or remove it`,
    );
  }
  if (link === undefined) {
    await socket.addVethPair(STEERING_LINK, STEERING_PEER, MTU);
    link = await socket.link(STEERING_LINK);
    repaired.push(`the interface ${STEERING_LINK}`);
  }
  if (link === undefined) {
    throw new DatapathError('LINK_CONFLICT', `the interface ${STEERING_LINK} was made, and is gone again`);
  }
  // Before it is up: an interface of IPv6 that comes up otherwise gives itself an address, and tells the link.
  for (const [path, value] of SYSCTLS) {
    if (writeIfOther(join(procSys, 'net', path), value)) {
      repaired.push(`sysctl net.${path.replaceAll('/', '.')}`);
    }
  }
  if (await socket.addHostAddress(link.index, ADDRESS)) {
    repaired.push(`the address of ${STEERING_LINK}`);
  }
  for (const name of [STEERING_PEER, STEERING_LINK]) {
    const end = name === STEERING_LINK ? link : await socket.link(name);
    if (end?.up !== true) {
      await socket.setUp(end?.index ?? 0);
      repaired.push(`the interface ${name} was down`);
    }
  }
  return { ifindex: link.index, repaired };
}

/** Returns what was taken away, in words. */
export async function removeSteeringLink(
  socket: Pick<RouteSocket, 'link' | 'deleteLink'>,
): Promise<string[]> {
  const link = await socket.link(STEERING_LINK);
  if (link === undefined || !(await isOurs(socket, link))) {
    return [];
  }
  try {
    await socket.deleteLink(link.index);
  } catch (error) {
    if (!(error instanceof NetlinkError && error.code === 'ENODEV')) {
      throw error;
    }
  }
  return [`interfaces ${STEERING_LINK} and ${STEERING_PEER}`];
}

async function isOurs(socket: Pick<RouteSocket, 'link'>, link: Link): Promise<boolean> {
  const peer = link.peerIndex === undefined ? undefined : await socket.link(link.peerIndex);
  return link.kind === 'veth' && peer?.name === STEERING_PEER && peer.peerIndex === link.index;
}

/** A family that the node does not have has no such file. */
function writeIfOther(path: string, value: string): boolean {
  let before: string;
  try {
    before = readFileSync(path, 'utf8').trim();
  } catch {
    return false;
  }
  if (before === value) {
    return false;
  }
  writeFileSync(path, value);
  return true;
}
