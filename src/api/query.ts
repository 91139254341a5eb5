/** What callers send, checked key by key. */

import { z } from 'zod';
import { IdentityError } from '../identity/errors.js';
import type { PastQuery } from '../identity/past.js';
import { ASSURANCES, type Assurance, type ResolveQuery } from '../identity/resolve.js';
import type { WatchFrom } from '../identity/watch.js';
import { parseIp } from '../net/ip.js';
import { parseSocketAddress, type SocketAddress } from '../net/socket-address.js';

/** `[` 45 characters of IPv6 `]:65535`, and some room. */
const MAX_TEXT = 64;
const EPOCH = /^[\w-]{1,64}$/;
export const MAX_BATCH = 256;
export const MAX_FLOWS = 10_000;
const DEFAULT_FLOWS = 100;

/** Throws IdentityError KEY_INVALID, which names the key. */
export function parseResolveQuery(given: unknown, place = ''): ResolveQuery {
  const fields = checkedKeys(given, ['proto', 'src', 'dst', 'minAssurance'], place);
  const { proto } = fields;
  if (proto !== 'tcp') {
    throw invalid(`${place}proto`, 'tcp', proto);
  }
  const assurance = assuranceOf(fields.minAssurance, place);
  return {
    proto,
    src: socketAddress(fields.src, `${place}src`),
    dst: socketAddress(fields.dst, `${place}dst`),
    ...(assurance === undefined ? {} : { minAssurance: assurance }),
  };
}

/** Whether the question is about the past, for which `parsePastQuery` is. */
export function isPast(given: unknown): boolean {
  return typeof given === 'object' && given !== null && ('at' in given || 'address' in given);
}

/** Throws IdentityError KEY_INVALID, which names the key. */
export function parsePastQuery(given: unknown): PastQuery {
  const fields = checkedKeys(given, ['address', 'proto', 'src', 'dst', 'at', 'minAssurance'], '');
  const at = timeOf(fields.at);
  const minAssurance = assuranceOf(fields.minAssurance, '');
  const rest = { at, ...(minAssurance === undefined ? {} : { minAssurance }) };
  const { address, proto } = fields;
  if (address === undefined) {
    if (proto !== undefined && proto !== 'tcp') {
      throw invalid('proto', 'tcp', proto);
    }
    const flow = { src: socketAddress(fields.src, 'src'), dst: socketAddress(fields.dst, 'dst') };
    return { address: flow.src.ip, flow, ...rest };
  }
  for (const key of ['proto', 'src', 'dst']) {
    if (fields[key] !== undefined) {
      throw new IdentityError('KEY_INVALID', `${key}: either address or src and dst`);
    }
  }
  const short = typeof address === 'string' && address.length <= MAX_TEXT ? address : '';
  const ip = parseIp(short) ?? parseSocketAddress(short)?.ip;
  if (ip === undefined) {
    throw invalid('address', 'an address such as 10.66.0.3, with or without a port', address);
  }
  return { address: ip, ...rest };
}

/** Unix time, milliseconds. */
function timeOf(given: unknown): number {
  const text = typeof given === 'string' && given.length <= MAX_TEXT ? given : '';
  if (/^\d{1,15}$/.test(text)) {
    return Number(text);
  }
  if (!z.iso.datetime({ offset: true }).safeParse(text).success) {
    throw invalid('at', 'milliseconds of Unix time, or a time such as 2026-11-28T14:03:07Z', given);
  }
  return Date.parse(text);
}

function assuranceOf(given: unknown, place: string): Assurance | undefined {
  const assurance = ASSURANCES.find((candidate) => candidate === given);
  if (given !== undefined && assurance === undefined) {
    throw invalid(`${place}minAssurance`, `one of ${ASSURANCES.join(', ')}`, given);
  }
  return assurance;
}

/** The queries of a batch, unchecked: each is answered for itself. Throws ApiProblem KEY_INVALID. */
export function batchQueries(body: unknown): readonly unknown[] {
  const { queries } = checkedKeys(body, ['queries'], '');
  if (!Array.isArray(queries) || queries.length > MAX_BATCH) {
    throw invalid('queries', `a list of at most ${MAX_BATCH} queries`, queries);
  }
  return queries;
}

/** The default where none is given. Throws ApiProblem KEY_INVALID. */
export function parseLimit(given: unknown): number {
  const { limit } = checkedKeys(given, ['limit'], '');
  if (limit === undefined) {
    return DEFAULT_FLOWS;
  }
  const value = typeof limit === 'string' && /^\d{1,5}$/.test(limit) ? Number(limit) : 0;
  if (value < 1 || value > MAX_FLOWS) {
    throw invalid('limit', `a number from 1 to ${MAX_FLOWS}`, limit);
  }
  return value;
}

/** Throws IdentityError KEY_INVALID, which names the parameter. */
export function parseWatchFrom(given: unknown): WatchFrom {
  const { epoch, since } = checkedKeys(given, ['epoch', 'since'], '');
  if (epoch !== undefined && !(typeof epoch === 'string' && EPOCH.test(epoch))) {
    throw invalid('epoch', 'the epoch of an earlier line', epoch);
  }
  if (since !== undefined && !(typeof since === 'string' && /^\d{1,15}$/.test(since))) {
    throw invalid('since', 'the revision of an earlier line', since);
  }
  return { epoch, since: since === undefined ? undefined : Number(since) };
}

/** For what takes no parameters. Throws ApiProblem KEY_INVALID. */
export function refuseKeys(given: unknown): void {
  checkedKeys(given, [], '');
}

function checkedKeys(given: unknown, known: readonly string[], place: string): Record<string, unknown> {
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    throw invalid(place === '' ? 'the request' : place.replace(/\.$/, ''), 'an object', given);
  }
  const unknown = Object.keys(given).find((key) => !known.includes(key));
  if (unknown !== undefined) {
    const allowed = known.length === 0 ? 'none is known here' : `known are ${known.join(', ')}`;
    throw new IdentityError('KEY_INVALID', `${place}${unknown.slice(0, MAX_TEXT)}: unknown key; ${allowed}`);
  }
  return { ...given };
}

function socketAddress(given: unknown, key: string): SocketAddress {
  const address =
    typeof given === 'string' && given.length <= MAX_TEXT ? parseSocketAddress(given) : undefined;
  if (address === undefined || address.port === 0) {
    throw invalid(key, 'an address and port such as 10.66.0.3:41886 or [fd00::3]:41886', given);
  }
  return address;
}

function invalid(key: string, expected: string, given: unknown): IdentityError {
  return new IdentityError('KEY_INVALID', `${key}: expected ${expected}, got ${show(given)}`);
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
