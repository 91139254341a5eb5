/** What is asked of `resolve`, as HTTP's parameters and the queries of a batch say it. */

import type { PastQuery } from '../identity/past.js';
import { ASSURANCES, type Assurance, type FlowQuery, type ResolveQuery } from '../identity/resolve.js';
import type { AtLeast } from '../identity/revisions.js';
import {
  addressOf,
  checkedKeys,
  epochOf,
  interfaceName,
  invalid,
  netnsCookieOf,
  pidOf,
  podUidOf,
  protocolOf,
  refused,
  revisionOf,
  socketAddress,
  socketCookieOf,
  startTimeOf,
  timeOf,
  waitMsOf,
} from './checks.js';

/** The flow of an accepted connection, by SO_COOKIE of its socket. */
export interface SocketQuery {
  readonly socketCookie: bigint;
  readonly minAssurance?: Assurance;
}

export type Question =
  | {
      readonly now: ResolveQuery | SocketQuery;
      /** Undefined: whatever is known now. */
      readonly atLeast: AtLeast | undefined;
    }
  | { readonly past: PastQuery };

/** Each key with the parameters that it consists of. */
const KEYS = {
  flow: ['src', 'dst', 'proto'],
  podUid: ['podUid'],
  address: ['address'],
  socketCookie: ['socketCookie'],
  netnsCookie: ['netnsCookie'],
  hostInterface: ['hostInterface'],
  process: ['pid', 'startTime'],
} as const;

type Key = keyof typeof KEYS;
type Fields = Readonly<Record<string, unknown>>;

const WAIT = ['minEpoch', 'minRevision', 'waitMs'] as const;
const KEY_NAMES = Object.keys(KEYS) as readonly Key[];
const KNOWN = ['proto', 'src', 'dst', ...KEY_NAMES.flatMap((key) => KEYS[key].slice(key === 'flow' ? 3 : 0))];

/** Throws IdentityError KEY_INVALID, which names the key. */
export function parseQuestion(given: unknown, place = ''): Question {
  const fields = checkedKeys(given, [...KNOWN, 'minAssurance', 'at', ...WAIT], place);
  const key = onlyKey(fields, place);
  const minAssurance = assuranceOf(fields.minAssurance, place);
  const assured = minAssurance === undefined ? {} : { minAssurance };
  const atLeast = atLeastOf(fields, place);
  return fields.at === undefined
    ? { now: queryOf(key, fields, place, assured), atLeast }
    : { past: pastOf(key, fields, place, assured) };
}

/** Of a flow alone, for an answer that rests on its record. Throws IdentityError KEY_INVALID, which names the key. */
export function parseFlow(given: unknown): FlowQuery {
  const fields = checkedKeys(given, KEYS.flow, '');
  return { proto: protocolOf(fields.proto ?? 'tcp', 'proto'), ...endsOf(fields, '') };
}

/** A flow where none is given: that is what most ask about, so its first parameter is missed. */
function onlyKey(fields: Fields, place: string): Key {
  const given = KEY_NAMES.flatMap((key) =>
    KEYS[key].filter((name) => fields[name] !== undefined).map((name) => ({ key, name })),
  );
  const [first = { key: 'flow', name: 'src' } as const] = given;
  const other = given.find(({ key }) => key !== first.key);
  if (other !== undefined) {
    throw refused(`${place}${other.name}`, `only one key at a time, and ${first.name} is another`);
  }
  return first.key;
}

function queryOf(key: Key, fields: Fields, place: string, assured: Assured): ResolveQuery | SocketQuery {
  if (key === 'flow') {
    const proto = protocolOf(fields.proto, `${place}proto`);
    return { proto, ...endsOf(fields, place), ...assured };
  }
  if (key === 'address') {
    return { address: addressOf(fields.address, `${place}address`), ...assured };
  }
  if (key === 'socketCookie') {
    return { socketCookie: socketCookieOf(fields.socketCookie, `${place}socketCookie`), ...assured };
  }
  if (assured.minAssurance !== undefined) {
    throw refused(`${place}minAssurance`, 'only a flow or an address has an assurance');
  }
  switch (key) {
    case 'podUid':
      return { podUid: podUidOf(fields.podUid, `${place}podUid`) };
    case 'hostInterface':
      return { hostInterface: interfaceName(fields.hostInterface, `${place}hostInterface`) };
    case 'process': {
      const pid = pidOf(fields.pid, `${place}pid`);
      return { pid, startTime: startTimeOf(fields.startTime, `${place}startTime`) };
    }
    case 'netnsCookie':
      return { netnsCookie: netnsCookieOf(fields.netnsCookie, `${place}netnsCookie`) };
  }
}

function pastOf(key: Key, fields: Fields, place: string, assured: Assured): PastQuery {
  const at = timeOf(fields.at, `${place}at`);
  if (key === 'address') {
    return { address: addressOf(fields.address, `${place}address`), at, ...assured };
  }
  if (key !== 'flow') {
    throw refused(`${place}at`, 'only of a flow or an address is it kept whose it was');
  }
  const proto = protocolOf(fields.proto ?? 'tcp', `${place}proto`);
  const flow = { proto, ...endsOf(fields, place) };
  return { address: flow.src.ip, flow, at, ...assured };
}

function atLeastOf(fields: Fields, place: string): AtLeast | undefined {
  const { minEpoch, minRevision, waitMs } = fields;
  const given = WAIT.find((name) => fields[name] !== undefined);
  if (given === undefined) {
    return undefined;
  }
  if (fields.at !== undefined) {
    throw refused(`${place}${given}`, 'not with at: what was is known, or is not');
  }
  return {
    epoch: epochOf(minEpoch, `${place}minEpoch`),
    revision: revisionOf(minRevision, `${place}minRevision`),
    waitMs: waitMs === undefined ? 0 : waitMsOf(waitMs, `${place}waitMs`),
  };
}

interface Assured {
  readonly minAssurance?: Assurance;
}

function endsOf({ src, dst }: Fields, place: string) {
  return { src: socketAddress(src, `${place}src`), dst: socketAddress(dst, `${place}dst`) };
}

function assuranceOf(given: unknown, place: string): Assurance | undefined {
  const assurance = ASSURANCES.find((candidate) => candidate === given);
  if (given !== undefined && assurance === undefined) {
    throw invalid(`${place}minAssurance`, `one of ${ASSURANCES.join(', ')}`, given);
  }
  return assurance;
}
