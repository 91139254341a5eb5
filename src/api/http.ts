/** The HTTP API on the Unix socket: thin, every answer comes from one service. */

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import type { Writable } from 'node:stream';
import fastify, { type FastifyInstance, type FastifyReply } from 'fastify';
import type { Logger } from 'pino';
import { steadyUnixMs } from '../base/clock.js';
import type { CapacityReport } from '../capacity/report.js';
import type { Config, Scope } from '../config/config.js';
import { IdentityError } from '../identity/errors.js';
import type { PastIdentity } from '../identity/past.js';
import type { IdentityService } from '../identity/resolve.js';
import type { SocketLookups } from '../identity/socket-ends.js';
import type { Told } from '../identity/told.js';
import type { IdentityWatch } from '../identity/watch.js';
import type { Announcing } from '../instances/announcing.js';
import type { Upgrades } from '../instances/upgrades.js';
import type { PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { PodSource } from '../pods/source.js';
import type { DatapathView } from '../reconcile/datapath-view.js';
import type { ProcessMessage } from '../supervise/state.js';
import type { Metrics } from '../telemetry/metrics.js';
import { Answers } from './answers.js';
import { Callers, type PeerCredentials } from './callers.js';
import { DrainsApi, type DrainsView } from './drains.js';
import { parseExplain } from './explain.js';
import { FlowWatch } from './flow-watch.js';
import { IdentityStreams } from './identity-streams.js';
import type { InstancesView } from './instances.js';
import type { BatchItem, BatchMessage, FlowsMessage } from './messages.js';
import { ApiProblem, PROBLEM_TYPE, type Problem, problem, problemOf } from './problem.js';
import { batchQueries, parseApp, parseLimit, parseWatchFrom, refuseKeys } from './query.js';
import { parseFlow, parseQuestion } from './question.js';
import { type Route, RouteTable } from './route-table.js';
import { senderHeaders, senderOf } from './sender.js';
import { Telling } from './told.js';
import { applyAccess, removeStaleSocket } from './unix-socket.js';
import { Views } from './views.js';

export interface HttpApiOptions {
  readonly runDir: string;
  readonly config: Pick<Config, 'api' | 'interception' | 'node'>;
  readonly store: PodStore;
  readonly datapath: DatapathView;
  readonly identity: IdentityService;
  readonly past: PastIdentity;
  readonly told: Told;
  readonly instances: InstancesView;
  readonly upgrades: Pick<Upgrades, 'start' | 'abort'>;
  readonly announcing: Pick<Announcing, 'byProcess' | 'withdraw'>;
  readonly processes: () => readonly ProcessMessage[];
  readonly drains: DrainsView;
  readonly capacity: () => CapacityReport;
  readonly sockets: SocketLookups;
  readonly watch: IdentityWatch;
  readonly sources: readonly Pick<PodSource, 'name' | 'lastError'>[];
  /** Whether every source has delivered. */
  readonly synced: () => boolean;
  /** What keeps the agent from being ready, in words; empty: it is. */
  readonly blockers: () => readonly string[];
  readonly metrics: Metrics;
  readonly version: string;
  readonly credentials: (fd: number) => PeerCredentials;
  readonly log: Pick<Logger, 'warn' | 'error'>;
}

export interface HttpApi {
  readonly path: string;
  readonly routes: readonly Route[];
  close(): Promise<void>;
}

export const SOCKET_NAME = 'http.sock';
/** Browsers cannot send it to another site unasked: a guard against request forgery. */
export const GUARD_HEADER = 'nodesentry.io';

/** 256 queries with room. */
const BODY_LIMIT = 128 * 1024;
const URL_LIMIT = 2_048;

/** What else is under /v1/ needs `admin`. */
const SCOPES: ReadonlyMap<string, Scope> = new Map([
  ['/v1/resolve', 'resolve'],
  ['/v1/resolve::batch', 'resolve'],
  ['/v1/authorize', 'resolve'],
  ['/v1/flows/told', 'resolve'],
  ['/v1/workloads/:uid', 'resolve'],
  ['/v1/workloads', 'watch'],
  ['/v1/services', 'watch'],
  ['/v1/watch', 'watch'],
  ['/metrics', 'admin'],
]);

/** Listens on `<runDir>/http.sock`. Throws SocketInUseError where somebody else does. */
export async function startHttpApi(options: HttpApiOptions): Promise<HttpApi> {
  const { runDir, config, credentials, log } = options;
  const path = join(runDir, SOCKET_NAME);
  mkdirSync(runDir, { recursive: true, mode: 0o755 });
  await removeStaleSocket(path);
  const startedMs = performance.now();
  const views = new Views({
    ...options,
    interception: config.interception,
    node: config.node,
    uptimeMs: () => performance.now() - startedMs,
  });
  const flowWatch = new FlowWatch({
    onFlowEvent: (listener) => options.datapath.onFlowEvent(listener),
    describe: (event) => views.flow(event),
  });
  const streams = new IdentityStreams(options.watch);
  const app = fastify({
    bodyLimit: BODY_LIMIT,
    forceCloseConnections: true,
    routerOptions: { maxParamLength: 253 },
    frameworkErrors: (error, _request, reply) => void sendProblem(reply, error, options.log),
  });
  const table = new RouteTable();
  app.addHook('onRoute', ({ method, url }) => table.add(method, url));
  const callers = new Callers({ ...config.api, credentials, log, nowMs: steadyUnixMs });
  guard(app, options, table, callers);
  identityRoutes(app, new Answers(options), views, callers);
  watchRoute(app, streams);
  flowRoutes(app, views, flowWatch);
  instanceRoutes(app, options, views);
  drainRoutes(app, new DrainsApi(options));
  tellingRoute(app, new Telling(options));
  operationRoutes(app, options, views);
  try {
    // Who watches comes back all at once when the agent has been away.
    await app.listen({ path, backlog: 4_096 });
    applyAccess(path, config.api.allow);
  } catch (error) {
    await app.close();
    throw error;
  }
  return {
    path,
    routes: table.routes,
    close: async () => {
      flowWatch.close();
      streams.close();
      await app.close();
    },
  };
}

function guard(app: FastifyInstance, { log }: HttpApiOptions, table: RouteTable, callers: Callers): void {
  app.addHook('onRequest', async (request, reply) => {
    const caller = callers.of(request.raw.socket);
    caller.require(scopeOf(request.routeOptions.url));
    caller.charge(1);
    const { url } = request;
    if (url.length > URL_LIMIT) {
      throw new IdentityError(
        'KEY_INVALID',
        `the URL: expected at most ${URL_LIMIT} characters, got ${url.length}`,
      );
    }
    // Before anything is made of a body that nobody wants.
    if (request.is404) {
      const [path = ''] = url.split('?', 1);
      const allowed = table.methodsOf(path);
      reply.headers(allowed.length === 0 ? {} : { allow: allowed.join(', ') });
      throw new ApiProblem(
        allowed.length === 0 ? 404 : 405,
        'NOT_FOUND',
        `there is no ${request.method} ${path}`,
      );
    }
    if (url.startsWith('/v1/') && request.headers[GUARD_HEADER] !== 'true') {
      throw new ApiProblem(400, 'HEADER_MISSING', `send the header "${GUARD_HEADER}: true"`);
    }
  });
  app.addHook('preHandler', async ({ raw, body }) => {
    const { queries } = (body ?? {}) as { readonly queries?: unknown };
    if (Array.isArray(queries) && queries.length > 1) {
      callers.of(raw.socket).charge(queries.length - 1);
    }
  });
  app.addHook('preSerialization', async ({ raw }, reply, payload) => {
    if (reply.statusCode === 200) {
      callers.of(raw.socket).checkAgain();
    }
    return payload;
  });
  app.setErrorHandler((error, _request, reply) => sendProblem(reply, error, log));
}

/** What needs none: health, and what is not there. */
function scopeOf(route: string | undefined): Scope | undefined {
  return route === undefined
    ? undefined
    : (SCOPES.get(route) ?? (route.startsWith('/v1/') ? 'admin' : undefined));
}

function sendProblem(reply: FastifyReply, error: unknown, log: Pick<Logger, 'error'>): FastifyReply {
  const known = problemOf(error);
  if (known === undefined) {
    log.error({ err: error, url: reply.request.url }, 'API request failed');
  }
  if (error instanceof ApiProblem && error.retryAfterSeconds !== undefined) {
    reply.header('retry-after', error.retryAfterSeconds);
  }
  const body = known ?? problem(500, 'INTERNAL', 'the agent failed to answer; its log says why');
  return answerProblem(reply, body);
}

/** As bytes: to a text Fastify would add a charset parameter, which the media type does not have. */
function answerProblem(reply: FastifyReply, body: Problem): FastifyReply {
  return reply
    .code(body.status)
    .type(PROBLEM_TYPE)
    .send(Buffer.from(JSON.stringify(body)));
}

function identityRoutes(app: FastifyInstance, answers: Answers, views: Views, callers: Callers): void {
  app.get('/v1/resolve', async ({ query }, reply) =>
    answers.to(
      () => parseQuestion(query),
      () => goneSignal(reply),
    ),
  );
  app.post('/v1/resolve::batch', async (request, reply): Promise<BatchMessage> => {
    refuseKeys(request.query);
    const signal = goneSignal(reply);
    const answered = async (query: unknown, place: string): Promise<BatchItem> => {
      try {
        return {
          resolution: await answers.to(
            () => parseQuestion(query, place),
            () => signal,
          ),
        };
      } catch (error) {
        const known = problemOf(error);
        if (known === undefined) {
          throw error;
        }
        return { problem: known };
      }
    };
    const queries = batchQueries(request.body);
    const results = await Promise.all(queries.map((query, index) => answered(query, `queries[${index}].`)));
    return { results };
  });
  app.get('/v1/authorize', async ({ query, raw }, reply) => {
    const sender = await senderOf(answers, () => parseFlow(query));
    callers.of(raw.socket).checkAgain(); // an answer without a body is not serialized
    return reply.headers(senderHeaders(sender)).send();
  });
  app.get('/v1/workloads', async (request) => {
    refuseKeys(request.query);
    return views.workloads();
  });
  app.get<{ Params: { uid: string } }>('/v1/workloads/:uid', async (request) => {
    refuseKeys(request.query);
    return views.workload(request.params.uid as PodUid);
  });
  app.get('/v1/explain', async ({ query }) => views.explain(parseExplain(query)));
  app.get('/v1/services', async ({ query }) => views.services(parseApp(query)));
}

/** Aborts when the caller has gone before its answer. */
function goneSignal(reply: FastifyReply): AbortSignal {
  const gone = new AbortController();
  reply.raw.once('close', () => gone.abort());
  return gone.signal;
}

function watchRoute(app: FastifyInstance, streams: IdentityStreams): void {
  app.get('/v1/watch', { exposeHeadRoute: false }, (request, reply) => {
    const from = parseWatchFrom(request.query);
    if (streams.full) {
      throw new ApiProblem(429, 'RATE_LIMITED', 'as many others watch as are allowed to: try again later');
    }
    streams.follow(from, ndjson(reply));
  });
}

function flowRoutes(app: FastifyInstance, views: Views, watch: FlowWatch): void {
  app.get(
    '/v1/flows',
    async (request): Promise<FlowsMessage> => ({
      flows: await views.flows(parseLimit(request.query)),
    }),
  );
  app.get('/v1/flows/watch', (request, reply) => {
    refuseKeys(request.query);
    if (watch.full) {
      throw new ApiProblem(
        429,
        'RATE_LIMITED',
        'as many others follow the flows as are allowed to: try again later',
      );
    }
    watch.follow(ndjson(reply));
  });
}

function tellingRoute(app: FastifyInstance, telling: Telling): void {
  app.post('/v1/flows/told', async ({ query, body }) => {
    refuseKeys(query);
    return telling.take(body);
  });
}

function drainRoutes(app: FastifyInstance, drains: DrainsApi): void {
  app.get('/v1/drains', async ({ query }) => {
    refuseKeys(query);
    return drains.list();
  });
  app.post('/v1/drain', async ({ query, body }) => {
    refuseKeys(query);
    return drains.drain(body);
  });
  app.post('/v1/resume', async ({ query, body }) => {
    refuseKeys(query);
    return drains.resume(body);
  });
}

/** The stream of lines that the answer is from now on. */
function ndjson(reply: FastifyReply): Writable {
  reply.hijack();
  reply.raw.writeHead(200, { 'content-type': 'application/x-ndjson' });
  reply.raw.flushHeaders();
  return reply.raw;
}

function instanceRoutes(app: FastifyInstance, { upgrades, announcing }: HttpApiOptions, views: Views): void {
  app.get('/v1/instances', () => views.instances());
  app.post<{ Params: { name: string } }>('/v1/instances/:name/upgrade', async ({ params, body }) =>
    upgrades.start(params.name, body),
  );
  app.delete<{ Params: { name: string } }>('/v1/instances/:name/upgrade', async ({ params }) =>
    upgrades.abort(params.name),
  );
  app.post<{ Params: { name: string } }>('/v1/instances/:name/listeners', async ({ params, body }) => ({
    listeners: views.told(await announcing.byProcess(params.name, body)),
  }));
  app.delete<{ Params: { name: string } }>('/v1/instances/:name/listeners', async ({ params }) => ({
    listeners: views.told(await announcing.withdraw(params.name)),
  }));
}

function operationRoutes(
  app: FastifyInstance,
  { blockers, metrics, version, capacity }: HttpApiOptions,
  views: Views,
): void {
  let document: Promise<object> | undefined;
  app.get('/openapi.json', () => {
    document ??= documented(version);
    return document;
  });
  app.get('/v1/status', async (request) => {
    refuseKeys(request.query);
    return views.status();
  });
  app.get('/v1/capacity', async (request) => {
    refuseKeys(request.query);
    return capacity();
  });
  app.get('/livez', async () => ({ status: 'alive' }));
  app.get('/readyz', async (_request, reply) => {
    const waiting = blockers();
    if (waiting.length === 0) {
      return { status: 'ready' };
    }
    const body = { ...problem(503, 'NOT_READY', waiting.join('; ')), blockers: waiting };
    return answerProblem(reply, body);
  });
  app.get('/metrics', async (_request, reply) => reply.type(metrics.contentType).send(await metrics.text()));
}

/** Loaded when somebody asks for it, which hardly anybody does. */
async function documented(version: string): Promise<object> {
  const { openApiDocument } = await import('./openapi.js');
  return openApiDocument(version, GUARD_HEADER);
}
