/** The rpcs of nodesentry.identity.v1.Identity: thin, every answer comes from the service that HTTP asks too. */

import { performance } from 'node:perf_hooks';
import type { ServerUnaryCall, sendUnaryData, UntypedServiceImplementation } from '@grpc/grpc-js';
import { IdentityError } from '../identity/errors.js';
import { ASSURANCES, type Assurance, type IdentityService, TTL_MS } from '../identity/resolve.js';
import type { PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { DatapathView } from '../reconcile/datapath-view.js';
import type { Metrics } from '../telemetry/metrics.js';
import {
  assuranceName,
  type BatchResolveRequest,
  problemMessage,
  type ResolutionAnswer,
  type ResolveRequest,
  resolutionMessage,
} from './grpc-messages.js';
import type { GrpcStatuses } from './grpc-status.js';
import type { IdentityCalls, WatchCall } from './grpc-watch.js';
import { problemOf } from './problem.js';
import { MAX_BATCH, parseResolveQuery } from './query.js';
import type { Views } from './views.js';

/** As over HTTP. */
const MAX_UID = 253;

/** Their names in the proto file. */
const NOT_SERVED: Readonly<Record<string, string>> = {
  socketCookie: 'socket_cookie',
  netnsCookie: 'netns_cookie',
  hostInterface: 'host_interface',
  process: 'process',
  address: 'address',
};

export interface IdentityHandlersOptions {
  readonly identity: Pick<IdentityService, 'resolve' | 'workload'>;
  readonly store: Pick<PodStore, 'epoch' | 'revision'>;
  readonly datapath: Pick<DatapathView, 'endpointOf'>;
  readonly metrics: Pick<Metrics, 'observeResolve'>;
  readonly views: Pick<Views, 'status'>;
  readonly statuses: GrpcStatuses;
  readonly calls: Pick<IdentityCalls, 'follow'>;
}

export function identityHandlers(options: IdentityHandlersOptions): UntypedServiceImplementation {
  const { statuses } = options;
  const unary =
    <Request>(answer: (request: Request) => object | Promise<object>) =>
    async (call: ServerUnaryCall<Request, object>, callback: sendUnaryData<object>): Promise<void> => {
      try {
        callback(null, await answer(call.request));
      } catch (error) {
        callback(statuses.of(error, call.getPath()));
      }
    };
  return {
    Resolve: unary((request: ResolveRequest) => ({
      resolution: resolutionMessage(resolve(options, request, '')),
    })),
    BatchResolve: unary(({ requests }: BatchResolveRequest) => batch(options, requests)),
    Watch: (call: WatchCall) => {
      try {
        options.calls.follow(call);
      } catch (error) {
        call.emit('error', statuses.of(error, call.getPath()));
      }
    },
    GetStatus: unary(() => options.views.status()),
  };
}

function batch(options: IdentityHandlersOptions, requests: readonly ResolveRequest[]): object {
  if (requests.length > MAX_BATCH) {
    throw invalid('requests', `expected a list of at most ${MAX_BATCH} requests, got ${requests.length}`);
  }
  const results = requests.map((request, index) => {
    try {
      return { resolution: resolutionMessage(resolve(options, request, `requests[${index}].`)) };
    } catch (error) {
      const known = problemOf(error);
      if (known === undefined) {
        throw error;
      }
      return { problem: problemMessage(known) };
    }
  });
  return { results };
}

/** Throws IdentityError. As over HTTP, questions about flows are counted and those about pods are not. */
function resolve(options: IdentityHandlersOptions, request: ResolveRequest, place: string): ResolutionAnswer {
  if (request.key === 'podUid') {
    return ofPod(options, request, place);
  }
  const { identity, metrics } = options;
  const startedMs = performance.now();
  let result = 'INTERNAL';
  try {
    const minAssurance = checkedAssurance(request, place);
    const query = parseResolveQuery(checkedFlow(request, place), `${place}flow.`);
    const resolution = identity.resolve({ ...query, ...(minAssurance && { minAssurance }) });
    result = resolution.assurance;
    return resolution;
  } catch (error) {
    result = error instanceof IdentityError ? error.code : result;
    throw error;
  } finally {
    metrics.observeResolve(result, (performance.now() - startedMs) / 1_000);
  }
}

function ofPod(options: IdentityHandlersOptions, request: ResolveRequest, place: string): ResolutionAnswer {
  const { identity, store, datapath } = options;
  checkServed(request, place);
  if (checkedAssurance(request, place) !== undefined) {
    throw invalid(`${place}min_assurance`, 'only a flow has an assurance, and pod_uid names none');
  }
  const { podUid = '' } = request;
  if (podUid === '' || podUid.length > MAX_UID) {
    throw invalid(`${place}pod_uid`, `expected 1 to ${MAX_UID} characters, got ${podUid.length}`);
  }
  const uid = podUid as PodUid;
  const { workload } = identity.workload(uid);
  const { epoch, revision } = store;
  return { workload, instance: datapath.endpointOf(uid)?.instance ?? '', epoch, revision, ttlMs: TTL_MS };
}

function checkedFlow(request: ResolveRequest, place: string): ResolveRequest['flow'] {
  checkServed(request, place);
  if (request.key !== 'flow') {
    throw invalid(`${place}key`, 'expected flow or pod_uid, got nothing');
  }
  return request.flow;
}

function checkServed({ key = '', minRevision, waitMs, atMs }: ResolveRequest, place: string): void {
  const asked: readonly (readonly [string, boolean])[] = [
    [NOT_SERVED[key] ?? '', key in NOT_SERVED],
    ['min_revision', minRevision !== null],
    ['wait_ms', waitMs !== 0],
    ['at_ms', atMs !== '0'],
  ];
  const [name] = asked.find(([, isAsked]) => isAsked) ?? [];
  if (name !== undefined) {
    throw invalid(`${place}${name}`, 'not served yet');
  }
}

function checkedAssurance({ minAssurance }: ResolveRequest, place: string): Assurance | undefined {
  const assurance = ASSURANCES.find((candidate) => assuranceName(candidate) === minAssurance);
  if (assurance === undefined && minAssurance !== 'ASSURANCE_UNSPECIFIED') {
    const names = ASSURANCES.map(assuranceName).join(', ');
    throw invalid(`${place}min_assurance`, `expected one of ${names}, got ${minAssurance}`);
  }
  return assurance;
}

function invalid(key: string, what: string): IdentityError {
  return new IdentityError('KEY_INVALID', `${key}: ${what}`);
}
