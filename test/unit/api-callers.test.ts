import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { Agent, request } from 'node:http';
import { type ClientReadableStream, status } from '@grpc/grpc-js';
import { afterEach, describe, expect, test } from 'vitest';
import type { PeerCredentials } from '../../src/api/callers.js';
import { RateLimits } from '../../src/api/rate-limits.js';
import { startFixture } from './api-fixture.js';
import { afterwards, ask, clientOf, closeAll, FLOW, identityClient, refusal, start } from './grpc-fixture.js';

afterEach(closeAll);

const CONFIG = 'node: node-a\nsources: {static: {file: pods.yaml}}\napi: ';
const RESOLVE = '/v1/resolve?proto=tcp&src=10.66.0.3:41886&dst=10.200.1.1:80';
const AUTHORIZE = '/v1/authorize?src=10.66.0.3:41886&dst=10.200.1.1:80';

/** Over one connection that is kept. */
async function http(api: string, credentials?: (fd: number) => PeerCredentials) {
  const fixture = await startFixture({ config: CONFIG + api, ...(credentials && { credentials }) });
  afterwards(() => fixture.close());
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  afterwards(() => agent.destroy());
  const call = async (path: string, body?: object) => {
    const outgoing = request({
      socketPath: fixture.api.path,
      agent,
      path,
      method: body === undefined ? 'GET' : 'POST',
      headers: { 'nodesentry.io': 'true', 'content-type': 'application/json' },
    });
    outgoing.end(body === undefined ? undefined : JSON.stringify(body));
    const [response] = await once(outgoing, 'response');
    if (response.headers['content-type'] === 'application/x-ndjson') {
      response.destroy();
      return { status: response.statusCode };
    }
    const text = (await response.setEncoding('utf8').toArray()).join('');
    const isJson = response.headers['content-type']?.includes('json');
    return {
      status: response.statusCode as number,
      reason: isJson ? JSON.parse(text).reason : undefined,
      detail: isJson ? JSON.parse(text).detail : undefined,
      retryAfter: response.headers['retry-after'],
      spiffeId: response.headers['x-spiffe-id'],
    };
  };
  return { call, fixture };
}

describe('what a caller may ask', () => {
  const PATHS = {
    resolve: [RESOLVE, AUTHORIZE, '/v1/workloads/uid-web-0'],
    watch: ['/v1/watch', '/v1/workloads', '/v1/services'],
    admin: ['/v1/status', '/v1/flows', '/v1/flows/watch', '/metrics'],
  };

  test.each(['resolve', 'watch', 'admin'] as const)('is what its scopes say, here %s', async (scope) => {
    const { call } = await http(`{allow: [{uid: 0, scopes: [${scope}]}, {uid: 1}]}`);
    for (const [needed, paths] of Object.entries(PATHS)) {
      for (const path of paths) {
        expect([path, (await call(path)).status]).toEqual([path, needed === scope ? 200 : 403]);
      }
    }
    const batch = await call('/v1/resolve:batch', { queries: [] });
    expect(batch.status).toBe(scope === 'resolve' ? 200 : 403);
    expect((await call('/livez')).status).toBe(200);
    expect((await call('/v1/nothing')).status).toBe(404);
  });

  test('is what any of its rules allows, and refusals are logged once for each reason', async () => {
    const both = await http('{allow: [{uid: 0, scopes: [resolve]}, {gid: 0, scopes: [watch]}]}');
    expect((await both.call(RESOLVE)).status).toBe(200);
    expect((await both.call('/v1/workloads')).status).toBe(200);
    const refused = await both.call('/v1/status');
    expect(refused).toMatchObject({ status: 403, reason: 'CALLER_NOT_ALLOWED' });
    expect(refused.detail).toContain('it needs the scope admin, and api.allow gives it resolve, watch');
    await both.call('/metrics');
    expect(both.fixture.warnings).toEqual([{ pid: process.pid, uid: 0, gid: 0 }]);
    const all = await http('{allow: [{uid: 0, scopes: [resolve]}, {gid: 0}]}');
    expect((await all.call('/v1/status')).status).toBe(200);
  });

  test('is the same over gRPC, where health is for all who may ask anything', async () => {
    const { api, logged } = await start({ api: '{allow: [{uid: 0, scopes: [watch]}]}' });
    const client = identityClient(api.path);
    const denied = { code: status.PERMISSION_DENIED, reason: 'CALLER_NOT_ALLOWED' };
    for (const method of ['Resolve', 'BatchResolve', 'GetStatus']) {
      expect(await refusal(ask(client, method, {}))).toMatchObject(denied);
    }
    const watching = client.Watch?.({}) as ClientReadableStream<{ event: string }>;
    watching.on('error', () => undefined);
    afterwards(() => watching.cancel());
    expect((await once(watching, 'data'))[0]).toMatchObject({ event: 'snapshot' });
    const health = clientOf(api.path, 'grpc.health.v1.Health', 'grpc/health/v1/health.proto');
    expect(await ask(health, 'Check', {})).toEqual({ status: 'SERVING' });
    expect(logged).toHaveLength(1);
  });
});

describe('how much a caller may ask', () => {
  const LIMIT = '{allow: [{uid: 0}], rateLimit: {perSecond: 1, burst: 3}}';

  test('is bounded, with word of when to come back; each query of a batch counts', async () => {
    const { call } = await http(LIMIT);
    expect((await call(RESOLVE)).status).toBe(200);
    expect((await call('/v1/resolve:batch', { queries: [{}, {}] })).status).toBe(200);
    expect(await call(RESOLVE)).toMatchObject({ status: 429, reason: 'RATE_LIMITED', retryAfter: '1' });
  });

  test('is bounded over gRPC, whatever the number of its connections', async () => {
    const { api, logged } = await start({ api: LIMIT });
    const [one, other] = [identityClient(api.path), identityClient(api.path)];
    expect(await ask(one, 'Resolve', { flow: FLOW })).toHaveProperty('resolution.instance');
    expect(await ask(other, 'BatchResolve', { requests: [{}, {}] })).toHaveProperty('results.length', 2);
    const refused = await ask(one, 'Resolve', { flow: FLOW }).catch((error) => error);
    expect(refused.code).toBe(status.RESOURCE_EXHAUSTED);
    expect(refused.metadata.get('nodesentry-reason')).toEqual(['RATE_LIMITED']);
    expect(refused.metadata.get('retry-after')).toEqual(['1']);
    expect(logged).toHaveLength(1);
  });

  test('comes back with time, up to the burst, and is each caller’s own', () => {
    let nowMs = 0;
    const limits = new RateLimits({ perSecond: 10, burst: 5 }, () => nowMs);
    expect(limits.take('a', 4)).toBeUndefined();
    expect(limits.take('a', 3)).toBeCloseTo(200);
    expect(limits.take('b', 100)).toBeUndefined();
    nowMs = 200;
    expect(limits.take('a', 3)).toBeUndefined();
    expect(limits.take('a', 1)).toBeCloseTo(100);
    nowMs = 100_000;
    expect(limits.take('a', 5)).toBeUndefined();
    expect(limits.take('a', 1)).toBeCloseTo(100);
  });
});

describe('a caller that has ended before its answer', () => {
  /** The socket is ours still; by what the kernel said when it was connected it is the other process's. */
  async function other() {
    const child = spawn('sleep', ['60']);
    afterwards(() => child.kill('SIGKILL'));
    await once(child, 'spawn');
    const end = async () => {
      child.kill('SIGKILL');
      await once(child, 'exit');
    };
    return { end, credentials: () => ({ pid: child.pid as number, uid: 0, gid: 0 }) };
  }

  test('gets none over HTTP', async () => {
    const { end, credentials } = await other();
    const { call } = await http('{allow: [{uid: 0}]}', credentials);
    for (const path of [RESOLVE, AUTHORIZE]) {
      expect((await call(path)).status).toBe(200);
    }
    await end();
    for (const path of [RESOLVE, AUTHORIZE]) {
      const refused = await call(path);
      expect(refused).toMatchObject({ status: 403, reason: 'CALLER_NOT_ALLOWED', spiffeId: undefined });
      expect(refused.detail).toContain('has ended');
    }
  });

  test('gets none over gRPC', async () => {
    const { end, credentials } = await other();
    const { api } = await start({ credentials });
    const client = identityClient(api.path);
    expect(await ask(client, 'Resolve', { flow: FLOW })).toHaveProperty('resolution.instance');
    await end();
    expect(await refusal(ask(client, 'Resolve', { flow: FLOW }))).toMatchObject({
      code: status.PERMISSION_DENIED,
      reason: 'CALLER_NOT_ALLOWED',
    });
  });

  test('may ask all the same where the kernel gives no number of it: it is in another pid namespace', async () => {
    const { call } = await http('{allow: [{uid: 0}]}', () => ({ pid: 0, uid: 0, gid: 0 }));
    expect((await call(RESOLVE)).status).toBe(200);
  });
});
