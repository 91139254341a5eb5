/** What can be asked over HTTP: each route of http.ts with its parameters, its answer and the reasons why it has none. */

import { STATUS_OF_REASON } from '../identity/errors.js';
import { ASSURANCES } from '../identity/resolve.js';
import { STATUS_OF_INSTANCE_CODE } from '../instances/errors.js';
import { FLOW_PROTOCOLS } from '../net/protocol.js';
import { MAX_UID } from './checks.js';
import { MAX_DEADLINE_SECONDS } from './drains.js';
import type { ShapeName } from './openapi-shapes.js';
import type { ApiReason } from './problem.js';
import { MAX_APP, MAX_BATCH, MAX_FLOWS } from './query.js';
import { SENDER_HEADERS } from './sender.js';
import { MAX_ANSWERS, MAX_DESTINATION, MAX_TTL, NAME } from './told.js';

export type JsonSchema = Readonly<Record<string, unknown>>;

export interface Parameter {
  readonly name: string;
  readonly in: 'query' | 'path';
  readonly required?: true;
  readonly description?: string;
  readonly schema: JsonSchema;
}

export interface Operation {
  readonly method: 'get' | 'post' | 'delete';
  /** As OpenAPI writes it. */
  readonly path: string;
  readonly id: string;
  readonly summary: string;
  readonly parameters?: readonly Parameter[];
  readonly body?: JsonSchema;
  readonly answer:
    | { readonly json: ShapeName }
    /** Names and what they say; there is no body. */
    | { readonly headers: Readonly<Record<string, string>> }
    /** NDJSON that goes on until one side ends it. */
    | { readonly lines: ShapeName }
    | { readonly type: string; readonly schema: JsonSchema };
  readonly reasons: readonly (ApiReason | readonly [ApiReason, number])[];
}

/** HTTP statuses of the reasons that are the API's own. */
export const STATUS_OF_API_REASON: Readonly<Record<ApiReason, number>> = {
  ...STATUS_OF_REASON,
  ...STATUS_OF_INSTANCE_CODE,
  HEADER_MISSING: 400,
  NOT_FOUND: 404,
  RATE_LIMITED: 429,
  INTERNAL: 500,
  NOT_READY: 503,
};

const PORT = ':[1-9]\\d{0,4}';
const IPV4 = '\\d{1,3}(?:\\.\\d{1,3}){3}';
const IPV6 = '[0-9A-Fa-f:.]{2,45}';

const SOCKET_ADDRESS = {
  type: 'string',
  maxLength: 64,
  pattern: `^(?:${IPV4}|\\[${IPV6}\\])${PORT}$`,
  description: 'An address and port such as 10.66.0.3:41886 or [fd00::3]:41886.',
};
const PROTO = { type: 'string', enum: FLOW_PROTOCOLS };
const ASSURANCE = { type: 'string', enum: ASSURANCES };

const NO_ANSWER = [
  'WORKLOAD_NOT_FOUND',
  'WORKLOAD_UNCONFIRMED',
  'AMBIGUOUS',
  'ASSURANCE_TOO_LOW',
  'NOT_SYNCED',
] as const satisfies readonly ApiReason[];

const query = (name: string, schema: JsonSchema, description?: string): Parameter => ({
  name,
  in: 'query',
  ...(description === undefined ? {} : { description }),
  schema,
});

const ADDRESS = {
  type: 'string',
  maxLength: 64,
  pattern: `^(?:${IPV4}(?::\\d{1,5})?|${IPV6}|\\[${IPV6}\\]:\\d{1,5})$`,
};
const TIME = { type: 'string', maxLength: 64, anyOf: [{ pattern: '^\\d{1,15}$' }, { format: 'date-time' }] };
const APP = { type: 'string', minLength: 1, maxLength: MAX_APP };
const EPOCH = { type: 'string', pattern: '^[A-Za-z0-9_-]{1,64}$' };
const REVISION = { type: 'integer', minimum: 0, maximum: 999_999_999_999_999 };

const INSTANCE: Parameter = {
  name: 'name',
  in: 'path',
  required: true,
  description: 'Of an instance of the configuration.',
  schema: { type: 'string', minLength: 1, maxLength: 253 },
};
const LISTENERS = {
  description: 'An address and a port such as 127.0.0.1:16101, or a list of one per family.',
};

/** What a question consists of: one key, and what of its answer is asked besides. */
const QUESTION: readonly (readonly [name: string, schema: JsonSchema, description: string])[] = [
  ['proto', PROTO, 'With src and dst; may be left out with at.'],
  ['src', SOCKET_ADDRESS, 'The peer of the proxy’s connection.'],
  ['dst', SOCKET_ADDRESS, 'Its local address.'],
  ['podUid', { type: 'string', minLength: 1, maxLength: 253 }, 'A key by itself.'],
  ['address', ADDRESS, 'A key by itself; a port says nothing here.'],
  ['hostInterface', { type: 'string', pattern: '^[^\\s/:]{1,15}$' }, 'A key by itself.'],
  [
    'netnsCookie',
    { type: 'string', pattern: '^[1-9]\\d{0,18}$' },
    'A key by itself: SO_NETNS_COOKIE of a socket of the pod.',
  ],
  [
    'socketCookie',
    { type: 'string', pattern: '^[1-9]\\d{0,18}$' },
    'A key by itself: SO_COOKIE of a proxy’s accepted socket, for its flow.',
  ],
  ['pid', { type: 'integer', minimum: 1, maximum: 4_294_967_295 }, 'With startTime.'],
  ['startTime', { type: 'string', pattern: '^[1-9]\\d{0,18}$' }, 'Field 22 of /proc/<pid>/stat.'],
  ['minAssurance', ASSURANCE, 'Of a flow, an address or a socket. Default DATAPATH_RECORDED.'],
  ['at', TIME, 'Who had the address, or whose flow it was, then: milliseconds of Unix time, or RFC 3339.'],
  ['minEpoch', EPOCH, 'With minRevision: the answer rests on that revision or a later one.'],
  ['minRevision', REVISION, 'Of an earlier answer, or a line of the watch.'],
  ['waitMs', { type: 'integer', minimum: 0, maximum: 5_000, default: 0 }, 'For that revision at most.'],
];

const SCOPE_BODY = {
  type: 'object',
  minProperties: 1,
  additionalProperties: false,
  properties: {
    pod: { type: 'string', minLength: 1, maxLength: 253, description: 'Name, namespace/name or UID.' },
    app: APP,
    all: { type: 'boolean', const: true, description: 'Every pod of the node.' },
  },
  oneOf: [{ required: ['pod'] }, { required: ['app'] }, { required: ['all'] }],
} as const;
const SCOPE_REASONS = [
  'KEY_INVALID',
  ['KEY_INVALID', 413],
  ['KEY_INVALID', 415],
  'WORKLOAD_NOT_FOUND',
  'AMBIGUOUS',
  'NOT_SYNCED',
] as const satisfies Operation['reasons'];

export const OPERATIONS: readonly Operation[] = [
  {
    method: 'get',
    path: '/v1/resolve',
    id: 'resolve',
    summary:
      'Whose flow it is, or which pod it is: by one key, which is a flow (proto, src and dst), podUid, address, hostInterface, netnsCookie, socketCookie, or pid and startTime.',
    parameters: QUESTION.map(([name, schema, description]) => query(name, schema, description)),
    answer: { json: 'ResolveAnswer' },
    reasons: ['KEY_INVALID', ...NO_ANSWER],
  },
  {
    method: 'post',
    path: '/v1/resolve:batch',
    id: 'resolveBatch',
    summary: 'Whose flows they are: each is answered for itself, in their order.',
    body: {
      type: 'object',
      required: ['queries'],
      additionalProperties: false,
      properties: {
        queries: {
          type: 'array',
          maxItems: MAX_BATCH,
          items: {
            type: 'object',
            additionalProperties: false,
            properties: Object.fromEntries(QUESTION.map(([name, schema]) => [name, schema])),
          },
        },
      },
    },
    answer: { json: 'BatchAnswer' },
    reasons: ['KEY_INVALID', ['KEY_INVALID', 413], ['KEY_INVALID', 415]],
  },
  {
    method: 'get',
    path: '/v1/authorize',
    id: 'authorize',
    summary:
      'Who sends this flow, as headers for nginx’s auth_request and the like; 403 where nobody is named.',
    parameters: [
      query('proto', PROTO, 'May be left out.'),
      { ...query('src', SOCKET_ADDRESS, 'The peer of the proxy’s connection.'), required: true },
      { ...query('dst', SOCKET_ADDRESS, 'Its local address.'), required: true },
    ],
    answer: { headers: SENDER_HEADERS },
    reasons: [
      'KEY_INVALID',
      ['WORKLOAD_NOT_FOUND', 403],
      ['WORKLOAD_UNCONFIRMED', 403],
      ['AMBIGUOUS', 403],
      ['ASSURANCE_TOO_LOW', 403],
      'NOT_SYNCED',
      'RATE_LIMITED',
    ],
  },
  {
    method: 'get',
    path: '/v1/workloads',
    id: 'listWorkloads',
    summary: 'The pods of this node, each with how far its interception has come.',
    answer: { json: 'Workloads' },
    reasons: ['KEY_INVALID'],
  },
  {
    method: 'get',
    path: '/v1/workloads/{uid}',
    id: 'getWorkload',
    summary: 'A pod by its UID, also for a while after it went.',
    parameters: [
      { name: 'uid', in: 'path', required: true, schema: { type: 'string', minLength: 1, maxLength: 253 } },
    ],
    answer: { json: 'WorkloadReport' },
    reasons: ['KEY_INVALID', ['KEY_INVALID', 414], 'WORKLOAD_NOT_FOUND', 'NOT_SYNCED'],
  },
  {
    method: 'get',
    path: '/v1/explain',
    id: 'explain',
    summary: 'What would become of a new flow of a pod, and by which rule.',
    parameters: [
      {
        ...query(
          'pod',
          { type: 'string', minLength: 1, maxLength: MAX_UID },
          'A UID, namespace/name, or a name that one pod alone has.',
        ),
        required: true,
      },
      query('dst', SOCKET_ADDRESS, 'What the pod dials. Exactly one of this and src.'),
      query('src', SOCKET_ADDRESS, 'Who dials the pod, and the port of the pod that is dialled.'),
      query('proto', PROTO, 'May be left out: tcp.'),
    ],
    answer: { json: 'Explanation' },
    reasons: ['KEY_INVALID', 'WORKLOAD_NOT_FOUND', 'AMBIGUOUS', 'NOT_SYNCED'],
  },
  {
    method: 'get',
    path: '/v1/services',
    id: 'listServices',
    summary: 'The apps of this node, for a registry that publishes the node in the place of each pod.',
    parameters: [query('app', APP, 'Of this app alone.')],
    answer: { json: 'Services' },
    reasons: ['KEY_INVALID'],
  },
  {
    method: 'get',
    path: '/v1/instances',
    id: 'listInstances',
    summary: 'The proxy instances of this node, as configured and as they are.',
    answer: { json: 'Instances' },
    reasons: [],
  },
  {
    method: 'post',
    path: '/v1/instances/{name}/upgrade',
    id: 'upgradeInstance',
    summary: 'A new proxy beside the old one: tried, given a share of new flows if asked, then all of them.',
    parameters: [INSTANCE],
    body: {
      type: 'object',
      additionalProperties: false,
      properties: {
        outbound: LISTENERS,
        inbound: LISTENERS,
        owner: { type: 'object', minProperties: 1, description: 'Who may hold them; default as it is.' },
        canary: { type: 'string', description: 'A share of new flows, such as 10%.' },
        checkSeconds: { type: 'number', minimum: 0, maximum: 600, default: 10 },
        observeSeconds: { type: 'number', minimum: 0, maximum: 86_400, default: 30 },
        deadlineSeconds: { type: 'number', minimum: 0, maximum: 86_400, default: 600 },
        stop: { type: 'boolean', default: true, description: 'Whether the old one gets SIGTERM at the end.' },
      },
    },
    answer: { json: 'InstanceUpgrade' },
    reasons: [
      'KEY_INVALID',
      ['KEY_INVALID', 413],
      ['KEY_INVALID', 415],
      ['KEY_INVALID', 414],
      'INSTANCE_NOT_FOUND',
      'INSTANCE_BUSY',
    ],
  },
  {
    method: 'delete',
    path: '/v1/instances/{name}/upgrade',
    id: 'abortUpgrade',
    summary: 'Calls an upgrade off; one that drains already does not wait for the old one any longer.',
    parameters: [INSTANCE],
    answer: { json: 'InstanceUpgrade' },
    reasons: [['KEY_INVALID', 414], 'INSTANCE_NOT_FOUND', 'INSTANCE_BUSY'],
  },
  {
    method: 'post',
    path: '/v1/instances/{name}/listeners',
    id: 'adoptListeners',
    summary:
      'What a process has open at these addresses takes the place of what is configured, while it listens.',
    parameters: [INSTANCE],
    body: {
      type: 'object',
      additionalProperties: false,
      required: ['pid'],
      properties: {
        pid: { type: 'integer', minimum: 1, maximum: 0x3fffff },
        outbound: LISTENERS,
        inbound: LISTENERS,
        replace: {
          type: 'boolean',
          default: false,
          description: 'Whether what another process has announced makes room.',
        },
      },
    },
    answer: { json: 'Listeners' },
    reasons: [
      ['KEY_INVALID', 414],
      'KEY_INVALID',
      ['KEY_INVALID', 413],
      ['KEY_INVALID', 415],
      'INSTANCE_NOT_FOUND',
      'PROCESS_NOT_FOUND',
      'NOT_LISTENING',
      'NOT_OWNER',
      'LISTENER_TAKEN',
      'NOT_ADOPTED',
    ],
  },
  {
    method: 'delete',
    path: '/v1/instances/{name}/listeners',
    id: 'withdrawListeners',
    summary: 'What was announced goes; the configured addresses are what is adopted again.',
    parameters: [INSTANCE],
    answer: { json: 'Listeners' },
    reasons: [['KEY_INVALID', 414], 'INSTANCE_NOT_FOUND'],
  },
  {
    method: 'get',
    path: '/v1/drains',
    id: 'listDrains',
    summary: 'Which pods are drained, and what each has open still.',
    answer: { json: 'Drains' },
    reasons: ['KEY_INVALID'],
  },
  {
    method: 'post',
    path: '/v1/drain',
    id: 'drain',
    summary:
      'New flows of a pod, of an app’s pods or of all go past the proxy, or to another instance; what is open goes on until the deadline. Answers when that holds.',
    body: {
      ...SCOPE_BODY,
      properties: {
        ...SCOPE_BODY.properties,
        to: { type: 'string', minLength: 1, description: 'The name of an instance.' },
        deadlineSeconds: {
          type: 'integer',
          minimum: 0,
          maximum: MAX_DEADLINE_SECONDS,
          description: 'After which what is open still is ended. Default: it may take as long as it wants.',
        },
      },
    },
    answer: { json: 'Drain' },
    reasons: [...SCOPE_REASONS, 'INSTANCE_NOT_FOUND'],
  },
  {
    method: 'post',
    path: '/v1/resume',
    id: 'resume',
    summary: 'Ends the drain of exactly this pod or app; of all, every drain.',
    body: SCOPE_BODY,
    answer: { json: 'Resumed' },
    reasons: SCOPE_REASONS,
  },
  {
    method: 'get',
    path: '/v1/watch',
    id: 'watchIdentities',
    summary: 'The live pods and what changes of them, for callers that keep a copy.',
    parameters: [
      query('epoch', EPOCH, 'Of the line that was read last.'),
      query('since', REVISION, 'Its revision.'),
    ],
    answer: { lines: 'IdentityLine' },
    reasons: ['KEY_INVALID'],
  },
  {
    method: 'get',
    path: '/v1/flows',
    id: 'listFlows',
    summary: 'The flows that are recorded, the newest first.',
    parameters: [query('limit', { type: 'integer', minimum: 1, maximum: MAX_FLOWS, default: 100 })],
    answer: { json: 'Flows' },
    reasons: ['KEY_INVALID'],
  },
  {
    method: 'post',
    path: '/v1/flows/told',
    id: 'tellOfFlow',
    summary:
      'What a proxy tells of a flow that it has: names that the pod has looked up, or where an EXPLICIT flow was asked to go.',
    body: {
      type: 'object',
      additionalProperties: false,
      required: ['src', 'dst'],
      anyOf: [{ required: ['destination'] }, { required: ['answers'] }],
      properties: {
        proto: { ...PROTO, default: 'tcp' },
        src: SOCKET_ADDRESS,
        dst: SOCKET_ADDRESS,
        destination: {
          type: 'string',
          maxLength: MAX_DESTINATION,
          description: 'A name or an address, and a port, such as shop.example:443.',
        },
        answers: {
          type: 'array',
          maxItems: MAX_ANSWERS,
          items: {
            type: 'object',
            additionalProperties: false,
            required: ['name', 'ip', 'ttlSeconds'],
            properties: {
              name: { type: 'string', pattern: `^${NAME}$` },
              ip: { type: 'string', maxLength: 64 },
              ttlSeconds: { type: 'integer', minimum: 0, maximum: MAX_TTL },
            },
          },
        },
      },
    },
    answer: { json: 'Told' },
    reasons: ['KEY_INVALID', ['KEY_INVALID', 413], ['KEY_INVALID', 415], 'WORKLOAD_NOT_FOUND'],
  },
  {
    method: 'get',
    path: '/v1/flows/watch',
    id: 'watchFlows',
    summary: 'Flows as they start, and first packets that are refused.',
    answer: { lines: 'FlowLine' },
    reasons: ['KEY_INVALID'],
  },
  {
    method: 'get',
    path: '/v1/status',
    id: 'getStatus',
    summary: 'The agent: sources, listeners, endpoints, packets.',
    answer: { json: 'Status' },
    reasons: ['KEY_INVALID'],
  },
  {
    method: 'get',
    path: '/v1/capacity',
    id: 'getCapacity',
    summary: 'What the pods say that the proxy of this node needs, and what its container has.',
    answer: { json: 'Capacity' },
    reasons: ['KEY_INVALID'],
  },
  {
    method: 'get',
    path: '/livez',
    id: 'live',
    summary: 'Whether the agent answers at all.',
    answer: { json: 'Alive' },
    reasons: [],
  },
  {
    method: 'get',
    path: '/readyz',
    id: 'ready',
    summary: 'Whether every source has synced and a whole round after that has ended.',
    answer: { json: 'Ready' },
    reasons: ['NOT_READY'],
  },
  {
    method: 'get',
    path: '/metrics',
    id: 'metrics',
    summary: 'Metrics in the text format of Prometheus.',
    answer: { type: 'text/plain', schema: { type: 'string' } },
    reasons: [],
  },
  {
    method: 'get',
    path: '/openapi.json',
    id: 'openapi',
    summary: 'This document.',
    answer: { type: 'application/json', schema: { type: 'object', required: ['openapi', 'info', 'paths'] } },
    reasons: [],
  },
];
