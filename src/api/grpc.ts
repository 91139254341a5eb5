/**
 * The gRPC API's Unix socket. Each connection's credentials are read before gRPC gets to see it, and gRPC is loaded for the
 * first of them: on many nodes there is none, and what it needs is a tenth of what lives in the heap.
 */

import { mkdirSync } from 'node:fs';
import { createServer, type Server as NetServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { steadyUnixMs } from '../base/clock.js';
import type { Caller } from './caller.js';
import { Callers } from './callers.js';
import type { GrpcServer } from './grpc-server.js';
import type { HttpApiOptions } from './http.js';
import { applyAccess, removeStaleSocket } from './unix-socket.js';

export type GrpcApiOptions = HttpApiOptions;

export interface GrpcApi {
  readonly path: string;
  close(): Promise<void>;
}

export const GRPC_SOCKET_NAME = 'identity.sock';

/** Listens on `<runDir>/identity.sock`. Throws SocketInUseError where somebody else does. */
export async function startGrpcApi(options: GrpcApiOptions): Promise<GrpcApi> {
  const { runDir, config } = options;
  const path = join(runDir, GRPC_SOCKET_NAME);
  mkdirSync(runDir, { recursive: true, mode: 0o755 });
  await removeStaleSocket(path);
  const open = new Set<Socket>();
  const { credentials, log } = options;
  const callers = new Callers({ ...config.api, credentials, log, nowMs: steadyUnixMs });
  let grpc: GrpcServer | undefined;
  let opening: Promise<void> | undefined;
  let isClosed = false;
  const openGrpc = async () => {
    const loaded = await loadGrpc(options);
    if (isClosed) {
      loaded.close();
    } else {
      grpc = loaded;
    }
  };
  const take = async (socket: Socket, callerOf: () => Caller) => {
    try {
      opening ??= openGrpc();
      await opening;
    } catch (error) {
      opening = undefined; // the next one tries again
      log.error({ err: error }, 'gRPC could not be loaded');
      socket.destroy();
    }
    if (!socket.destroyed) {
      grpc?.take(socket, callerOf);
    }
  };
  // Nothing is read from it before HTTP/2 does.
  const server = createServer({ pauseOnConnect: true }, (socket) => {
    open.add(socket);
    socket.once('close', () => open.delete(socket));
    socket.on('error', () => socket.destroy());
    const callerOf = callerNow(callers, socket);
    if (grpc === undefined) {
      void take(socket, callerOf);
    } else {
      grpc.take(socket, callerOf);
    }
  });
  const close = async () => {
    isClosed = true;
    grpc?.close();
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

/** Who it is now, before it may have ended; the function throws where it may not ask. */
function callerNow(callers: Callers, socket: Socket): () => Caller {
  try {
    const caller = callers.of(socket);
    return () => caller;
  } catch (error) {
    return () => {
      throw error;
    };
  }
}

/** One library after the other, so that what else waits has its turn in between. */
async function loadGrpc(options: GrpcApiOptions): Promise<GrpcServer> {
  await import('@grpc/grpc-js');
  await import('@grpc/proto-loader');
  const { GrpcServer } = await import('./grpc-server.js');
  return GrpcServer.open(options);
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
