/** What is asked of `resolve`, as gRPC's messages say it. */

import type { PastQuery } from '../identity/past.js';
import { ASSURANCES, type Assurance, type ResolveQuery } from '../identity/resolve.js';
import type { AtLeast } from '../identity/revisions.js';
import {
  addressOf,
  epochOf,
  interfaceName,
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
import { assuranceName, type ResolveRequest } from './grpc-messages.js';
import type { Question, SocketQuery } from './question.js';

/** Of a number of 64 bits that was left out. */
const UNSET = '0';

interface Assured {
  readonly minAssurance?: Assurance;
}

/** Throws IdentityError KEY_INVALID, which names the field. */
export function questionOf(request: ResolveRequest, place: string): Question {
  const minAssurance = assuranceOf(request, place);
  const assured = minAssurance === undefined ? {} : { minAssurance };
  const now = queryOf(request, place, assured);
  const atLeast = atLeastOf(request, place);
  return request.atMs === UNSET ? { now, atLeast } : { past: pastOf(now, request, place, assured) };
}

function queryOf(request: ResolveRequest, place: string, assured: Assured): ResolveQuery | SocketQuery {
  const { key, flow, process } = request;
  switch (key) {
    case 'flow':
      return {
        proto: protocolOf(flow?.proto, `${place}flow.proto`),
        src: socketAddress(flow?.src, `${place}flow.src`),
        dst: socketAddress(flow?.dst, `${place}flow.dst`),
        ...assured,
      };
    case 'address':
      return { address: addressOf(request.address, `${place}address`), ...assured };
    case 'socketCookie':
      return { socketCookie: socketCookieOf(request.socketCookie, `${place}socket_cookie`), ...assured };
  }
  if (assured.minAssurance !== undefined) {
    throw refused(`${place}min_assurance`, 'only a flow or an address has an assurance');
  }
  switch (key) {
    case 'podUid':
      return { podUid: podUidOf(request.podUid, `${place}pod_uid`) };
    case 'hostInterface':
      return { hostInterface: interfaceName(request.hostInterface, `${place}host_interface`) };
    case 'process':
      return {
        pid: pidOf(process?.pid, `${place}process.pid`),
        startTime: startTimeOf(process?.startTime, `${place}process.start_time`),
      };
    case 'netnsCookie':
      return { netnsCookie: netnsCookieOf(request.netnsCookie, `${place}netns_cookie`) };
    default:
      throw refused(`${place}key`, 'expected one of the keys, got nothing');
  }
}

function pastOf(
  query: ResolveQuery | SocketQuery,
  { atMs }: ResolveRequest,
  place: string,
  assured: Assured,
): PastQuery {
  const at = timeOf(atMs, `${place}at_ms`);
  if ('address' in query) {
    return { address: query.address, at, ...assured };
  }
  if (!('src' in query)) {
    throw refused(`${place}at_ms`, 'only of a flow or an address is it kept whose it was');
  }
  const { src, dst } = query;
  return { address: src.ip, flow: { src, dst }, at, ...assured };
}

function atLeastOf({ minRevision, waitMs, atMs }: ResolveRequest, place: string): AtLeast | undefined {
  if (minRevision === null) {
    if (waitMs !== 0) {
      throw refused(`${place}wait_ms`, 'for which min_revision?');
    }
    return undefined;
  }
  if (atMs !== UNSET) {
    throw refused(`${place}min_revision`, 'not with at_ms: what was is known, or is not');
  }
  return {
    epoch: epochOf(minRevision.epoch, `${place}min_revision.epoch`),
    revision: revisionOf(minRevision.revision, `${place}min_revision.revision`),
    waitMs: waitMsOf(waitMs, `${place}wait_ms`),
  };
}

function assuranceOf({ minAssurance }: ResolveRequest, place: string): Assurance | undefined {
  const assurance = ASSURANCES.find((candidate) => assuranceName(candidate) === minAssurance);
  if (assurance === undefined && minAssurance !== 'ASSURANCE_UNSPECIFIED') {
    const names = ASSURANCES.map(assuranceName).join(', ');
    throw refused(`${place}min_assurance`, `expected one of ${names}, got ${minAssurance}`);
  }
  return assurance;
}
