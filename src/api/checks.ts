/** What callers send, checked value by value. Each throws IdentityError KEY_INVALID, which names the key. */

import { z } from 'zod';
import { IdentityError } from '../identity/errors.js';
import { parseIp } from '../net/ip.js';
import { FLOW_PROTOCOLS, type FlowProtocol } from '../net/protocol.js';
import { parseSocketAddress, type SocketAddress } from '../net/socket-address.js';
import type { PodUid } from '../pods/pod.js';

/** `[` 45 characters of IPv6 `]:65535`, and some room. */
const MAX_TEXT = 64;
const EPOCH = /^[\w-]{1,64}$/;
/** A UID is that of the API server, or what the static file says. */
export const MAX_UID = 253;
/** IFNAMSIZ without the end: netdevice(7); dev_valid_name() of the kernel. */
const INTERFACE_NAME = /^[^\s/:]{1,15}$/;
const MAX_WAIT_MS = 5_000n;
const MAX_U32 = 2n ** 32n - 1n;
const MAX_U64 = 2n ** 64n - 1n;

export function checkedKeys(
  given: unknown,
  known: readonly string[],
  place: string,
): Record<string, unknown> {
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    throw invalid(place === '' ? 'the request' : place.replace(/\.$/, ''), 'an object', given);
  }
  const unknown = Object.keys(given).find((key) => !known.includes(key));
  if (unknown !== undefined) {
    const allowed = known.length === 0 ? 'none is known here' : `known are ${known.join(', ')}`;
    throw refused(`${place}${unknown.slice(0, MAX_TEXT)}`, `unknown key; ${allowed}`);
  }
  return { ...given };
}

export function protocolOf(given: unknown, key: string): FlowProtocol {
  const protocol = FLOW_PROTOCOLS.find((candidate) => candidate === given);
  if (protocol === undefined) {
    throw invalid(key, FLOW_PROTOCOLS.join(' or '), given);
  }
  return protocol;
}

export function socketAddress(given: unknown, key: string): SocketAddress {
  const address = parseSocketAddress(shortText(given));
  if (address === undefined || address.port === 0) {
    throw invalid(key, 'an address and port such as 10.66.0.3:41886 or [fd00::3]:41886', given);
  }
  return address;
}

/** Canonical. A port says nothing here. */
export function addressOf(given: unknown, key: string): string {
  const text = shortText(given);
  const ip = parseIp(text) ?? parseSocketAddress(text)?.ip;
  if (ip === undefined) {
    throw invalid(key, 'an address such as 10.66.0.3, with or without a port', given);
  }
  return ip;
}

export function podUidOf(given: unknown, key: string): PodUid {
  if (typeof given !== 'string' || given === '' || given.length > MAX_UID) {
    const got = typeof given === 'string' ? given.length : show(given);
    throw refused(key, `expected 1 to ${MAX_UID} characters, got ${got}`);
  }
  return given as PodUid;
}

export function interfaceName(given: unknown, key: string): string {
  const text = shortText(given);
  if (!INTERFACE_NAME.test(text)) {
    throw invalid(key, 'the name of a network interface, at most 15 characters', given);
  }
  return text;
}

export function pidOf(given: unknown, key: string): number {
  const pid = wholeNumber(given, MAX_U32);
  if (pid === undefined || pid === 0n) {
    throw invalid(key, 'the number of a process', given);
  }
  return Number(pid);
}

export function startTimeOf(given: unknown, key: string): bigint {
  const ticks = wholeNumber(given, MAX_U64);
  if (ticks === undefined || ticks === 0n) {
    throw invalid(key, 'when the process started: field 22 of /proc/<pid>/stat', given);
  }
  return ticks;
}

export function netnsCookieOf(given: unknown, key: string): bigint {
  const cookie = wholeNumber(given, MAX_U64);
  if (cookie === undefined || cookie === 0n) {
    throw invalid(key, 'what SO_NETNS_COOKIE of a socket is', given);
  }
  return cookie;
}

export function socketCookieOf(given: unknown, key: string): bigint {
  const cookie = wholeNumber(given, MAX_U64);
  if (cookie === undefined || cookie === 0n) {
    throw invalid(key, 'what SO_COOKIE of an accepted socket is', given);
  }
  return cookie;
}

/** Milliseconds of Unix time. */
export function timeOf(given: unknown, key: string): number {
  const text = shortText(given);
  if (/^\d{1,15}$/.test(text)) {
    return Number(text);
  }
  if (!z.iso.datetime({ offset: true }).safeParse(text).success) {
    throw invalid(key, 'milliseconds of Unix time, or a time such as 2026-11-28T14:03:07Z', given);
  }
  return Date.parse(text);
}

export function epochOf(given: unknown, key: string): string {
  if (typeof given !== 'string' || !EPOCH.test(given)) {
    throw invalid(key, 'the epoch of an earlier answer', given);
  }
  return given;
}

export function waitMsOf(given: unknown, key: string): number {
  const waitMs = wholeNumber(given, MAX_WAIT_MS);
  if (waitMs === undefined) {
    throw invalid(key, `milliseconds, at most ${MAX_WAIT_MS}`, given);
  }
  return Number(waitMs);
}

/** Below 10^15: no agent gets that far. */
export function revisionOf(given: unknown, key: string): number {
  const text = typeof given === 'number' ? String(given) : shortText(given);
  if (!/^\d{1,15}$/.test(text)) {
    throw invalid(key, 'the revision of an earlier answer', given);
  }
  return Number(text);
}

export function invalid(key: string, expected: string, given: unknown): IdentityError {
  return refused(key, `expected ${expected}, got ${show(given)}`);
}

export function refused(key: string, why: string): IdentityError {
  return new IdentityError('KEY_INVALID', `${key}: ${why}`);
}

/** Digits, as in a URL, or a number of JSON that is exact. */
function wholeNumber(given: unknown, most: bigint): bigint | undefined {
  const text = Number.isSafeInteger(given) ? String(given) : shortText(given);
  const value = /^\d{1,20}$/.test(text) ? BigInt(text) : undefined;
  return value === undefined || value > most ? undefined : value;
}

/** Empty where it is none. */
function shortText(given: unknown): string {
  return typeof given === 'string' && given.length <= MAX_TEXT ? given : '';
}

function show(given: unknown): string {
  if (given === undefined) {
    return 'nothing';
  }
  if (Array.isArray(given)) {
    return `a list of ${given.length}`;
  }
  if (typeof given === 'object' && given !== null) {
    return 'an object';
  }
  const text = JSON.stringify(given);
  return text.length > MAX_TEXT ? `${text.length} characters` : text;
}
