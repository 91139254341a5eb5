/** What is asked of `resolve`, as gRPC's messages say it. */

import { ASSURANCES, type Assurance, type ResolveQuery } from '../identity/resolve.js';
import {
  addressOf,
  interfaceName,
  pidOf,
  podUidOf,
  refused,
  socketAddress,
  startTimeOf,
  tcpOnly,
} from './checks.js';
import { assuranceName, type ResolveRequest } from './grpc-messages.js';
import type { Question } from './question.js';

/** Throws IdentityError KEY_INVALID, which names the field. */
export function questionOf(request: ResolveRequest, place: string): Question {
  checkServed(request, place);
  const minAssurance = assuranceOf(request, place);
  return { now: queryOf(request, place, minAssurance === undefined ? {} : { minAssurance }) };
}

function queryOf(
  request: ResolveRequest,
  place: string,
  assured: { readonly minAssurance?: Assurance },
): ResolveQuery {
  const { key, flow, process } = request;
  switch (key) {
    case 'flow':
      return {
        proto: tcpOnly(flow?.proto, `${place}flow.proto`),
        src: socketAddress(flow?.src, `${place}flow.src`),
        dst: socketAddress(flow?.dst, `${place}flow.dst`),
        ...assured,
      };
    case 'address':
      return { address: addressOf(request.address, `${place}address`), ...assured };
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
    case 'socketCookie':
      throw refused(`${place}socket_cookie`, 'not served');
    case 'netnsCookie':
      throw refused(`${place}netns_cookie`, 'not served');
    default:
      throw refused(`${place}key`, 'expected one of the keys, got nothing');
  }
}

function checkServed({ minRevision, waitMs, atMs }: ResolveRequest, place: string): void {
  const asked: readonly (readonly [string, boolean])[] = [
    ['min_revision', minRevision !== null],
    ['wait_ms', waitMs !== 0],
    ['at_ms', atMs !== '0'],
  ];
  const [name] = asked.find(([, isAsked]) => isAsked) ?? [];
  if (name !== undefined) {
    throw refused(`${place}${name}`, 'not served yet');
  }
}

function assuranceOf({ minAssurance }: ResolveRequest, place: string): Assurance | undefined {
  const assurance = ASSURANCES.find((candidate) => assuranceName(candidate) === minAssurance);
  if (assurance === undefined && minAssurance !== 'ASSURANCE_UNSPECIFIED') {
    const names = ASSURANCES.map(assuranceName).join(', ');
    throw refused(`${place}min_assurance`, `expected one of ${names}, got ${minAssurance}`);
  }
  return assurance;
}
