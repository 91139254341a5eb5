/** The same question at each door, its answer in one form, so that two answers can be compared. */

import { request } from 'node:http';
import {
  type ClientReadableStream,
  credentials,
  loadPackageDefinition,
  type ServiceError,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { PROTO_FOLDER } from '../api/grpc-protos.js';

/** By the names of HTTP's parameters; values as text. */
export type Asked = Readonly<Record<string, string>>;

/** What counts of an answer. `reason` alone where there is none. */
export type Answer =
  | { readonly reason: string }
  | {
      readonly podUid: string;
      readonly spiffeId: string;
      readonly state: string;
      readonly instance: string;
      /** Empty where no flow was meant. */
      readonly direction: string;
      readonly assurance: string;
      /** Pods at the ends, or why none is named; empty where no flow was meant. */
      readonly source: string;
      readonly destination: string;
    };

/** A line of a watch, of whichever door. */
export interface WatchEvent {
  readonly kind: 'SNAPSHOT' | 'UPSERT' | 'REMOVED' | 'SNAPSHOT_DONE' | 'HEARTBEAT' | 'LOST';
  readonly epoch: string;
  readonly revision: number;
  /** Of UPSERT and REMOVED. */
  readonly uid: string;
}

export interface WatchFrom {
  readonly epoch: string;
  readonly since: number;
}

export interface Door {
  readonly name: 'HTTP' | 'gRPC';
  ask(asked: Asked): Promise<Answer>;
  /** In their order; one reason where the batch is refused as a whole. */
  batch(asked: readonly Asked[]): Promise<readonly Answer[] | { readonly reason: string }>;
  /** Until `isEnough` says so, or `timeoutMs` is over. */
  watch(
    from: WatchFrom | undefined,
    isEnough: (events: readonly WatchEvent[]) => boolean,
    timeoutMs: number,
  ): Promise<readonly WatchEvent[]>;
  close(): void;
}

export interface HttpReply {
  readonly status: number;
  readonly body: unknown;
}

type Fields = Readonly<Record<string, unknown>>;

const text = (given: unknown): string => (given === undefined || given === null ? '' : String(given));
const fields = (given: unknown): Fields => (given ?? {}) as Fields;

export class HttpDoor implements Door {
  readonly name = 'HTTP';
  /** Of the socket. */
  readonly path: string;

  constructor(path: string) {
    this.path = path;
  }

  /** Rejects where nobody answers within 10 s. */
  send(method: string, path: string, options: { guard?: boolean; body?: string } = {}): Promise<HttpReply> {
    const { guard = true, body } = options;
    return new Promise((resolve, reject) => {
      const sent = request(
        {
          socketPath: this.path,
          method,
          path,
          timeout: 10_000,
          headers: {
            ...(guard && { 'nodesentry.io': 'true' }),
            ...(body !== undefined && { 'content-type': 'application/json' }),
          },
        },
        (response) => {
          const parts: Buffer[] = [];
          response.on('data', (part: Buffer) => parts.push(part));
          response.on('end', () => {
            const whole = Buffer.concat(parts).toString();
            const isJson = /json/.test(text(response.headers['content-type']));
            resolve({ status: response.statusCode ?? 0, body: isJson ? JSON.parse(whole) : whole });
          });
          response.on('error', reject);
        },
      );
      sent.on('timeout', () => sent.destroy(new Error(`${method} ${path}: no answer within 10 s`)));
      sent.on('error', reject);
      sent.end(body);
    });
  }

  async ask(asked: Asked): Promise<Answer> {
    const { status, body } = await this.send('GET', `/v1/resolve?${new URLSearchParams(asked)}`);
    return status === 200 ? ofResolution(fields(body)) : { reason: text(fields(body).reason) };
  }

  async batch(asked: readonly Asked[]): Promise<readonly Answer[] | { readonly reason: string }> {
    const sent = { body: JSON.stringify({ queries: asked }) };
    const { status, body } = await this.send('POST', '/v1/resolve:batch', sent);
    if (status !== 200) {
      return { reason: text(fields(body).reason) };
    }
    return (fields(body).results as readonly Fields[]).map(({ resolution, problem }) =>
      problem === undefined ? ofResolution(fields(resolution)) : { reason: text(fields(problem).reason) },
    );
  }

  watch(
    from: WatchFrom | undefined,
    isEnough: (events: readonly WatchEvent[]) => boolean,
    timeoutMs: number,
  ): Promise<readonly WatchEvent[]> {
    const path = from === undefined ? '/v1/watch' : `/v1/watch?epoch=${from.epoch}&since=${from.since}`;
    return new Promise((resolve, reject) => {
      const events: WatchEvent[] = [];
      let rest = '';
      const sent = request(
        { socketPath: this.path, path, headers: { 'nodesentry.io': 'true' } },
        (response) => {
          response.setEncoding('utf8');
          response.on('data', (part: string) => {
            const lines = (rest + part).split('\n');
            rest = lines.pop() ?? '';
            events.push(...lines.map((line) => ofLine(JSON.parse(line) as Fields)));
            if (isEnough(events)) {
              done();
            }
          });
          response.on('end', done);
        },
      );
      const timer = setTimeout(done, timeoutMs);
      function done(): void {
        clearTimeout(timer);
        resolve(events);
        sent.destroy();
      }
      sent.on('error', (error) => {
        clearTimeout(timer);
        reject(error);
      });
      sent.end();
    });
  }

  close(): void {
    // A connection of its own for each request.
  }
}

interface IdentityStub {
  Resolve(message: object, answer: (error: ServiceError | null, response: Fields) => void): void;
  BatchResolve(message: object, answer: (error: ServiceError | null, response: Fields) => void): void;
  Watch(message: object): ClientReadableStream<Fields>;
  close(): void;
}

export class GrpcDoor implements Door {
  readonly name = 'gRPC';
  readonly #stub: IdentityStub;

  constructor(socketPath: string) {
    const options = {
      longs: String,
      enums: String,
      defaults: true,
      oneofs: true,
      includeDirs: [PROTO_FOLDER],
    };
    const root = loadPackageDefinition(
      loadSync('nodesentry/identity/v1/identity.proto', options),
    ) as unknown as {
      nodesentry: { identity: { v1: { Identity: new (...given: unknown[]) => IdentityStub } } };
    };
    const { Identity } = root.nodesentry.identity.v1;
    this.#stub = new Identity(`unix:${socketPath}`, credentials.createInsecure());
  }

  ask(asked: Asked): Promise<Answer> {
    return new Promise((resolve) =>
      this.#stub.Resolve(messageOf(asked), (error, response) =>
        resolve(error === null ? ofGrpc(fields(response)) : { reason: reasonOf(error) }),
      ),
    );
  }

  batch(asked: readonly Asked[]): Promise<readonly Answer[] | { readonly reason: string }> {
    return new Promise((resolve) =>
      this.#stub.BatchResolve({ requests: asked.map(messageOf) }, (error, response) => {
        if (error !== null) {
          resolve({ reason: reasonOf(error) });
          return;
        }
        resolve(
          (response.results as readonly Fields[]).map((result) =>
            result.result === 'problem'
              ? { reason: text(fields(result.problem).reason).replace('REASON_', '') }
              : ofGrpc(result),
          ),
        );
      }),
    );
  }

  watch(
    from: WatchFrom | undefined,
    isEnough: (events: readonly WatchEvent[]) => boolean,
    timeoutMs: number,
  ): Promise<readonly WatchEvent[]> {
    return new Promise((resolve, reject) => {
      const events: WatchEvent[] = [];
      const stream = this.#stub.Watch(from ?? {});
      const timer = setTimeout(done, timeoutMs);
      let isDone = false;
      function done(): void {
        isDone = true;
        clearTimeout(timer);
        resolve(events);
        stream.cancel();
      }
      stream.on('data', (message: Fields) => {
        events.push(ofMessage(message));
        if (!isDone && isEnough(events)) {
          done();
        }
      });
      stream.on('end', () => isDone || done());
      stream.on('error', (error: Error) => {
        clearTimeout(timer);
        if (!isDone) {
          reject(error);
        }
      });
    });
  }

  close(): void {
    this.#stub.close();
  }
}

function messageOf(asked: Asked): object {
  const { proto, src, dst, podUid, address, hostInterface, pid, startTime, netnsCookie, socketCookie } =
    asked;
  const { minAssurance, minEpoch, minRevision, waitMs } = asked;
  const isFlow = [proto, src, dst].some((part) => part !== undefined);
  return {
    ...(isFlow && { flow: { proto, src, dst } }),
    ...(podUid !== undefined && { podUid }),
    ...(address !== undefined && { address }),
    ...(hostInterface !== undefined && { hostInterface }),
    ...(netnsCookie !== undefined && { netnsCookie }),
    ...(socketCookie !== undefined && { socketCookie }),
    ...(pid !== undefined && { process: { pid: Number(pid), startTime } }),
    ...(minAssurance !== undefined && { minAssurance: assuranceOf(minAssurance) }),
    ...(minEpoch !== undefined && { minRevision: { epoch: minEpoch, revision: minRevision } }),
    ...(waitMs !== undefined && { waitMs: Number(waitMs) }),
  };
}

const ASSURANCES = ['IP_ONLY', 'IP_AND_IFACE', 'DATAPATH_RECORDED'];

/** What the enum does not have goes as a number that it does not have. */
function assuranceOf(name: string): string | number {
  return ASSURANCES.includes(name) ? `ASSURANCE_${name}` : 99;
}

/** The one that the trailer names, else the status. */
function reasonOf(error: ServiceError): string {
  return text(error.metadata?.get('nodesentry-reason')[0]) || `status ${error.code}`;
}

function ofResolution(resolution: Fields): Answer {
  const { workload, instance, direction, assurance, source, destination } = resolution;
  const { podUid, spiffeId, state } = fields(workload);
  return {
    podUid: text(podUid),
    spiffeId: text(spiffeId),
    state: text(state),
    instance: text(instance),
    direction: text(direction),
    assurance: text(assurance),
    source: partyOf(source),
    destination: partyOf(destination),
  };
}

function partyOf(given: unknown): string {
  if (given === undefined || given === null) {
    return '';
  }
  const { workload, reason } = fields(given);
  return workload === null || workload === undefined ? text(reason) : text(fields(workload).podUid);
}

function ofGrpc(response: Fields): Answer {
  const bare = (prefix: string, given: unknown) => text(given).replace(prefix, '').replace('UNSPECIFIED', '');
  const resolution = fields(response.resolution);
  const party = (given: unknown) =>
    given === undefined || given === null
      ? undefined
      : { ...fields(given), reason: bare('REASON_', fields(given).reason) };
  const workload = fields(resolution.workload);
  return ofResolution({
    ...resolution,
    workload: { ...workload, state: bare('WORKLOAD_STATE_', workload.state) },
    direction: bare('DIRECTION_', resolution.direction),
    assurance: bare('ASSURANCE_', resolution.assurance),
    source: party(resolution.source),
    destination: party(resolution.destination),
  });
}

function ofLine(line: Fields): WatchEvent {
  return {
    kind: line.type as WatchEvent['kind'],
    epoch: text(line.epoch),
    revision: Number(line.revision),
    uid: text(line.uid ?? fields(line.workload).uid),
  };
}

function ofMessage(message: Fields): WatchEvent {
  const kind = text(message.event)
    .replace(/([A-Z])/g, '_$1')
    .toUpperCase();
  return {
    kind: kind as WatchEvent['kind'],
    epoch: text(message.epoch),
    revision: Number(message.revision),
    uid: text(fields(message[text(message.event)]).uid),
  };
}
