/** `/openapi.json` says what is there: its routes are those of the server, and what they answer is what it says. */

import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js';
import { Pool } from 'undici';
import { afterEach, describe, expect, expectTypeOf, test } from 'vitest';
import type { z } from 'zod';
import type {
  BatchMessage,
  FlowMessage,
  FlowsMessage,
  IdentityLine,
  ListenersMessage,
  ServicesMessage,
  StatusMessage,
  ToldMessage,
  WatchLine,
  WorkloadMessage,
  WorkloadsMessage,
} from '../../src/api/messages.js';
import type { SHAPES } from '../../src/api/openapi-shapes.js';
import type { Problem } from '../../src/api/problem.js';
import type { PastResolution } from '../../src/identity/past.js';
import type { Party, PodResolution, Resolution } from '../../src/identity/resolve.js';
import type { Workload } from '../../src/identity/workload.js';
import {
  endpoint,
  type Fixture,
  type FixtureOptions,
  flowRecord,
  pod,
  SRC,
  startFixture,
  uid,
} from './api-fixture.js';

type Json = { readonly [key: string]: unknown };
/** Of what is walked here: whatever the document holds at that place. */
type Node = { readonly [key: string]: Node };

const opened: (() => Promise<unknown> | unknown)[] = [];

afterEach(async () => {
  for (const close of opened.splice(0).reverse()) {
    await close();
  }
});

interface Reply {
  readonly status: number;
  readonly type: string;
  readonly allow: unknown;
  readonly body: string;
}

interface Ask {
  readonly method?: 'GET' | 'POST' | 'DELETE' | 'PUT';
  readonly headers?: Record<string, string>;
  readonly body?: string;
  /** Of a stream, so many lines. */
  readonly lines?: number;
}

const GUARD = { 'nodesentry.io': 'true' };

async function start(options: FixtureOptions = {}) {
  const agent = await startFixture(options);
  opened.push(() => agent.close());
  const pool = new Pool('http://localhost', { socketPath: agent.api.path });
  opened.push(() => pool.destroy());
  const ask = async (
    path: string,
    { method = 'GET', headers = GUARD, body, lines }: Ask = {},
  ): Promise<Reply> => {
    const type = body === undefined ? {} : { 'content-type': 'application/json' };
    const response = await pool.request({
      path,
      method,
      headers: { ...type, ...headers },
      ...(body === undefined ? {} : { body }),
    });
    let text = '';
    for await (const chunk of response.body) {
      text += String(chunk);
      if (lines !== undefined && text.split('\n').length > lines) {
        break;
      }
    }
    const { 'content-type': contentType, allow } = response.headers;
    return {
      status: response.statusCode,
      type: String(contentType).split(';', 1)[0] ?? '',
      allow,
      body: text,
    };
  };
  const document = JSON.parse((await ask('/openapi.json', { headers: {} })).body) as Node;
  return { agent, ask, document };
}

/** The published schemas are open to what later versions add; here nothing may be added that they do not name. */
function strict(schema: unknown): unknown {
  if (Array.isArray(schema)) {
    return schema.map(strict);
  }
  if (typeof schema !== 'object' || schema === null) {
    return schema;
  }
  const entries = Object.entries(schema).map(([key, value]) => [key, strict(value)]);
  const isObject = 'properties' in schema && 'type' in schema && !('additionalProperties' in schema);
  return { ...Object.fromEntries(entries), ...(isObject ? { additionalProperties: false } : {}) };
}

class Judge {
  readonly #ajv: Ajv2020;
  readonly #document: Node;

  constructor(document: Node) {
    this.#document = document;
    this.#ajv = new Ajv2020({ strict: false, validateFormats: false });
    this.#ajv.addSchema({ $id: 'https://nodesentry.test/', ...(strict(document) as Json) });
  }

  /** What is wrong with the answer; undefined: it is as the document says. */
  errors(path: string, method: string, reply: Reply): unknown {
    const escaped = path.replaceAll('~', '~0').replaceAll('/', '~1');
    const content = this.#document.paths?.[path]?.[method]?.responses?.[reply.status]?.content?.[reply.type];
    if (content === undefined) {
      return `${method} ${path}: ${reply.status} with ${reply.type} is not described`;
    }
    const at = `#/paths/${escaped}/${method}/responses/${reply.status}/content`;
    const place = `${at}/${reply.type.replaceAll('/', '~1')}`;
    if (content['x-itemSchema'] !== undefined) {
      const validate = this.#validator(`${place}/x-itemSchema`);
      const lines = reply.body.split('\n').filter((line) => line !== '');
      return lines.map((line) => problems(validate, JSON.parse(line))).find((found) => found !== undefined);
    }
    const value = reply.type.endsWith('json') ? JSON.parse(reply.body) : reply.body;
    return problems(this.#validator(`${place}/schema`), value);
  }

  #validator(pointer: string): ValidateFunction {
    return this.#ajv.compile({ $ref: `https://nodesentry.test/${encodeURI(pointer)}` });
  }
}

function problems(validate: ValidateFunction, value: unknown): unknown {
  return validate(value) === true ? undefined : validate.errors;
}

/** Of the recorded flow. */
const TOLD = JSON.stringify({
  src: '10.66.0.3:41886',
  dst: '10.200.1.1:80',
  answers: [{ name: 'shop.example', ip: '10.200.1.1', ttlSeconds: 60 }],
});

test('is OpenAPI, and names every route that is there and no other', async () => {
  const { agent, document } = await start();
  expect(document.openapi).toBe('3.1.1');
  expect(document.info).toMatchObject({ version: '1.2.3' });
  const described = Object.entries(document.paths ?? {}).flatMap(([path, operations]) =>
    Object.keys(operations).map((method) => `${method.toUpperCase()} ${path}`),
  );
  const there = agent.api.routes
    .filter(({ method }) => method !== 'HEAD') // Fastify answers it wherever it answers GET
    .map(
      ({ method, url }) =>
        `${method} ${url.replace(/::|:(\w+)/g, (part, name) => (part === '::' ? ':' : `{${name}}`))}`,
    );
  expect(described.sort()).toEqual(there.sort());
  expect(there.length).toBeGreaterThan(10);
});

test('every reference in it leads to something, and every operation has an id of its own', async () => {
  const { document } = await start();
  const references = [...JSON.stringify(document).matchAll(/"\$ref":"#\/([^"]+)"/g)].map(
    ([, path = '']) => path,
  );
  for (const reference of references) {
    const found = reference.split('/').reduce<Node | undefined>((node, key) => node?.[key], document);
    expect([reference, typeof found]).toEqual([reference, 'object']);
  }
  expect(references.length).toBeGreaterThan(30);
  const ids = [...JSON.stringify(document).matchAll(/"operationId":"(\w+)"/g)].map(([, id]) => id);
  expect(new Set(ids).size).toBe(ids.length);
});

type Prepare = (agent: Fixture) => void;

const RESOLVE = '/v1/resolve?proto=tcp&dst=10.200.1.1:80&src=';

describe('what is answered is what the document says', () => {
  /** What the agent is made to know first, if anything; what is asked; of which path. */
  const CASES: [what: string, status: number, path: string, url: string, Ask?, Prepare?][] = [
    ['a flow', 200, '/v1/resolve', `${RESOLVE}10.66.0.3:41886`],
    ['a flow with both ends', 200, '/v1/resolve', `${RESOLVE}10.66.0.3:41886&minAssurance=IP_ONLY`],
    [
      'an address in the past',
      200,
      '/v1/resolve',
      '/v1/resolve?address=10.66.0.3&at=1700000000000&minAssurance=IP_ONLY',
    ],
    ['a flow in the past', 200, '/v1/resolve', `${RESOLVE}10.66.0.3:1&at=1700000000000&minAssurance=IP_ONLY`],
    ['a pod by its UID', 200, '/v1/resolve', '/v1/resolve?podUid=uid-web-0'],
    ['a pod by its address', 200, '/v1/resolve', '/v1/resolve?address=10.66.0.3&minAssurance=IP_ONLY'],
    ['a pod by its interface', 200, '/v1/resolve', '/v1/resolve?hostInterface=veth0'],
    ['a revision that does not come', 503, '/v1/resolve', '/v1/resolve?podUid=x&minEpoch=y&minRevision=1'],
    ['a malformed question', 400, '/v1/resolve', '/v1/resolve?proto=udp'],
    ['a question without the header', 400, '/v1/resolve', `${RESOLVE}10.66.0.3:1`, { headers: {} }],
    ['nobody', 404, '/v1/resolve', `${RESOLVE}10.9.9.9:1`],
    [
      'two',
      409,
      '/v1/resolve',
      `${RESOLVE}10.66.0.3:1`,
      {},
      (agent) => agent.store.replaceSource('static', [pod('a'), pod('b')]),
    ],
    ['weak evidence', 412, '/v1/resolve', `${RESOLVE}10.66.0.3:1`],
    [
      'not synced',
      503,
      '/v1/resolve',
      `${RESOLVE}10.9.9.9:1`,
      {},
      (agent) => void Object.assign(agent.state, { synced: false }),
    ],
    [
      'an error of ours',
      500,
      '/v1/resolve',
      `${RESOLVE}10.66.0.3:1`,
      {},
      ({ datapath }) => {
        datapath.lookupFlow = () => {
          throw new Error('broken');
        };
      },
    ],
    [
      'a batch',
      200,
      '/v1/resolve:batch',
      '/v1/resolve:batch',
      {
        method: 'POST',
        body: JSON.stringify({
          queries: [{ proto: 'tcp', src: '10.66.0.3:41886', dst: '10.200.1.1:80' }, 7],
        }),
      },
    ],
    ['a malformed batch', 400, '/v1/resolve:batch', '/v1/resolve:batch', { method: 'POST', body: '[' }],
    [
      'a large batch',
      413,
      '/v1/resolve:batch',
      '/v1/resolve:batch',
      { method: 'POST', body: 'x'.repeat(200_000) },
    ],
    [
      'a batch of another type',
      415,
      '/v1/resolve:batch',
      '/v1/resolve:batch',
      { method: 'POST', body: '{}', headers: { ...GUARD, 'content-type': 'text/csv' } },
    ],
    ['nobody to let pass', 403, '/v1/authorize', '/v1/authorize?src=10.66.0.3:1&dst=10.200.1.1:80'],
    ['a malformed flow to let pass', 400, '/v1/authorize', '/v1/authorize?src=10.66.0.3:1'],
    ['the workloads', 200, '/v1/workloads', '/v1/workloads'],
    [
      'the workloads, of which one was never enrolled',
      200,
      '/v1/workloads',
      '/v1/workloads',
      {},
      (agent) => agent.store.replaceSource('static', [pod('x')]),
    ],
    ['a workload', 200, '/v1/workloads/{uid}', '/v1/workloads/uid-web-0'],
    ['no workload', 404, '/v1/workloads/{uid}', '/v1/workloads/nobody'],
    ['a UID that is none', 414, '/v1/workloads/{uid}', `/v1/workloads/${'x'.repeat(300)}`],
    ['the drains, of which there is none', 200, '/v1/drains', '/v1/drains'],
    [
      'a drain that names nothing',
      400,
      '/v1/drain',
      '/v1/drain',
      { method: 'POST', body: JSON.stringify({ to: 'default' }) },
    ],
    [
      'a drain of nobody',
      404,
      '/v1/drain',
      '/v1/drain',
      { method: 'POST', body: JSON.stringify({ pod: 'nobody' }) },
    ],
    [
      'a drain to no instance',
      404,
      '/v1/drain',
      '/v1/drain',
      { method: 'POST', body: JSON.stringify({ pod: 'web-0', to: 'none' }) },
    ],
    ['resuming', 200, '/v1/resume', '/v1/resume', { method: 'POST', body: JSON.stringify({ all: true }) }],
    ['the capacity', 200, '/v1/capacity', '/v1/capacity'],
    ['the instances', 200, '/v1/instances', '/v1/instances'],
    [
      'the upgrade of an instance',
      200,
      '/v1/instances/{name}/upgrade',
      '/v1/instances/default/upgrade',
      { method: 'POST', body: '{"outbound": "127.0.0.1:16101"}' },
    ],
    [
      'an upgrade that is not under way',
      409,
      '/v1/instances/{name}/upgrade',
      '/v1/instances/default/upgrade',
      { method: 'DELETE' },
    ],
    [
      'the listeners of a process',
      200,
      '/v1/instances/{name}/listeners',
      '/v1/instances/default/listeners',
      { method: 'POST', body: '{"pid": 1, "outbound": "127.0.0.1:16001"}' },
    ],
    [
      'listeners that are withdrawn',
      200,
      '/v1/instances/{name}/listeners',
      '/v1/instances/default/listeners',
      { method: 'DELETE' },
    ],
    ['what a proxy tells of a flow', 200, '/v1/flows/told', '/v1/flows/told', { method: 'POST', body: TOLD }],
    [
      'what it tells of none',
      404,
      '/v1/flows/told',
      '/v1/flows/told',
      { method: 'POST', body: TOLD.replace('10.66.0.3', '10.66.0.4') },
    ],
    ['what it tells of nothing', 400, '/v1/flows/told', '/v1/flows/told', { method: 'POST', body: '{}' }],
    [
      'a flow that it has told of',
      200,
      '/v1/flows',
      '/v1/flows',
      {},
      ({ told, datapath }) => {
        told.lookedUp(uid('uid-web-0'), [{ name: 'shop.example', ip: '10.200.1.1', ttlSeconds: 1e9 }]);
        const explicit = flowRecord(SRC, { ip: '10.199.0.1', port: 3_128 }, { mode: 'EXPLICIT' });
        datapath.flows.push(explicit);
        told.asks(explicit, 'shop.example:443');
      },
    ],
    ['what would become of a flow', 200, '/v1/explain', '/v1/explain?pod=web-0&dst=10.0.0.1:80'],
    ['that of one that comes', 200, '/v1/explain', '/v1/explain?pod=default/web-0&src=%5Bfd00::1%5D:443'],
    ['that of two at once', 400, '/v1/explain', '/v1/explain?pod=web-0&src=10.0.0.1:1&dst=10.0.0.1:80'],
    ['that of none', 400, '/v1/explain', '/v1/explain?pod=web-0'],
    ['that of nobody', 404, '/v1/explain', '/v1/explain?pod=nobody&dst=10.0.0.1:80'],
    [
      'the services',
      200,
      '/v1/services',
      '/v1/services',
      {},
      ({ datapath }) => {
        const held = { instance: 'default', family: 4, sockets: { all: 1, transparent: 1 } } as const;
        datapath.listening = [
          {
            ...held,
            address: '10.0.0.5:15006',
            direction: 'inbound',
            adopted: true,
            pid: 7,
            process: 'envoy',
          },
        ];
        datapath.statuses.splice(0, 1, endpoint(uid('uid-web-0'), { inbound: true }));
      },
    ],
    ['the services of no app', 400, '/v1/services', '/v1/services?app='],
    ['the watch', 200, '/v1/watch', '/v1/watch', { lines: 3 }],
    ['a malformed watch', 400, '/v1/watch', '/v1/watch?since=x'],
    [
      'flows',
      200,
      '/v1/flows',
      '/v1/flows?limit=10',
      {},
      ({ datapath }) =>
        void datapath.flows.push(
          flowRecord(SRC, { ip: 'fd00::1', port: 443 }, { endpointId: 99, direction: 'INGRESS' }),
        ),
    ],
    ['too many flows', 400, '/v1/flows', '/v1/flows?limit=0'],
    ['the status', 200, '/v1/status', '/v1/status'],
    [
      'the status of a node with everything',
      200,
      '/v1/status',
      '/v1/status',
      {},
      ({ datapath }) => {
        datapath.late = 3;
        datapath.off = [{ family: 6, reason: 'no IPv6', everywhere: true, unknown: false }];
        const sockets = { all: 2, transparent: 1 };
        const held = { instance: 'default', family: 4, address: '127.0.0.1:15001', sockets } as const;
        datapath.listening = [
          { ...held, direction: 'outbound', adopted: true, pid: 7, process: 'envoy' },
          { ...held, direction: 'inbound', adopted: false, refused: 'held by uid 65534' },
        ];
        datapath.packets = [
          { endpointId: 1, podUid: undefined, direction: 'EGRESS', packets: { FLOW_STARTED: 2 } },
        ];
      },
    ],
    ['alive', 200, '/livez', '/livez', { headers: {} }],
    ['ready', 200, '/readyz', '/readyz', { headers: {} }],
    [
      'not ready',
      503,
      '/readyz',
      '/readyz',
      { headers: {} },
      (agent) => void agent.state.blockers.push('no source'),
    ],
    ['metrics', 200, '/metrics', '/metrics', { headers: {} }],
    ['the document', 200, '/openapi.json', '/openapi.json', { headers: {} }],
  ];

  test.each(CASES)('%s (%i)', async (...given) => {
    const [, status, path, url, ask = {}, prepare] = given;
    const agent = await start();
    prepare?.(agent.agent);
    const reply = await agent.ask(url, ask);
    expect(reply.status).toBe(status);
    const method = (ask.method ?? 'GET').toLowerCase();
    expect(new Judge(agent.document).errors(path, method, reply)).toBeUndefined();
  });

  test('flows as they happen', async () => {
    const { agent, ask, document } = await start();
    const asked = ask('/v1/flows/watch', { lines: 1 });
    await expect.poll(() => agent.datapath.subscribers.size).toBe(1);
    agent.datapath.emit({ ...flowRecord(SRC, { ip: '10.0.0.1', port: 1 }), verdict: 'NO_LISTENER_RESET' });
    const reply = await asked;
    expect(reply.body).toContain('NO_LISTENER_RESET');
    expect(new Judge(document).errors('/v1/flows/watch', 'get', reply)).toBeUndefined();
  });

  test('who may not ask, and more who watch than may', async () => {
    const stranger = await start({ credentials: () => ({ pid: 7, uid: 1, gid: 1 }) });
    const refused = await stranger.ask('/v1/status');
    const { ask, document } = await start({ watch: { maxWatchers: 0 } });
    const reply = await ask('/v1/watch');
    expect([reply.status, new Judge(document).errors('/v1/watch', 'get', reply)]).toEqual([429, undefined]);
    expect([refused.status, new Judge(document).errors('/v1/status', 'get', refused)]).toEqual([
      403,
      undefined,
    ]);
  });

  test('a judge that is shown something else says so', async () => {
    const { ask, document } = await start();
    const judge = new Judge(document);
    const reply = await ask('/v1/status');
    const changed = (change: object) => ({
      ...reply,
      body: JSON.stringify({ ...JSON.parse(reply.body), ...change }),
    });
    expect(judge.errors('/v1/status', 'get', changed({}))).toBeUndefined();
    expect(judge.errors('/v1/status', 'get', changed({ ready: 'yes' }))).toBeDefined();
    expect(judge.errors('/v1/status', 'get', changed({ colour: 'red' }))).toBeDefined();
    expect(judge.errors('/v1/status', 'get', { ...reply, status: 418 })).toBeDefined();
  });
});

test('another method is refused with those that there are', async () => {
  const { ask } = await start();
  for (const [method, path, allow] of [
    ['POST', '/v1/workloads/x', 'GET, HEAD'],
    ['DELETE', '/v1/resolve:batch', 'POST'],
    ['PUT', '/openapi.json?x=1', 'GET, HEAD'],
  ] as const) {
    const reply = await ask(path, { method });
    expect([reply.status, reply.type, reply.allow]).toEqual([405, 'application/problem+json', allow]);
  }
  // Whatever else is wrong with it.
  const more = { headers: { 'content-type': 'text/csv' }, body: 'x' };
  expect(await ask('/v1/status', { method: 'PUT', ...more })).toMatchObject({ status: 405 });
  expect(await ask('/v1/nothing', { method: 'PUT' })).toMatchObject({ status: 404, allow: undefined });
  expect(await ask('/openapixjson')).toMatchObject({ status: 404 });
});

type Mutable<T> = T extends readonly (infer U)[]
  ? Mutable<U>[]
  : T extends object
    ? { -readonly [K in keyof T]: Mutable<T[K]> }
    : T;
type Shape<Name extends keyof typeof SHAPES> = z.infer<(typeof SHAPES)[Name]>;

test('the shapes are the types that the answers are made as', () => {
  expectTypeOf<Shape<'Workload'>>().toEqualTypeOf<Mutable<Workload>>();
  expectTypeOf<Shape<'WorkloadReport'>>().toEqualTypeOf<Mutable<WorkloadMessage>>();
  expectTypeOf<Shape<'Workloads'>>().toEqualTypeOf<Mutable<WorkloadsMessage>>();
  expectTypeOf<Shape<'Services'>>().toEqualTypeOf<Mutable<ServicesMessage>>();
  expectTypeOf<Shape<'Party'>>().toEqualTypeOf<Mutable<Party>>();
  expectTypeOf<Shape<'Resolution'>>().toEqualTypeOf<Mutable<Resolution>>();
  expectTypeOf<Shape<'PastResolution'>>().toEqualTypeOf<Mutable<PastResolution>>();
  expectTypeOf<Shape<'PodResolution'>>().toEqualTypeOf<Mutable<PodResolution>>();
  expectTypeOf<Shape<'BatchAnswer'>>().toEqualTypeOf<Mutable<BatchMessage>>();
  expectTypeOf<Shape<'Problem'>>().toEqualTypeOf<Mutable<Problem>>();
  expectTypeOf<Shape<'Flow'>>().toEqualTypeOf<Mutable<FlowMessage>>();
  expectTypeOf<Shape<'Flows'>>().toEqualTypeOf<Mutable<FlowsMessage>>();
  expectTypeOf<Shape<'FlowLine'>>().toEqualTypeOf<Mutable<WatchLine>>();
  expectTypeOf<Shape<'IdentityLine'>>().toEqualTypeOf<Mutable<IdentityLine>>();
  expectTypeOf<Shape<'Told'>>().toEqualTypeOf<Mutable<ToldMessage>>();
  expectTypeOf<Shape<'Listeners'>>().toEqualTypeOf<Mutable<ListenersMessage>>();
  expectTypeOf<Shape<'Status'>>().toEqualTypeOf<Mutable<StatusMessage>>();
});
