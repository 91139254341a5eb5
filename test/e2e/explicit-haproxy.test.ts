/** HAProxy, run with examples/explicit, is dialled by pods themselves, and asks the agent who they are as of intercepted flows. */

import { afterAll, beforeAll, expect, it } from 'vitest';
import { createNetwork } from '../lab/cni.js';
import { type Daemon, runIn, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { OUTBOUND, staticPod, TestAgent, TestProxy } from './agent.js';
import { echo, exampleFor, HTTP_PORT, spiffeId } from './http-app.js';

const FAMILIES = [4, 6] as const;
const NODE = { 4: '10.199.0.1', 6: 'fd00:199::1' } as const;
const PORT = 3_128;
const FORGED = 'spiffe://cluster.local/ns/kube-system/sa/admin';
const bracket = (ip: string) => (ip.includes(':') ? `[${ip}]` : ip);

let lab: Lab;
let agent: TestAgent;
let haproxy: Daemon;
let web: PlainPod;
let stranger: PlainPod;

beforeAll(async () => {
  lab = await Lab.create();
  await echo(lab, HTTP_PORT);
  const network = createNetwork(lab, 'ptp');
  web = await runPlainPod(lab, network, 'web');
  stranger = await runPlainPod(lab, network, 'stranger');
  agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' } },
    instances: [{ name: 'default', outbound: [...OUTBOUND], explicit: [`0.0.0.0:${PORT}`, `[::]:${PORT}`] }],
  });
  agent.writePods([staticPod(web)]);
  await agent.start();
  exampleFor(lab, agent, 'haproxy-identity.lua');
  exampleFor(lab, agent, 'explicit/haproxy.lua');
  const config = exampleFor(lab, agent, 'explicit/haproxy.cfg', { 'explicit/haproxy.lua': 'haproxy.lua' });
  haproxy = lab.daemon(lab.node, 'haproxy', 'haproxy', ['-C', lab.directory, '-f', config]);
  // What is intercepted has the reference proxy.
  await new TestProxy(lab, agent).start();
  await agent.adopted(2);
  await agent.reaches('web', 'INTERCEPTED');
});

afterAll(() => lab?.close());

/** As an app with HTTP_PROXY does it. */
async function ask(pod: PlainPod, family: 4 | 6, method: 'GET' | 'CONNECT' = 'GET') {
  const target = `${bracket(REMOTE[family])}:${HTTP_PORT}`;
  const path = method === 'GET' ? `http://${target}/there?and=back` : target;
  const code = `
    const http = require('http');
    const headers = { 'x-spiffe-id': '${FORGED}', host: '${target}' };
    const asked = { host: ${JSON.stringify(NODE[family])}, port: ${PORT}, headers, method: '${method}', path: '${path}' };
    const tell = (response) => {
      let body = '';
      const { localPort } = response.socket;
      response.on('data', (data) => (body += data)).on('end', () =>
        console.log(JSON.stringify({ localPort, status: response.statusCode, body })));
    };
    http.request(asked, tell).on('connect', (response) => {
      console.log(JSON.stringify({ localPort: 0, status: response.statusCode, body: '' }));
      response.destroy();
    }).end();`;
  const output = await runIn(pod.netnsName, process.execPath, ['-e', code]);
  return JSON.parse(output) as { localPort: number; status: number; body: string };
}

it.each(FAMILIES)(
  'IPv%i: the pod is let through as itself, and the agent is told where to',
  async (family) => {
    const { localPort, status, body } = await ask(web, family);
    expect(status).toBe(200);
    expect(JSON.parse(body)).toMatchObject({
      url: '/there?and=back',
      headers: { 'x-spiffe-id': [spiffeId('web')] },
    });
    const peer = `${bracket(web.ips[family])}:${localPort}`;
    const asked = `${bracket(REMOTE[family])}:${HTTP_PORT}`;
    const line = `explicit spiffe=${spiffeId('web')} peer=${peer} asked=GET:${asked} status=200`;
    await waitFor(`"${line}" in the log`, () => haproxy.log().includes(line));
    const flows = await agent.client.flows(100);
    expect(flows.find(({ src }) => src === peer)).toMatchObject({ mode: 'EXPLICIT', podName: 'web', asked });
  },
);

it('who is nobody that the agent has seen is refused, and so is a tunnel', async () => {
  expect(await ask(stranger, 4)).toMatchObject({ status: 403 });
  expect(await ask(web, 4, 'CONNECT')).toMatchObject({ status: 405 });
});
