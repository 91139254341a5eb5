/**
 * What anybody may send to the sockets: no crash, no hang, no answer that blames the agent (500, INTERNAL). By fast-check for
 * what is parsed, by spoiled bytes for what is framed. At full size a million cases.
 */

import { connect } from 'node:net';
import { credentials, Client as GrpcClient, type ServiceError, status } from '@grpc/grpc-js';
import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { batchQueries, parseLimit, parseWatchFrom } from '../../src/api/query.js';
import { parseQuestion } from '../../src/api/question.js';
import { IdentityError } from '../../src/identity/errors.js';
import { sized } from '../lab/size.js';
import { startFixture } from './api-fixture.js';
import { afterwards, ask, closeAll, FLOW, identityClient, start as startGrpc } from './grpc-fixture.js';

/** By each of three parsers; with the others, over a million. */
const PARSED = sized(4_000, 300_000);
const HTTP_REQUESTS = sized(1_000, 60_000);
const GRPC_CONNECTIONS = sized(200, 8_000);
const GRPC_MESSAGES = sized(1_000, 60_000);
const LIMIT_MS = sized(60_000, 1_800_000);

afterEach(closeAll);

const NAMES = [
  'proto',
  'src',
  'dst',
  'podUid',
  'address',
  'socketCookie',
  'netnsCookie',
  'hostInterface',
  'pid',
  'startTime',
  'minAssurance',
  'at',
  'minEpoch',
  'minRevision',
  'waitMs',
  'epoch',
  'since',
  'limit',
] as const;

/** Mostly almost right. */
const value = fc.oneof(
  fc.constantFrom(
    'tcp',
    '10.66.0.3:41886',
    '[fd00::3]:80',
    '10.66.0.3',
    'fd00::3',
    'IP_ONLY',
    'veth0',
    '0',
    '12',
    '-1',
  ),
  fc.ipV4().map((ip) => `${ip}:80`),
  fc.ipV6().map((ip) => `[${ip}]:80`),
  fc.date({ noInvalidDate: true }).map((date) => date.toISOString()),
  fc.bigInt().map(String),
  fc.string({ unit: 'binary', maxLength: 300 }),
  fc.anything({ maxDepth: 2 }),
);
const query = fc.dictionary(fc.oneof(fc.constantFrom(...NAMES), fc.string({ maxLength: 12 })), value, {
  maxKeys: 6,
});

describe('what is parsed is taken, or refused by an IdentityError that names it', () => {
  const parsers: readonly (readonly [string, (given: unknown) => unknown])[] = [
    ['a question', (given) => parseQuestion(given)],
    ['where a watch begins', (given) => parseWatchFrom(given)],
    ['a limit', (given) => parseLimit(given)],
  ];
  test.each(parsers)(
    '%s',
    (_what, parse) => {
      fc.assert(
        fc.property(
          fc.oneof({ weight: 9, arbitrary: query }, { weight: 1, arbitrary: fc.anything() }),
          (given) => {
            try {
              parse(given);
            } catch (error) {
              if (!(error instanceof IdentityError)) {
                throw error;
              }
              expect(error.message.length).toBeLessThan(2_000);
            }
          },
        ),
        { numRuns: PARSED },
      );
    },
    LIMIT_MS,
  );

  test(
    'a batch',
    () => {
      fc.assert(
        fc.property(
          fc.oneof(fc.record({ queries: fc.array(query, { maxLength: 4 }) }), fc.anything()),
          (given) => {
            try {
              batchQueries(given);
            } catch (error) {
              if (!(error instanceof IdentityError)) {
                throw error;
              }
            }
          },
        ),
        { numRuns: PARSED / 10 },
      );
    },
    LIMIT_MS,
  );
});

/** The same in every run. */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** Some bytes are others, some are missing, some come twice. */
function spoiled(bytes: Buffer, upTo: (below: number) => number): Buffer {
  let result = Buffer.from(bytes);
  for (let changes = 1 + upTo(4); changes > 0; changes--) {
    const at = upTo(Math.max(1, result.length));
    switch (upTo(4)) {
      case 0:
        result[at] = upTo(256);
        break;
      case 1:
        result = Buffer.concat([result.subarray(0, at), result.subarray(at + 1 + upTo(8))]);
        break;
      case 2:
        result = Buffer.concat([result.subarray(0, at), result.subarray(at - upTo(at + 1))]);
        break;
      default:
        result = Buffer.concat([
          result.subarray(0, at),
          Buffer.from([upTo(256), upTo(256)]),
          result.subarray(at),
        ]);
    }
  }
  return result;
}

/** What comes back until the other end closes, or we have waited long enough for a rest that we did not send. */
function exchange(path: string, bytes: Buffer, patienceMs: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const parts: Buffer[] = [];
    const socket = connect(path, () => socket.end(bytes));
    const timer = setTimeout(() => socket.destroy(), patienceMs);
    socket.on('data', (part: Buffer) => parts.push(part));
    socket.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'ECONNRESET' && error.code !== 'EPIPE') {
        reject(error);
      }
    });
    socket.on('close', () => {
      clearTimeout(timer);
      resolve(Buffer.concat(parts));
    });
  });
}

test(
  'HTTP: spoiled requests',
  async () => {
    const fixture = await startFixture();
    afterwards(() => fixture.close());
    const head = 'HTTP/1.1\r\nhost: localhost\r\nnodesentry.io: true\r\nconnection: close\r\n';
    const body = JSON.stringify({ queries: [FLOW, FLOW] });
    const requests = [
      `GET /v1/resolve?proto=tcp&src=10.66.0.3:41886&dst=10.200.1.1:80 ${head}\r\n`,
      `GET /v1/resolve?address=10.66.0.3&minAssurance=IP_ONLY&at=2026-11-28T14:03:07Z ${head}\r\n`,
      `GET /v1/workloads/uid-web-0 ${head}\r\n`,
      `GET /v1/flows?limit=5 ${head}\r\n`,
      `GET /openapi.json ${head}\r\n`,
      `POST /v1/resolve:batch ${head}content-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    ].map((text) => Buffer.from(text));
    const upTo = random(1);
    const blamed: string[] = [];
    let answered = 0;
    for (let i = 0; i < HTTP_REQUESTS; i++) {
      const request = spoiled(requests[upTo(requests.length)] as Buffer, upTo);
      const answer = (await exchange(fixture.api.path, request, 2_000)).toString('latin1');
      answered += answer.startsWith('HTTP/1.1 ') ? 1 : 0;
      if (/^HTTP\/1\.1 5(?!03)/m.test(answer)) {
        blamed.push(JSON.stringify([request.toString('latin1'), answer.slice(0, 300)]));
      }
    }
    expect(blamed).toEqual([]);
    expect(answered).toBeGreaterThan(HTTP_REQUESTS / 2);
    const sound = (await exchange(fixture.api.path, requests[0] as Buffer, 5_000)).toString('latin1');
    expect(sound).toMatch(/^HTTP\/1\.1 200 /);
    expect(fixture.warnings.filter((fields) => 'err' in fields)).toEqual([]);
  },
  LIMIT_MS,
);

describe('gRPC', () => {
  const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
  const SETTINGS = Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0]);

  test(
    'spoiled frames',
    async () => {
      const { api, logged } = await startGrpc();
      const upTo = random(2);
      for (let i = 0; i < GRPC_CONNECTIONS; i++) {
        const frames = Array.from({ length: 1 + upTo(3) }, () => {
          const payload = Buffer.from(Array.from({ length: upTo(40) }, () => upTo(256)));
          const header = Buffer.from([0, 0, payload.length, upTo(10), upTo(64), 0, 0, 0, upTo(4)]);
          return Buffer.concat([header, payload]);
        });
        const whole = Buffer.concat([PREFACE, SETTINGS, ...frames]);
        // A connection in order stays open, for all that we have ended our half.
        await exchange(api.path, upTo(3) === 0 ? spoiled(whole, upTo) : whole, 15);
      }
      expect(await ask(identityClient(api.path), 'Resolve', { flow: FLOW })).toMatchObject({
        resolution: { workload: { podName: 'web-0' } },
      });
      expect(logged.filter((fields) => 'err' in fields)).toEqual([]);
    },
    LIMIT_MS,
  );

  test(
    'spoiled messages',
    async () => {
      const { api } = await startGrpc();
      const client = new GrpcClient(`unix:${api.path}`, credentials.createInsecure());
      afterwards(() => client.close());
      const raw = (bytes: Buffer) => bytes;
      const call = (method: string, message: Buffer) =>
        new Promise<ServiceError | null>((resolve) =>
          client.makeUnaryRequest(
            `/nodesentry.identity.v1.Identity/${method}`,
            raw,
            raw,
            message,
            { deadline: Date.now() + 5_000 },
            (error: ServiceError | null) => resolve(error),
          ),
        );
      const text = (field: number, value: string) =>
        Buffer.concat([Buffer.from([(field << 3) | 2, value.length]), Buffer.from(value)]);
      const flow = Buffer.concat([text(1, FLOW.proto), text(2, FLOW.src), text(3, FLOW.dst)]);
      const sound = Buffer.concat([Buffer.from([0x0a, flow.length]), flow, Buffer.from([0x40, 1])]);
      expect(await call('Resolve', sound)).toBeNull();
      const upTo = random(3);
      const blamed: string[] = [];
      for (let i = 0; i < GRPC_MESSAGES; i++) {
        const message = spoiled(sound, upTo);
        const error = await call(upTo(4) === 0 ? 'BatchResolve' : 'Resolve', message);
        const isUndecodable = error?.details.startsWith('Error deserializing request') === true;
        const isBlame = [status.INTERNAL, status.UNKNOWN, status.DEADLINE_EXCEEDED].includes(
          error?.code ?? 0,
        );
        if (isBlame && !isUndecodable) {
          blamed.push(`${message.toString('hex')}: ${error?.code} ${error?.details}`);
        }
      }
      expect(blamed).toEqual([]);
      expect(await call('Resolve', sound)).toBeNull();
    },
    LIMIT_MS,
  );
});
