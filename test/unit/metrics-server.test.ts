/** Metrics on a TCP address: the text alone, whoever asks, and no more of the agent than a scrape needs. */

import { connect, createServer } from 'node:net';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { MetricsListenError, startMetricsServer } from '../../src/api/metrics-server.js';
import { Metrics } from '../../src/telemetry/metrics.js';
import { identityParts } from './api-fixture.js';

const opened: (() => unknown)[] = [];

afterEach(async () => {
  for (const close of opened.splice(0).reverse()) {
    await close();
  }
});

const LOOPBACK = { host: '127.0.0.1', port: 0, text: '127.0.0.1:0' };

async function start(collect?: () => Promise<string>) {
  const { store, datapath } = identityParts({ synced: true, blockers: [], nowMs: 0 });
  const real = new Metrics({ store, datapath, version: '1' });
  opened.push(() => real.close());
  const errors: object[] = [];
  const server = await startMetricsServer({
    listen: LOOPBACK,
    metrics: { contentType: real.contentType, text: collect ?? (() => real.text()) },
    log: { error: (fields: object) => void errors.push(fields) },
  });
  opened.push(() => server.close());
  const ask = (path: string, init: RequestInit = {}) =>
    fetch(`http://127.0.0.1:${server.port}${path}`, { redirect: 'manual', ...init });
  return { server, ask, errors };
}

/** What comes back for these bytes until the server ends the connection. */
function exchange(port: number, bytes: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let said = '';
    const socket = connect(port, '127.0.0.1', () => socket.write(bytes));
    socket.on('data', (data) => {
      said += String(data);
    });
    socket.once('close', () => resolve(said));
    socket.once('error', reject);
  });
}

describe('GET /metrics', () => {
  test('is the text that a Prometheus reads, with or without a query', async () => {
    const { ask } = await start();
    for (const path of ['/metrics', '/metrics?collect[]=all']) {
      const answer = await ask(path);
      expect(answer.status).toBe(200);
      expect(answer.headers.get('content-type')).toContain('text/plain; version=0.0.4');
      expect(await answer.text()).toMatch(/^nodesentry_build_info\{version="1",.*\} 1$/m);
    }
  });

  test('of many at once is collected once, and anew for who comes later', async () => {
    let collected = 0;
    const { ask } = await start(async () => {
      collected += 1;
      return `${collected}\n`;
    });
    const all = await Promise.all(Array.from({ length: 20 }, async () => (await ask('/metrics')).text()));
    expect([...new Set(all)]).toEqual(['1\n']);
    await vi.waitFor(async () => expect(await (await ask('/metrics')).text()).toBe('2\n'), 5_000);
  });

  test('says that it failed, and the log says why', async () => {
    const { ask, errors } = await start(async () => {
      throw new Error('the map is gone');
    });
    const answer = await ask('/metrics');
    expect(answer.status).toBe(500);
    expect(await answer.text()).not.toContain('map');
    expect(errors).toMatchObject([{ err: { message: 'the map is gone' } }]);
  });
});

describe('everything else', () => {
  test.each([
    '/',
    '/v1/status',
    '/v1/workloads',
    '/livez',
    '/openapi.json',
    '/metrics/',
    '//metrics',
    '/%6detrics',
  ])('%s is not there', async (path) => {
    const { ask } = await start();
    const answer = await ask(path, { headers: { 'nodesentry.io': 'true' } });
    expect(answer.status).toBe(404);
    expect(await answer.text()).toBe('there is nothing but /metrics\n');
  });

  test.each(['POST', 'PUT', 'DELETE', 'OPTIONS', 'HEAD'])('%s is not taken', async (method) => {
    const { ask } = await start();
    const answer = await ask('/metrics', { method });
    expect(answer.status).toBe(405);
    expect(answer.headers.get('allow')).toBe('GET');
  });

  test('a body is not waited for, and headers are read up to a size', async () => {
    const { server } = await start();
    const post = 'POST /metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n';
    expect(await exchange(server.port, post)).toMatch(/^HTTP\/1\.1 405 /);
    const large = `GET /metrics HTTP/1.1\r\nhost: a\r\nx: ${'a'.repeat(9_000)}\r\n\r\n`;
    expect(await exchange(server.port, large)).toMatch(/^HTTP\/1\.1 431 /);
  });

  test('who sends nothing whole is sent away', async () => {
    const { server } = await start();
    const startedMs = performance.now();
    expect(await exchange(server.port, 'GET /metrics HTTP/1.1\r\n')).toMatch(/^HTTP\/1\.1 408 /);
    expect(performance.now() - startedMs).toBeLessThan(10_000);
  }, 15_000);
});

test('a taken port is told by the name of the field', async () => {
  const other = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => other.once('listening', resolve));
  opened.push(() => other.close());
  const { port } = other.address() as { port: number };
  const metrics = { contentType: '', text: async () => '' };
  const starting = startMetricsServer({
    listen: { host: '127.0.0.1', port, text: `127.0.0.1:${port}` },
    metrics,
    log: { error: () => undefined },
  });
  await expect(starting).rejects.toThrow(MetricsListenError);
  await expect(starting).rejects.toThrow(
    `metrics.listen: 127.0.0.1:${port} cannot be had: another process listens there; choose another address`,
  );
});

test('closing does not wait for who waits for an answer', async () => {
  let asked = false;
  const { server, ask } = await start(() => {
    asked = true;
    return new Promise(() => undefined);
  });
  const answer = expect(ask('/metrics')).rejects.toThrow();
  await vi.waitFor(() => expect(asked).toBe(true));
  await server.close();
  await answer;
});
