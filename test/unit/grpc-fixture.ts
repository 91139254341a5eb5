/** The gRPC API over one pod in a temporary folder, and clients that know nothing but its proto files. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type Client,
  credentials as channelCredentials,
  type GrpcObject,
  loadPackageDefinition,
  type Metadata,
  type ServiceClientConstructor,
  type ServiceError,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { expect } from 'vitest';
import type { PeerCredentials } from '../../src/api/callers.js';
import { startGrpcApi } from '../../src/api/grpc.js';
import { parseConfig } from '../../src/config/load.js';
import { AddressHistory } from '../../src/identity/history.js';
import { PastIdentity } from '../../src/identity/past.js';
import { SocketLookups } from '../../src/identity/socket-ends.js';
import { Told } from '../../src/identity/told.js';
import { IdentityWatch, type IdentityWatchOptions } from '../../src/identity/watch.js';
import { peerCredentials, tcpEnds } from '../../src/native/sockets.js';
import { Metrics } from '../../src/telemetry/metrics.js';
import { addWeb, identityParts, NONE_DRAINED } from './api-fixture.js';

function never(): never {
  throw new Error('gRPC has no upgrades');
}

export const OPTIONS = { longs: Number, enums: String, defaults: true, oneofs: true, includeDirs: ['proto'] };
export const IDENTITY = 'nodesentry.identity.v1.Identity';
export const FLOW = { proto: 'tcp', src: '10.66.0.3:41886', dst: '10.200.1.1:80' };
const opened: (() => Promise<unknown> | unknown)[] = [];

export async function closeAll(): Promise<void> {
  for (const close of opened.splice(0).reverse()) {
    await close();
  }
}

interface Setting {
  readonly api?: string;
  readonly credentials?: (fd: number) => PeerCredentials;
  readonly watch?: Partial<IdentityWatchOptions>;
}

/** Called when the test has ended, the last first. */
export function afterwards(close: () => Promise<unknown> | unknown): void {
  opened.push(close);
}

/** The API over one pod `web-0` with one recorded flow, FLOW. */
export async function start({
  api: access = '{allow: [{uid: 0}]}',
  credentials,
  watch: limits,
}: Setting = {}) {
  const runDir = mkdtempSync(join(tmpdir(), 'nodesentry-grpc-'));
  opened.push(() => rmSync(runDir, { recursive: true, force: true }));
  const state = { synced: true, blockers: [] as string[], nowMs: 1_700_000_000_000 };
  const { store, datapath, identity } = identityParts(state);
  addWeb(store, datapath);
  const logged: object[] = [];
  const log = {
    warn: (fields: object) => logged.push(fields),
    error: (fields: object) => logged.push(fields),
  };
  const metrics = new Metrics({ store, datapath, version: '1.2.3' });
  const watch = new IdentityWatch({ store, identity, ...limits });
  opened.push(() => watch.close());
  const nowMs = () => state.nowMs;
  const synced = () => state.synced;
  const history = new AddressHistory({
    store,
    identity,
    synced,
    seconds: 3_600,
    entries: 1_000,
    path: join(runDir, 'addresses.ndjson'),
    log: { ...log, info: log.warn },
    nowMs,
  });
  opened.push(() => history.close());
  const told = new Told({ nowMs });
  const api = await startGrpcApi({
    runDir,
    config: parseConfig(`node: node-a\nsources: {static: {file: pods.yaml}}\napi: ${access}`, 'config.yaml'),
    store,
    datapath,
    identity,
    told,
    past: new PastIdentity({ store, history, datapath, told, synced, nowMs }),
    sockets: new SocketLookups(tcpEnds),
    watch,
    announcing: { byProcess: async () => [], withdraw: async () => [] },
    instances: {
      current: [],
      servedBy: () => undefined,
      allServing: () => [],
      status: () => ({ applied: 0, problem: undefined }),
      states: async () => new Map(),
    },
    upgrades: { start: never, abort: never },
    processes: () => [],
    drains: NONE_DRAINED,
    synced,
    capacity: never,
    sources: [{ name: 'static', lastError: undefined }],
    blockers: () => state.blockers,
    metrics,
    version: '1.2.3',
    credentials: credentials ?? peerCredentials,
    log: log as never,
  });
  opened.push(() => api.close());
  return { api, runDir, state, store, datapath, identity, watch, logged, metrics };
}

export function clientOf(path: string, service: string, file: string, includeDirs = OPTIONS.includeDirs) {
  const root = loadPackageDefinition(loadSync(file, { ...OPTIONS, includeDirs }));
  const Service = service
    .split('.')
    .reduce<GrpcObject>((at, name) => at[name] as GrpcObject, root) as unknown as ServiceClientConstructor;
  const client = new Service(`unix:${path}`, channelCredentials.createInsecure());
  opened.push(() => client.close());
  return client;
}

export type Answer = Record<string, unknown>;

export function ask(client: Client, method: string, request: object): Promise<Answer> {
  return new Promise((resolve, reject) => {
    (client as unknown as Record<string, (...args: unknown[]) => void>)[method]?.(
      request,
      { deadline: Date.now() + 5_000 },
      (error: ServiceError | null, answer: Answer) => (error === null ? resolve(answer) : reject(error)),
    );
  });
}

export const identityClient = (path: string) =>
  clientOf(path, IDENTITY, 'nodesentry/identity/v1/identity.proto');

/** Code, text, and the reason both as the trailer and as google.rpc.ErrorInfo say it. */
export async function refusal(call: Promise<unknown>) {
  const error = (await call.then(
    (answer) => expect.fail(`answered: ${JSON.stringify(answer)}`),
    (reason: unknown) => reason,
  )) as ServiceError;
  return { code: error.code, details: error.details, ...reasonsIn(error.metadata) };
}

function reasonsIn(metadata: Metadata) {
  const types = loadSync('google/rpc/status.proto', OPTIONS);
  const decode = (name: string, bytes: Buffer): Record<string, unknown> => {
    const type = types[name];
    return type !== undefined && 'deserialize' in type && typeof type.deserialize === 'function'
      ? (type.deserialize as (given: Buffer) => Record<string, unknown>)(bytes)
      : expect.fail(`no type ${name}`);
  };
  const [bytes] = metadata.get('grpc-status-details-bin');
  if (bytes === undefined) {
    return { reason: undefined };
  }
  const { code, details } = decode('google.rpc.Status', bytes as Buffer) as {
    code: number;
    details: { type_url: string; value: Buffer }[];
  };
  const infos = details.map(({ type_url: url, value }) => {
    expect(url).toBe('type.googleapis.com/google.rpc.ErrorInfo');
    return decode('google.rpc.ErrorInfo', value);
  });
  expect(infos).toMatchObject([{ domain: 'nodesentry.io', reason: metadata.get('nodesentry-reason')[0] }]);
  return { reason: infos[0]?.reason, statusCode: code };
}
