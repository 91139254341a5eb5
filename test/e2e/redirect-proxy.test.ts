/** A proxy made for iptables REDIRECT, examples/mosn/redirect.go, is the node's: it learns by SO_ORIGINAL_DST what was dialled. */

import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { createNetwork } from '../lab/cni.js';
import { type Daemon, run, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { OUTBOUND, staticPod, TestAgent } from './agent.js';
import { appIn } from './http-app.js';

const SOURCE = join(import.meta.dirname, '../../examples/mosn/redirect.go');

let lab: Lab;
let web: PlainPod;
let proxy: Daemon;

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve(8_080);
  web = await runPlainPod(lab, createNetwork(lab, 'ptp'), 'web');
  const agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' } },
    instances: [{ name: 'default', outbound: [OUTBOUND[0]] }],
  });
  agent.writePods([staticPod(web)]);
  await agent.start();
  const go = (await run('scripts/find-go', [])).trim();
  const binary = join(lab.directory, 'redirect');
  await run('env', ['CGO_ENABLED=0', go, 'build', '-o', binary, SOURCE]);
  proxy = lab.daemon(lab.node, 'redirect', binary, [OUTBOUND[0]]);
  await agent.adopted(1);
  await waitFor('the pod to be intercepted', async () => {
    const { state } = (await agent.workload('web'))?.interception ?? {};
    return state === 'INTERCEPTED' || state === 'DEGRADED';
  });
});

afterAll(async () => {
  await lab?.close();
});

it.each([80, 8_080])('a pod reaches what it dialled, port %i, through the proxy', async (port) => {
  const dialled = reply(await web.app(['dial', REMOTE[4], String(port)]));
  expect(dialled).toMatchObject({ ok: true });
  // It came from the node: the proxy dialled it.
  expect((dialled.server as { peer: string }).peer).toMatch(/^10\.199\.0\.1:/);
  const line = `peer=${web.ips[4]}:${dialled.localPort} dialled=${REMOTE[4]}:${port} error=<nil>`;
  await waitFor(`"${line}"`, () => proxy.log().split('\n').includes(line));
});

it('a stream comes through whole', async () => {
  const bytes = 4 << 20;
  expect(reply(await web.app(['fetch', REMOTE[4], '80', String(bytes)]))).toMatchObject({ ok: true, bytes });
});

it('a connection that nobody has intercepted leads nowhere', async () => {
  expect(reply(await appIn(lab.node).app(['dial', '127.0.0.1', '15001']))).toMatchObject({ ok: false });
});
