/** Metrics on a TCP address, for a Prometheus that cannot reach the Unix socket. Nothing else is answered there. */

import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Logger } from 'pino';
import type { ListenerAddress } from '../config/config.js';
import type { Metrics } from '../telemetry/metrics.js';

export class MetricsListenError extends Error {
  override readonly name = 'MetricsListenError';
  readonly code = 'METRICS_LISTEN';
}

export interface MetricsServerOptions {
  /** Port 0: any that is free. */
  readonly listen: Pick<ListenerAddress, 'host' | 'port' | 'text'>;
  readonly metrics: Pick<Metrics, 'contentType' | 'text'>;
  readonly log: Pick<Logger, 'error'>;
}

export interface MetricsServer {
  readonly port: number;
  close(): Promise<void>;
}

/** Whoever reaches the port may ask, however often: what is younger than this is not collected anew for them. */
const FRESH_MS = 500;
const MAX_CONNECTIONS = 32;
const LIMITS = {
  maxHeaderSize: 8 << 10,
  headersTimeout: 5_000,
  requestTimeout: 5_000,
  connectionsCheckingInterval: 1_000,
  /** Longer than the usual scrape interval: a scraper keeps its connection. */
  keepAliveTimeout: 75_000,
};

/** Throws MetricsListenError where the address cannot be had. */
export async function startMetricsServer(options: MetricsServerOptions): Promise<MetricsServer> {
  const { listen, metrics, log } = options;
  const text = shared(() => metrics.text());
  const server = createServer(LIMITS, (request, response) => {
    answer(request, response, metrics.contentType, text).catch((error: unknown) => {
      log.error({ err: error }, 'metrics could not be collected');
      refuse(response, 500, 'the agent failed to answer; its log says why');
    });
  });
  server.maxConnections = MAX_CONNECTIONS;
  server.listen({ host: listen.host, port: listen.port });
  try {
    await once(server, 'listening');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const why = code === 'EADDRINUSE' ? 'another process listens there' : (error as Error).message;
    throw new MetricsListenError(
      `metrics.listen: ${listen.text} cannot be had: ${why}; choose another address`,
      { cause: error },
    );
  }
  return {
    port: (server.address() as AddressInfo).port,
    close: async () => {
      const closed = once(server, 'close');
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
}

async function answer(
  { url = '', method }: IncomingMessage,
  response: ServerResponse,
  contentType: string,
  text: () => Promise<string>,
): Promise<void> {
  if (url.split('?', 1)[0] !== '/metrics') {
    refuse(response, 404, 'there is nothing but /metrics');
  } else if (method !== 'GET') {
    refuse(response.setHeader('allow', 'GET'), 405, 'ask with GET');
  } else {
    const body = await text();
    response.writeHead(200, { 'content-type': contentType, 'content-length': Buffer.byteLength(body) });
    response.end(body);
  }
}

/** With the connection: the rest of a request that nobody wants is not read. */
function refuse(response: ServerResponse, status: number, why: string): void {
  response.writeHead(status, { 'content-type': 'text/plain; charset=utf-8', connection: 'close' });
  response.end(`${why}\n`);
}

/** One collection for all who ask while it goes on or is fresh. */
function shared(collect: () => Promise<string>): () => Promise<string> {
  let last: { readonly atMs: number; readonly text: Promise<string> } | undefined;
  return () => {
    const atMs = performance.now();
    if (last === undefined || atMs - last.atMs >= FRESH_MS) {
      last = { atMs, text: collect() };
    }
    return last.text;
  };
}
