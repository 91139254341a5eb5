/** What an upgrade is asked for with, checked field by field. */

import type { ListenerAddress } from '../config/config.js';
import { parseListenerAddress } from '../config/listeners.js';
import type { OwnerRule } from '../datapath/listener-owner.js';
import { InstanceError } from './errors.js';
import type { Addresses } from './generations.js';
import type { UpgradeRequest } from './upgrade.js';

const KEYS = [
  'outbound',
  'inbound',
  'owner',
  'canary',
  'checkSeconds',
  'observeSeconds',
  'deadlineSeconds',
  'stop',
] as const;
const OWNER_KEYS = ['uid', 'gid', 'exe', 'cgroup'] as const;
const DAY_S = 86_400;

/**
 * `current`: of the generation that serves. A new one listens in the same directions, and belongs to the same owner unless the
 * request names another. Throws InstanceError KEY_INVALID, which names the field.
 */
export function parseUpgrade(body: unknown, current: Addresses): UpgradeRequest {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) {
    throw invalid('the body', 'an object', body);
  }
  const given = body as Readonly<Record<string, unknown>>;
  const unknown = Object.keys(given).find((key) => !(KEYS as readonly string[]).includes(key));
  if (unknown !== undefined) {
    throw new InstanceError(
      'KEY_INVALID',
      `${unknown}: there is no such field (there are ${KEYS.join(', ')})`,
    );
  }
  const outbound = addressesOf(given, 'outbound', current.outbound.length > 0);
  const inbound = addressesOf(given, 'inbound', current.inbound.length > 0);
  const used = new Set([...current.outbound, ...current.inbound].map(({ host, port }) => `${host} ${port}`));
  const clash = [...outbound, ...inbound].find(({ host, port }) => used.has(`${host} ${port}`));
  if (clash !== undefined) {
    throw new InstanceError(
      'KEY_INVALID',
      `${outbound.includes(clash) ? 'outbound' : 'inbound'}: ${clash.text} is where the present one listens`,
    );
  }
  return {
    outbound,
    inbound,
    owner: ownerOf(given['owner'], current.owner),
    canary: shareOf(given['canary']),
    checkMs: 1_000 * secondsOf(given, 'checkSeconds', 10, 600),
    observeMs: 1_000 * secondsOf(given, 'observeSeconds', 30, DAY_S),
    deadlineMs: 1_000 * secondsOf(given, 'deadlineSeconds', 600, DAY_S),
    stop: flagOf(given['stop']),
  };
}

/** Of an instance that is started by its command: the new one is handed the sockets of the present one. */
export function namesNoAddress(body: unknown): boolean {
  const { outbound, inbound } = (body ?? {}) as Readonly<Record<string, unknown>>;
  return outbound === undefined && inbound === undefined;
}

/** How long the present process may go on, milliseconds. Throws InstanceError KEY_INVALID, which names the field. */
export function parseRenewal(body: unknown): number {
  const given = (body ?? {}) as Readonly<Record<string, unknown>>;
  if (given['canary'] !== undefined) {
    throw new InstanceError(
      'KEY_INVALID',
      'canary: both processes have the same sockets, and the kernel shares new flows out; name addresses of a new one to give it a share',
    );
  }
  return 1_000 * secondsOf(given, 'deadlineSeconds', 600, DAY_S);
}

function addressesOf(
  given: Readonly<Record<string, unknown>>,
  key: 'outbound' | 'inbound',
  isNeeded: boolean,
): readonly ListenerAddress[] {
  const value = given[key];
  const expected = 'an address and a port such as 127.0.0.1:16101, or a list of one per family';
  if (value === undefined) {
    if (isNeeded) {
      throw new InstanceError('KEY_INVALID', `${key}: expected ${expected}, for the present one has it`);
    }
    return [];
  }
  const texts: readonly unknown[] = Array.isArray(value) ? value : [value];
  const found = texts.map((text) => (typeof text === 'string' ? parseListenerAddress(text) : undefined));
  if (found.length === 0 || found.length > 2 || found.includes(undefined)) {
    throw invalid(key, expected, value);
  }
  const addresses = found.filter((address) => address !== undefined);
  if (new Set(addresses.map(({ family }) => family)).size < addresses.length) {
    throw invalid(key, 'one address per family', value);
  }
  return addresses;
}

function ownerOf(value: unknown, current: OwnerRule): OwnerRule {
  if (value === undefined) {
    return current;
  }
  const expected = 'at least one of uid, gid, exe and cgroup';
  if (typeof value !== 'object' || value === null) {
    throw invalid('owner', expected, value);
  }
  const owner = value as Readonly<Record<string, unknown>>;
  const isRight = ([key, part]: readonly [string, unknown]) =>
    key === 'uid' || key === 'gid'
      ? Number.isInteger(part) && (part as number) >= 0
      : (OWNER_KEYS as readonly string[]).includes(key) && typeof part === 'string' && part.startsWith('/');
  if (Object.keys(owner).length === 0 || !Object.entries(owner).every(isRight)) {
    throw invalid('owner', expected, value);
  }
  return owner as OwnerRule;
}

/** A share of new flows, such as `10%`. */
function shareOf(value: unknown): number | undefined {
  if (value === undefined) {
    return undefined;
  }
  const percent = typeof value === 'string' ? /^(\d{1,3}(?:\.\d{1,3})?)%$/.exec(value)?.[1] : undefined;
  if (percent === undefined || Number(percent) <= 0 || Number(percent) > 100) {
    throw invalid('canary', 'a share of more than 0% and at most 100%, such as 10%', value);
  }
  return Number(percent) / 100;
}

function secondsOf(
  given: Readonly<Record<string, unknown>>,
  key: string,
  whenLeftOut: number,
  most: number,
): number {
  const value = given[key] ?? whenLeftOut;
  if (typeof value !== 'number' || !Number.isFinite(value) || value < 0 || value > most) {
    throw invalid(key, `a number of seconds from 0 to ${most}`, value);
  }
  return value;
}

function flagOf(value: unknown): boolean {
  if (value !== undefined && typeof value !== 'boolean') {
    throw invalid('stop', 'true or false', value);
  }
  return value ?? true;
}

function invalid(field: string, expected: string, value: unknown): InstanceError {
  const got = JSON.stringify(value) ?? 'nothing';
  return new InstanceError('KEY_INVALID', `${field}: expected ${expected}, got ${got.slice(0, 200)}`);
}
