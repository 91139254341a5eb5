/** The HTTPS server that API servers call. */

import type { Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import fastify, { type FastifyError, type FastifyInstance } from 'fastify';
import type { Log } from '../base/log.js';
import type { Generation } from './certificates.js';
import { type AdmissionRequest, ReviewError, readReview, reviewAnswer, type Verdict } from './review.js';

export interface WebhookServerOptions {
  readonly host: string;
  /** 0: any that is free. */
  readonly port: number;
  readonly first: Generation;
  readonly mutate: (request: AdmissionRequest) => Verdict;
  readonly validate: (request: AdmissionRequest) => Verdict;
  readonly ready: () => boolean;
  readonly log: Log;
}

export interface WebhookServer {
  readonly port: number;
  /** For connections from now on; those that are open go on. */
  serve(generation: Generation): void;
  close(): Promise<void>;
}

/** An object and the one before it, of at most 3 MiB each (the API server's limit for a request), and what is around them. */
const BODY_LIMIT = 8 << 20;

export async function startWebhookServer(options: WebhookServerOptions): Promise<WebhookServer> {
  const { host, port, first, ready, log } = options;
  const app = fastify({
    https: secureContext(first),
    bodyLimit: BODY_LIMIT,
    forceCloseConnections: 'idle',
  });
  app.get('/healthz', async () => 'ok\n');
  app.get('/readyz', async (_request, reply) =>
    ready() ? 'ok\n' : reply.code(503).send('the certificates are not known to the API server\n'),
  );
  answers(app, '/mutate', options.mutate, log);
  answers(app, '/validate', options.validate, log);
  app.setErrorHandler(async (error: FastifyError, _request, reply) => {
    const status = error instanceof ReviewError ? 400 : (error.statusCode ?? 500);
    log.warn({ status, err: error }, 'webhook: a call could not be answered');
    return reply.code(status).type('text/plain').send(`${error.message}\n`);
  });
  await app.listen({ host, port });
  const server = app.server as Server;
  return {
    port: (server.address() as AddressInfo).port,
    serve: (generation) => server.setSecureContext(secureContext(generation)),
    close: async () => {
      await app.close();
    },
  };
}

function answers(
  app: Pick<FastifyInstance, 'post'>,
  path: string,
  verdictOf: WebhookServerOptions['mutate'],
  log: Log,
): void {
  app.post(path, async ({ body }) => {
    const request = readReview(body);
    const verdict = verdictOf(request);
    if (verdict.refusal !== undefined) {
      const { namespace, name, operation } = request;
      log.info({ namespace, name, operation, reason: verdict.refusal }, 'webhook: a pod is refused');
    }
    return reviewAnswer(request, verdict);
  });
}

function secureContext({ certificate, key }: Generation) {
  return { cert: certificate, key, minVersion: 'TLSv1.2' as const };
}
