/**
 * Proxies for HTTP, run with the files of examples/, that ask the agent by GET /v1/authorize who has opened a connection: the
 * server is told the pod's SPIFFE ID and nothing that the app has made up, and who has no identity gets nowhere.
 */

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createNetwork } from '../lab/cni.js';
import { type Daemon, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { OUTBOUND, staticPod, TestAgent } from './agent.js';
import { appIn, echo, echoed, exampleFor, get, HTTP_PORT, spiffeId } from './http-app.js';

const FAMILIES = [4, 6] as const;
const FORGED = ['x-spiffe-id:spiffe://cluster.local/ns/kube-system/sa/admin', 'X-Spiffe-Id:another'];
const CLAIMS = ['x-forwarded-for:10.66.0.99', 'x-real-ip:10.66.0.99', 'forwarded:for=10.66.0.99'];

interface Proxy {
  readonly name: string;
  readonly outbound: readonly string[];
  readonly command: string;
  words(): readonly string[];
  log(daemon: Daemon): string;
  /** What is answered while nobody can be asked. */
  readonly unasked: number;
}

let lab: Lab;
let agent: TestAgent;
const pods = new Map<string, PlainPod>();
const pod = (name: string) => pods.get(name) as PlainPod;
const at = (ip: string, port: unknown) => (ip.includes(':') ? `[${ip}]:${port}` : `${ip}:${port}`);

const PROXIES: readonly Proxy[] = [
  {
    name: 'nginx',
    outbound: ['0.0.0.0:15001', '[::]:15001'],
    command: 'nginx',
    words: () => [
      ...['-p', lab.directory, '-c', exampleFor(lab, agent, 'nginx-identity.conf')],
      // Nobody else may look into the lab's folder.
      ...['-e', 'stderr', '-g', 'daemon off; user root;'],
    ],
    log: () => {
      const path = join(lab.directory, 'taken.log');
      return existsSync(path) ? readFileSync(path, 'utf8') : '';
    },
    unasked: 500,
  },
  {
    name: 'HAProxy',
    outbound: OUTBOUND,
    command: 'haproxy',
    words: () => {
      exampleFor(lab, agent, 'haproxy-identity.lua');
      return ['-C', lab.directory, '-f', exampleFor(lab, agent, 'haproxy-identity.cfg')];
    },
    log: (daemon) => daemon.log(),
    unasked: 503,
  },
];

beforeAll(async () => {
  lab = await Lab.create();
  await echo(lab, HTTP_PORT);
  const network = createNetwork(lab, 'ptp');
  for (const name of ['web', 'db']) {
    pods.set(name, await runPlainPod(lab, network, name));
  }
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
});

afterAll(async () => {
  await lab?.close();
});

describe.each(PROXIES)('$name', ({ name: proxy, outbound, command, words, log, unasked }) => {
  let daemon: Daemon;

  beforeAll(async () => {
    agent.writeConfig({ instances: [{ name: 'default', outbound }] });
    agent.writePods([...pods.values()].map((one) => staticPod(one)));
    await agent.start();
    daemon = lab.daemon(lab.node, proxy, command, words());
    await agent.adopted(2);
    await Promise.all([...pods.keys()].map((name) => agent.reaches(name, 'INTERCEPTED')));
  });

  afterAll(async () => {
    // The next one listens elsewhere.
    agent.writePods([]);
    await waitFor('the pods to be let go', () => agent.endpoints().length === 0, 10_000);
    await daemon?.stop();
    await agent.stop();
  });

  describe.each(['web', 'db'])('%s', (name) => {
    it.each(FAMILIES)('IPv%i: the server is told the pod, and nothing that the app says', async (family) => {
      for (const headers of [[], FORGED, CLAIMS, [...CLAIMS, ...FORGED]]) {
        const answer = await get(pod(name), REMOTE[family], headers);
        expect(answer).toMatchObject({ status: 200 });
        expect(echoed(answer)['x-spiffe-id']).toEqual([spiffeId(name)]);
        const line = `spiffe=${spiffeId(name)} pod=default/${name} status=200 peer=${at(pod(name).ips[family], answer.localPort)} dialled=${at(REMOTE[family], HTTP_PORT)}`;
        await waitFor(`"${line}" in the access log`, () => log(daemon).split('\n').includes(line));
      }
    });
  });

  it('who is nobody of the node is refused, whatever it claims', async () => {
    const answer = await get(appIn(lab.node), OUTBOUND[0].split(':')[0] ?? '', FORGED, 15_001);
    expect(answer).toMatchObject({ status: 403 });
    expect(answer.body).not.toContain('spiffe');
  });

  it('while the agent is down nobody gets anywhere, and afterwards everybody', async () => {
    await agent.stop('SIGKILL');
    expect(await get(pod('web'), REMOTE[4], FORGED)).toMatchObject({ status: unasked });
    await agent.start();
    await waitFor('an answer', async () => (await get(pod('web'), REMOTE[4], FORGED)).status === 200);
  });
});
