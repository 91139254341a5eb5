import { Agent, request } from 'undici';
import { afterEach, describe, expect, test } from 'vitest';
import { type Fixture, flowRecord, pod, startFixture } from './api-fixture.js';

const opened: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const close of opened.splice(0).reverse()) {
    await close();
  }
});

async function start() {
  const agent: Fixture = await startFixture();
  opened.push(() => agent.close());
  const dispatcher = new Agent({ connect: { socketPath: agent.api.path } });
  opened.push(() => dispatcher.close());
  const authorize = async (query: string) => {
    const { statusCode, headers, body } = await request(`http://localhost/v1/authorize?${query}`, {
      dispatcher,
      headers: { 'nodesentry.io': 'true' },
    });
    return { status: statusCode, headers, body: await body.text() };
  };
  return { agent, authorize };
}

const FLOW = 'src=10.66.0.3:41886&dst=10.200.1.1:80';

describe('GET /v1/authorize', () => {
  test.each([FLOW, `proto=tcp&${FLOW}`])(
    '%s: names the sender in headers, and nowhere else',
    async (query) => {
      const { authorize } = await start();
      const { status, headers, body } = await authorize(query);
      expect([status, body]).toEqual([200, '']);
      expect(headers).toMatchObject({
        'x-spiffe-id': 'spiffe://cluster.local/ns/default/sa/web',
        'x-nodesentry-namespace': 'default',
        'x-nodesentry-pod': 'web-0',
        'content-length': '0',
      });
    },
  );

  test.each([
    ['10.66.0.9:1', 'WORKLOAD_NOT_FOUND'],
    ['10.66.0.3:1', 'ASSURANCE_TOO_LOW'],
  ])('%s, of which nothing is recorded, is 403 with %s', async (src, reason) => {
    const { authorize } = await start();
    const { status, headers, body } = await authorize(`src=${src}&dst=10.200.1.1:80`);
    expect([status, headers['content-type']]).toEqual([403, 'application/problem+json']);
    expect(JSON.parse(body)).toMatchObject({ status: 403, reason });
    expect(headers).not.toHaveProperty('x-spiffe-id');
  });

  test('a pod without a service account is 403', async () => {
    const { agent, authorize } = await start();
    agent.store.replaceSource('static', [pod('web-0', { serviceAccount: '' })]);
    const { status, body } = await authorize(FLOW);
    expect([status, JSON.parse(body).reason]).toEqual([403, 'WORKLOAD_UNCONFIRMED']);
  });

  test('of what a pod receives the sender counts, never the pod itself', async () => {
    const { agent, authorize } = await start();
    const [src, dst] = [
      { ip: '10.199.0.2', port: 5_000 },
      { ip: '10.66.0.3', port: 80 },
    ];
    agent.datapath.flows.push(flowRecord(src, dst, { direction: 'INGRESS' }));
    const { status, body } = await authorize('src=10.199.0.2:5000&dst=10.66.0.3:80');
    expect([status, JSON.parse(body).reason]).toEqual([403, 'WORKLOAD_NOT_FOUND']);
  });

  test('what says nothing about an identity has its own status', async () => {
    const { agent, authorize } = await start();
    Object.assign(agent.state, { synced: false });
    expect((await authorize('src=10.66.0.9:1&dst=10.200.1.1:80')).status).toBe(503);
    for (const query of ['', 'src=10.66.0.3:1', `${FLOW}&minAssurance=IP_ONLY`, `proto=sctp&${FLOW}`]) {
      const { status, body } = await authorize(query);
      expect([status, JSON.parse(body).reason]).toEqual([400, 'KEY_INVALID']);
    }
  });
});
