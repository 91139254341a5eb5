/** The gRPC API on its Unix socket. Each connection's credentials are read before gRPC gets to see it. */

import { mkdirSync } from 'node:fs';
import { constants, performServerHandshake } from 'node:http2';
import { createServer, type Server as NetServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { Server, ServerCredentials, type StatusObject } from '@grpc/grpc-js';
import { ReflectionService } from '@grpc/reflection';
import { steadyUnixMs } from '../base/clock.js';
import { Answers } from './answers.js';
import { Callers } from './callers.js';
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
import { applyAccess, removeStaleSocket } from './unix-socket.js';
import { Views } from './views.js';

export type GrpcApiOptions = HttpApiOptions;

export interface GrpcApi {
  readonly path: string;
  close(): Promise<void>;
}

export const GRPC_SOCKET_NAME = 'identity.sock';

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

/** Listens on `<runDir>/identity.sock`. Throws SocketInUseError where somebody else does. */
export async function startGrpcApi(options: GrpcApiOptions): Promise<GrpcApi> {
  const { runDir, config } = options;
  const path = join(runDir, GRPC_SOCKET_NAME);
  mkdirSync(runDir, { recursive: true, mode: 0o755 });
  await removeStaleSocket(path);
  const statuses = new GrpcStatuses(options.log);
  const grpc = grpcServer(options, statuses);
  const insecure = ServerCredentials.createInsecure();
  const open = new Set<Socket>();
  const { credentials, log } = options;
  const callers = new Callers({ ...config.api, credentials, log, nowMs: steadyUnixMs });
  const server = createServer((socket) => {
    open.add(socket);
    socket.once('close', () => open.delete(socket));
    try {
      const checked = credentialsOf(callers.of(socket), insecure, statuses);
      const injector = grpc.createConnectionInjector(checked);
      socket.once('close', () => injector.destroy());
      injector.injectConnection(socket);
    } catch (error) {
      refuse(socket, statuses.of(error, 'connection'));
    }
  });
  const close = async () => {
    grpc.forceShutdown();
    const closed = new Promise<void>((resolve) => server.close(() => resolve()));
    for (const socket of open) {
      socket.destroy();
    }
    await closed;
  };
  try {
    await listen(server, path);
    applyAccess(path, config.api.allow);
  } catch (error) {
    await close();
    throw error;
  }
  return { path, close };
}

function grpcServer(options: GrpcApiOptions, statuses: GrpcStatuses): Server {
  const startedMs = performance.now();
  const views = new Views({
    ...options,
    interception: options.config.interception,
    node: options.config.node,
    uptimeMs: () => performance.now() - startedMs,
  });
  const server = new Server(LIMITS);
  const service = loadService('nodesentry/identity/v1/identity.proto', IDENTITY_SERVICE);
  const answers = new Answers(options);
  server.addService(
    withSerializedWatch(service),
    identityHandlers({
      answers,
      views,
      statuses,
      calls: new IdentityCalls(options.watch, service),
    }),
  );
  server.addService(
    loadService('envoy/service/auth/v3/external_auth.proto', AUTHORIZATION_SERVICE),
    authorizationHandlers({ answers, statuses }),
  );
  server.addService(
    loadService('grpc/health/v1/health.proto', HEALTH_SERVICE),
    healthHandlers(options.blockers, [IDENTITY_SERVICE]),
  );
  new ReflectionService(compiledProtos()).addToServer(server);
  return server;
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

function listen(server: NetServer, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, () => {
      server.off('error', reject);
      resolve();
    });
  });
}
