/** The gRPC server behind the socket of grpc.ts. Loaded when somebody connects: see there. */

import { constants, performServerHandshake } from 'node:http2';
import type { Socket } from 'node:net';
import { performance } from 'node:perf_hooks';
import { setImmediate } from 'node:timers/promises';
import { Server, ServerCredentials, type StatusObject } from '@grpc/grpc-js';
import { ReflectionService } from '@grpc/reflection';
import { Answers } from './answers.js';
import type { Caller } from './caller.js';
import { authorizationHandlers } from './ext-authz.js';
import { credentialsOf } from './grpc-callers.js';
import { healthHandlers } from './grpc-health.js';
import {
  AUTHORIZATION_SERVICE,
  compiledProtos,
  HEALTH_SERVICE,
  IDENTITY_SERVICE,
  loadService,
} from './grpc-protos.js';
import { identityHandlers } from './grpc-service.js';
import { GrpcStatuses } from './grpc-status.js';
import { IdentityCalls, withSerializedWatch } from './grpc-watch.js';
import type { HttpApiOptions } from './http.js';
import { Views } from './views.js';

const LIMITS = {
  /** It would keep a record of each connection. */
  'grpc.enable_channelz': 0,
  /** 256 requests with room, as over HTTP. */
  'grpc.max_receive_message_length': 128 * 1024,
  /** What a client takes that was told nothing. */
  'grpc.max_send_message_length': 4 << 20,
  'grpc.max_concurrent_streams': 128,
};
/** How long a caller that may not ask has to hear so. */
const REFUSE_MS = 5_000;

/** Takes connections of which the socket has been read nothing yet. */
export class GrpcServer {
  readonly #server: Server;
  readonly #statuses: GrpcStatuses;
  readonly #insecure = ServerCredentials.createInsecure();

  private constructor(server: Server, statuses: GrpcStatuses) {
    this.#server = server;
    this.#statuses = statuses;
  }

  /** What else waits has its turn between the steps. */
  static async open(options: HttpApiOptions): Promise<GrpcServer> {
    const statuses = new GrpcStatuses(options.log);
    const server = new Server(LIMITS);
    for (const add of [addIdentity, addAuthorization, addHealth, addReflection]) {
      await setImmediate();
      add(server, options, statuses);
    }
    return new GrpcServer(server, statuses);
  }

  /** `callerOf` throws where it may not ask: then it is told so. */
  take(socket: Socket, callerOf: () => Caller): void {
    socket.read(0); // what arrives from now on is for HTTP/2, which takes the socket over before this turn ends
    try {
      const checked = credentialsOf(callerOf(), this.#insecure, this.#statuses);
      const injector = this.#server.createConnectionInjector(checked);
      socket.once('close', () => injector.destroy());
      injector.injectConnection(socket);
    } catch (error) {
      refuse(socket, this.#statuses.of(error, 'connection'));
    }
  }

  close(): void {
    this.#server.forceShutdown();
  }
}

function addIdentity(server: Server, options: HttpApiOptions, statuses: GrpcStatuses): void {
  const startedMs = performance.now();
  const views = new Views({
    ...options,
    interception: options.config.interception,
    node: options.config.node,
    uptimeMs: () => performance.now() - startedMs,
  });
  const service = loadService('nodesentry/identity/v1/identity.proto', IDENTITY_SERVICE);
  const handlers = identityHandlers({
    answers: new Answers(options),
    views,
    statuses,
    calls: new IdentityCalls(options.watch, service),
  });
  server.addService(withSerializedWatch(service), handlers);
}

function addAuthorization(server: Server, options: HttpApiOptions, statuses: GrpcStatuses): void {
  const service = loadService('envoy/service/auth/v3/external_auth.proto', AUTHORIZATION_SERVICE);
  server.addService(service, authorizationHandlers({ answers: new Answers(options), statuses }));
}

function addHealth(server: Server, { blockers }: HttpApiOptions): void {
  const service = loadService('grpc/health/v1/health.proto', HEALTH_SERVICE);
  server.addService(service, healthHandlers(blockers, [IDENTITY_SERVICE]));
}

function addReflection(server: Server): void {
  new ReflectionService(compiledProtos()).addToServer(server);
}

/** Answers whatever is called, without a look at it: "Trailers-Only" of gRPC over HTTP/2. */
function refuse(socket: Socket, { code, details, metadata }: StatusObject): void {
  const session = performServerHandshake(socket, { settings: { maxConcurrentStreams: 1 } });
  const end = setTimeout(() => session.destroy(), REFUSE_MS);
  session.once('close', () => clearTimeout(end));
  session.on('error', () => socket.destroy());
  session.on('stream', (stream) => {
    stream.on('error', () => session.destroy());
    stream.resume();
    stream.respond(
      {
        [constants.HTTP2_HEADER_STATUS]: constants.HTTP_STATUS_OK,
        [constants.HTTP2_HEADER_CONTENT_TYPE]: 'application/grpc+proto',
        'grpc-status': code,
        'grpc-message': encodeURI(details),
        ...metadata.toHttp2Headers(),
      },
      { endStream: true },
    );
    session.close();
  });
}
