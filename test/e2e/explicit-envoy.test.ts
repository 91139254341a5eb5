/** Envoy, run with examples/explicit, is dialled by pods themselves, and asks the agent who they are as of intercepted flows. */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createNetwork } from '../lab/cni.js';
import { type Daemon, runIn, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { OUTBOUND, staticPod, TestAgent } from './agent.js';
import { echo, exampleFor, HTTP_PORT, spiffeId } from './http-app.js';

const ENVOY = join(import.meta.dirname, '../../.cache/bin/envoy');
const FAMILIES = [4, 6] as const;
const NODE = { 4: '10.199.0.1', 6: 'fd00:199::1' } as const;
const PORT = 3_128;
const FORGED = 'spiffe://cluster.local/ns/kube-system/sa/admin';
const bracket = (ip: string) => (ip.includes(':') ? `[${ip}]` : ip);

let lab: Lab;
let agent: TestAgent;
let envoy: Daemon;
let web: PlainPod;
let stranger: PlainPod;

beforeAll(async () => {
  expect(existsSync(ENVOY), 'run "make envoy" first').toBe(true);
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
  const words = [
    '-c',
    exampleFor(lab, agent, 'explicit/envoy.yaml'),
    '--concurrency',
    '2',
    '--disable-hot-restart',
  ];
  envoy = lab.daemon(lab.node, 'envoy', ENVOY, [...words, '--file-flush-interval-msec', '50']);
  await agent.adopted(2);
  await agent.reaches('web', 'INTERCEPTED');
});

afterAll(() => lab?.close());

/** As an app with HTTP_PROXY does it: `absolute` by the URI, `tunnel` by CONNECT and a request inside. */
async function ask(pod: PlainPod, family: 4 | 6, way: 'absolute' | 'tunnel') {
  const target = `${bracket(REMOTE[family])}:${HTTP_PORT}`;
  const code = `
    const http = require('http');
    const via = { host: ${JSON.stringify(NODE[family])}, port: ${PORT}, headers: { 'x-spiffe-id': '${FORGED}', host: '${target}' } };
    const tell = (localPort, status, body) => console.log(JSON.stringify({ localPort, status, body }));
    const read = (response, localPort) => {
      let body = '';
      response.on('data', (data) => (body += data)).on('end', () => tell(localPort, response.statusCode, body));
    };
    if ('${way}' === 'absolute') {
      http.get({ ...via, path: 'http://${target}/' }, (response) => read(response, response.socket.localPort));
    } else {
      http.request({ ...via, method: 'CONNECT', path: '${target}' }).on('connect', (answer, socket) => {
        const { localPort } = socket;
        if (answer.statusCode !== 200) { tell(localPort, answer.statusCode, ''); socket.destroy(); return; }
        http.get({ createConnection: () => socket, headers: { host: '${target}', connection: 'close' }, path: '/' },
          (response) => read(response, localPort));
      }).end();
    }`;
  const output = await runIn(pod.netnsName, process.execPath, ['-e', code]);
  return JSON.parse(output) as { localPort: number; status: number; body: string };
}

describe.each(['absolute', 'tunnel'] as const)('by %s', (way) => {
  it.each(FAMILIES)(
    'IPv%i: the pod is let through as itself, and the agent says that it dialled the proxy',
    async (family) => {
      const { localPort, status, body } = await ask(web, family, way);
      expect(status).toBe(200);
      if (way === 'absolute') {
        expect((JSON.parse(body) as { headers: object }).headers).toMatchObject({
          'x-spiffe-id': [spiffeId('web')],
        });
      }
      const peer = `${bracket(web.ips[family])}:${localPort}`;
      const method = way === 'absolute' ? 'GET' : 'CONNECT';
      const line = `explicit spiffe=${spiffeId('web')} peer=${peer} asked=${method} ${bracket(REMOTE[family])}:${HTTP_PORT} status=200`;
      await waitFor(`"${line}" in the access log`, () => envoy.log().includes(line));
      const src = { ip: web.ips[family], port: localPort };
      const resolved = await agent.client.resolve({
        proto: 'tcp',
        src,
        dst: { ip: NODE[family], port: PORT },
      });
      expect(resolved).toMatchObject({
        mode: 'EXPLICIT',
        assurance: 'DATAPATH_RECORDED',
        instance: 'default',
        workload: { spiffeId: spiffeId('web') },
      });
    },
  );

  it('who is nobody that the agent has seen is refused', async () => {
    expect(await ask(stranger, 4, way)).toMatchObject({ status: 403 });
  });
});
