/** Envoy's external authorization: a connection of a pod that is known is let pass, with the pod's name; others are denied. */

import {
  type ServerUnaryCall,
  type sendUnaryData,
  status,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import type { FlowQuery } from '../identity/resolve.js';
import type { Workload } from '../identity/workload.js';
import { formatSocketAddress, type SocketAddress } from '../net/socket-address.js';
import type { Answers } from './answers.js';
import { addressOf, socketAddress } from './checks.js';
import type { GrpcStatuses } from './grpc-status.js';
import { ApiProblem, PROBLEM_TYPE, type Problem, problemOf } from './problem.js';
import { REASON_HEADER, SPIFFE_HEADER, senderOf } from './sender.js';

interface Peer {
  readonly address: {
    readonly socketAddress?: {
      readonly protocol?: string;
      readonly address: string;
      readonly portValue?: number;
    };
  } | null;
}

interface CheckRequest {
  readonly attributes: {
    readonly source: Peer | null;
    readonly destination: Peer | null;
    readonly request?: { readonly http?: { readonly protocol?: string } | null } | null;
  } | null;
}

export interface AuthorizationOptions {
  readonly answers: Answers;
  readonly statuses: GrpcStatuses;
}

/** Whatever is not an answer about an identity is an error of the call: Envoy then does as `failure_mode_allow` says. */
export function authorizationHandlers({
  answers,
  statuses,
}: AuthorizationOptions): UntypedServiceImplementation {
  return {
    Check: async (
      call: ServerUnaryCall<CheckRequest, object>,
      callback: sendUnaryData<object>,
    ): Promise<void> => {
      try {
        callback(null, passed(await senderOf(answers, () => flowOf(call.request))));
      } catch (error) {
        const known = error instanceof ApiProblem && error.status === 403 ? problemOf(error) : undefined;
        if (known === undefined) {
          callback(statuses.of(error, call.getPath()));
        } else {
          callback(null, denied(known));
        }
      }
    },
  };
}

/** Of QUIC, which is UDP, Envoy 1.40 gives the addresses as those of a TCP connection: what is asked over it is HTTP/3. */
function isUdp(attributes: CheckRequest['attributes']): boolean {
  const { protocol } = attributes?.source?.address?.socketAddress ?? {};
  return protocol === 'UDP' || attributes?.request?.http?.protocol === 'HTTP/3';
}

function flowOf({ attributes }: CheckRequest): FlowQuery {
  return {
    proto: isUdp(attributes) ? 'udp' : 'tcp',
    src: endOf(attributes?.source, 'attributes.source'),
    dst: endOf(attributes?.destination, 'attributes.destination'),
  };
}

function endOf(peer: Peer | null | undefined, place: string): SocketAddress {
  const { address, portValue = 0 } = peer?.address?.socketAddress ?? {};
  const ip = addressOf(address, `${place}.address.socket_address.address`);
  return socketAddress(
    formatSocketAddress({ ip, port: portValue }),
    `${place}.address.socket_address.port_value`,
  );
}

function passed({ spiffeId, namespace, podName, serviceAccount }: Workload): object {
  return {
    status: { code: status.OK },
    okResponse: { headers: [header(SPIFFE_HEADER, spiffeId)] },
    dynamicMetadata: textsOf({
      spiffe_id: spiffeId,
      namespace,
      pod: podName,
      service_account: serviceAccount,
    }),
  };
}

function denied(problem: Problem): object {
  const { reason, detail } = problem;
  return {
    status: { code: status.PERMISSION_DENIED, message: `${reason}: ${detail}` },
    deniedResponse: {
      status: { code: problem.status },
      headers: [header(REASON_HEADER, reason), header('content-type', PROBLEM_TYPE)],
      body: JSON.stringify(problem),
    },
    dynamicMetadata: textsOf({ reason }),
  };
}

/** Whatever the app itself has sent under this name goes. */
function header(key: string, value: string): object {
  return { header: { key, value }, appendAction: 'OVERWRITE_IF_EXISTS_OR_ADD' };
}

/** As google.protobuf.Struct. */
function textsOf(texts: Readonly<Record<string, string>>): object {
  return {
    fields: Object.fromEntries(Object.entries(texts).map(([name, stringValue]) => [name, { stringValue }])),
  };
}
