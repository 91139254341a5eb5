/** What proxies tell of flows over HTTP, and where it is seen. */

import { get } from 'node:http';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { ApiClient, type TellingBody } from '../../src/api/client.js';
import { type Fixture, flowRecord, startFixture } from './api-fixture.js';

const FLOW = { src: '10.66.0.3:41886', dst: '10.200.1.1:80' };
const EXPLICIT = { src: '10.66.0.3:5000', dst: '10.199.0.1:3128' };
const NAME = { name: 'shop.example', ip: '10.200.1.1', ttlSeconds: 60 };

let agent: Fixture;
let client: ApiClient;

beforeEach(async () => {
  agent = await startFixture();
  client = new ApiClient({ runDir: agent.runDir });
  const [src, dst] = [
    { ip: '10.66.0.3', port: 5_000 },
    { ip: '10.199.0.1', port: 3_128 },
  ];
  agent.datapath.flows.push(flowRecord(src, dst, { mode: 'EXPLICIT' }));
  for (const flow of agent.datapath.flows) {
    Object.assign(flow, { startedMs: agent.state.nowMs });
  }
  onTestFinished(async () => {
    await client.close();
    await agent.close();
  });
});

/** As `GET /v1/resolve` answers. */
function past(query: string): Promise<{ status: number | undefined; body: object }> {
  const path = `/v1/resolve?${query}`;
  const headers = { 'nodesentry.io': 'true' };
  return new Promise((resolve, reject) => {
    get({ socketPath: agent.api.path, path, headers }, (response) => {
      let text = '';
      response.on('data', (data) => {
        text += data;
      });
      response.on('end', () => resolve({ status: response.statusCode, body: JSON.parse(text) }));
    }).on('error', reject);
  });
}

const listed = async (src: string) => (await client.flows(10)).find((flow) => flow.src === src);

it('a name that the pod has looked up is seen at the flows that go to its address, and in the history', async () => {
  expect(await listed(FLOW.src)).not.toHaveProperty('name');
  expect(await client.tell({ ...FLOW, answers: [NAME] })).toEqual({ podUid: 'uid-web-0' });
  expect(await listed(FLOW.src)).toMatchObject({ name: 'shop.example' });
  expect(await listed(EXPLICIT.src)).not.toHaveProperty('name');
  const at = agent.state.nowMs;
  agent.state.nowMs += 1_000;
  const { status, body } = await past(`src=${FLOW.src}&dst=${FLOW.dst}&at=${at}`);
  expect([status, body]).toMatchObject([200, { assurance: 'DATAPATH_RECORDED', name: 'shop.example' }]);
});

it('where the pod has asked its proxy to go is seen at a flow that it dialled explicitly', async () => {
  for (const destination of ['shop.example:443', '10.1.2.3:80', '[fd00::1]:443']) {
    await client.tell({ ...EXPLICIT, destination });
    expect(await listed(EXPLICIT.src)).toMatchObject({ asked: destination });
  }
});

const answers = (fields: object) => ({ ...FLOW, answers: [{ ...NAME, ...fields }] });

describe('what cannot be taken is refused with its field, and nothing of it is kept', () => {
  it.each([
    [FLOW, 'KEY_INVALID', 'answers: at least one of answers and destination is expected'],
    [{ ...FLOW, answers: NAME }, 'KEY_INVALID', 'answers: expected a list of at most 64, got an object'],
    [
      answers({ name: 'a b' }),
      'KEY_INVALID',
      'answers[0].name: expected a name such as shop.example, got "a b"',
    ],
    [answers({ ip: 'x' }), 'KEY_INVALID', 'answers[0].ip: expected an address'],
    [answers({ ttlSeconds: -1 }), 'KEY_INVALID', 'answers[0].ttlSeconds: expected a whole number from 0'],
    [answers({ ttl: 1 }), 'KEY_INVALID', 'answers[0].ttl: unknown key'],
    [{ ...FLOW, proto: 'sctp', answers: [NAME] }, 'KEY_INVALID', 'proto: expected tcp or udp'],
    [{ ...FLOW, src: '10.66.0.3', answers: [NAME] }, 'KEY_INVALID', 'src: expected an address and port'],
    [
      { ...EXPLICIT, destination: 'shop.example' },
      'KEY_INVALID',
      'destination: expected a name or an address',
    ],
    [{ ...EXPLICIT, destination: 'shop.example:65536' }, 'KEY_INVALID', 'destination: expected a name'],
    [{ ...EXPLICIT, destination: 'a b:80' }, 'KEY_INVALID', 'destination: expected a name'],
    [
      { ...FLOW, destination: 'shop.example:80', answers: [NAME] },
      'KEY_INVALID',
      'destination: the flow was intercepted: where it was going is its own destination',
    ],
    [
      { ...FLOW, proto: 'udp', answers: [NAME] },
      'WORKLOAD_NOT_FOUND',
      'no flow of a pod is recorded as udp 10.66.0.3:41886 -> 10.200.1.1:80',
    ],
  ] as const)('%j', async (body, code, detail) => {
    await expect(client.tell(body as unknown as TellingBody)).rejects.toMatchObject({
      code,
      message: expect.stringContaining(detail),
    });
    for (const src of [FLOW.src, EXPLICIT.src]) {
      const flow = await listed(src);
      expect(flow).not.toHaveProperty('name');
      expect(flow).not.toHaveProperty('asked');
    }
  });

  it('of a record that outlives its endpoint', async () => {
    agent.datapath.owners.clear();
    await expect(client.tell({ ...FLOW, answers: [NAME] })).rejects.toMatchObject({
      code: 'WORKLOAD_NOT_FOUND',
    });
  });
});
