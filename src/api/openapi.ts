/** The document at `/openapi.json`: OpenAPI 3.1, from the operations and the shapes of their answers. */

import { z } from 'zod';
import { type JsonSchema, OPERATIONS, type Operation, STATUS_OF_API_REASON } from './openapi-operations.js';
import { SHAPES, type ShapeName } from './openapi-shapes.js';
import { type ApiReason, PROBLEM_TYPE } from './problem.js';

type Json = Readonly<Record<string, unknown>>;

const GUARD = { $ref: '#/components/parameters/Guard' };

const RETRY_AFTER = {
  'Retry-After': { description: 'Seconds, where it is known.', schema: { type: 'integer', minimum: 0 } },
};

const ref = (name: ShapeName): JsonSchema => ({ $ref: `#/components/schemas/${name}` });

/** `guardHeader` is what every request under /v1/ bears. */
export function openApiDocument(version: string, guardHeader: string): Json {
  const paths: Record<string, Record<string, Json>> = {};
  for (const operation of OPERATIONS) {
    paths[operation.path] = { ...paths[operation.path], [operation.method]: describe(operation) };
  }
  return {
    openapi: '3.1.1',
    info: {
      title: 'NodeSentry',
      version,
      description: 'Served on a Unix socket, for the callers that `api.allow` names.',
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    servers: [{ url: 'http://localhost' }],
    paths,
    components: {
      parameters: {
        Guard: {
          name: guardHeader,
          in: 'header',
          required: true,
          description: 'A guard against request forgery: browsers cannot send it to another site unasked.',
          schema: { type: 'string', enum: ['true'] },
        },
      },
      schemas: schemas(),
    },
  };
}

function describe(operation: Operation): Json {
  const { path, id, summary, parameters = [], body } = operation;
  const isGuarded = path.startsWith('/v1/');
  const all = [...(isGuarded ? [GUARD] : []), ...parameters];
  return {
    operationId: id,
    summary,
    ...(all.length === 0 ? {} : { parameters: all }),
    ...(body === undefined
      ? {}
      : { requestBody: { required: true, content: { 'application/json': { schema: body } } } }),
    responses: {
      200: { description: 'The answer.', ...answerOf(operation) },
      ...refusals([
        ...operation.reasons,
        ...(isGuarded ? (['HEADER_MISSING'] as const) : []),
        'CALLER_NOT_ALLOWED',
        'RATE_LIMITED',
        'INTERNAL',
      ]),
    },
  };
}

function answerOf({ answer }: Operation): Json {
  if ('headers' in answer) {
    const header = (description: string) => ({ description, required: true, schema: { type: 'string' } });
    return {
      headers: Object.fromEntries(Object.entries(answer.headers).map(([name, what]) => [name, header(what)])),
    };
  }
  return { content: contentOf(answer) };
}

function contentOf(answer: Exclude<Operation['answer'], { readonly headers: unknown }>): Json {
  if ('json' in answer) {
    return { 'application/json': { schema: ref(answer.json) } };
  }
  if ('lines' in answer) {
    // OpenAPI 3.1 cannot say of what a sequence consists; 3.2 calls it itemSchema.
    return { 'application/x-ndjson': { schema: { type: 'string' }, 'x-itemSchema': ref(answer.lines) } };
  }
  return { [answer.type]: { schema: answer.schema } };
}

/** One response for each status, with the reasons that it may have. */
function refusals(reasons: Operation['reasons']): Json {
  const byStatus = new Map<number, ApiReason[]>();
  for (const given of reasons) {
    const [reason, status] = typeof given === 'string' ? [given, STATUS_OF_API_REASON[given]] : given;
    byStatus.set(status, [...(byStatus.get(status) ?? []), reason]);
  }
  return Object.fromEntries(
    [...byStatus].map(([status, among]) => {
      const narrowed = { properties: { status: { const: status }, reason: { enum: among } } };
      const schema = { allOf: [ref('Problem'), narrowed] };
      const headers = status === STATUS_OF_API_REASON.RATE_LIMITED ? { headers: RETRY_AFTER } : {};
      const content = { [PROBLEM_TYPE]: { schema } };
      return [status, { description: `${among.join(', ')}.`, ...headers, content }];
    }),
  );
}

/** Open to what later versions add. */
function schemas(): Json {
  const registry = z.registry<{ id: string }>();
  for (const [id, shape] of Object.entries(SHAPES)) {
    registry.add(shape, { id });
  }
  const all = z.toJSONSchema(registry, { io: 'input', uri: (id) => `#/components/schemas/${id}` });
  return Object.fromEntries(
    Object.entries(all.schemas).map(([name, { $schema: _, $id, ...schema }]) => [name, schema]),
  );
}
