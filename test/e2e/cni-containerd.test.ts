/** A real containerd that calls nodesentry-cni after the lab's own plugins; a stand-in answers for the agent. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { ConflistKeeper } from '../../src/cni/keeper.js';
import { uninstall } from '../../src/cni/uninstall.js';
import { Containerd } from '../lab/containerd.js';
import { waitFor } from '../lab/exec.js';
import { Lab } from '../lab/lab.js';
import { AgentStandIn, type Behaviour, INTERCEPTED, PLUGIN } from '../unit/cni-plugin-lab.js';

let lab: Lab;
let containerd: Containerd;
let agent: AgentStandIn;
let keeper: ConflistKeeper;
let original: string;
let behaviour: Behaviour;
const stop = new AbortController();

const conflist = () => join(containerd.network.directory, '10-lab.conflist');
const places = () => ({
  confDir: containerd.network.directory,
  binDir: containerd.network.plugins,
  stateDir: join(lab.directory, 'cni-state'),
  plugin: PLUGIN,
});

/** What containerd has loaded, not what is in the file. */
async function containerdCallsUs(): Promise<boolean> {
  const { info } = (await containerd.call('Status', { verbose: true })) as { info: { cniconfig?: string } };
  return info.cniconfig?.includes('nodesentry-cni') === true;
}

beforeAll(async () => {
  lab = await Lab.create();
  containerd = await Containerd.start(lab, 'ptp');
  const socket = join(lab.directory, 'cni.sock');
  behaviour = INTERCEPTED;
  agent = await AgentStandIn.listen(socket, (...call) => behaviour(...call));
  lab.cleanup.add('the stand-in of the agent', () => agent.close());
  lab.cleanup.add('the keeper', () => stop.abort());
  original = JSON.stringify({
    cniVersion: '0.4.0',
    name: 'lab-of-a-cni-that-rewrites',
    plugins: [
      {
        type: 'ptp',
        ipam: {
          type: 'host-local',
          dataDir: join(lab.directory, 'ipam-other'),
          ranges: [[{ subnet: '10.66.1.0/24' }], [{ subnet: 'fd00:66:1::/64' }]],
          routes: [{ dst: '0.0.0.0/0' }],
        },
      },
    ],
  });
  const log = { info: () => undefined, warn: () => undefined, error: () => undefined };
  keeper = new ConflistKeeper({ ...places(), socket, failure: 'closed', timeoutMs: 5_000, log });
  keeper.start(stop.signal);
  await waitFor('containerd to load the chain', containerdCallsUs, 30_000);
});

afterAll(async () => {
  await lab?.close();
});

it('a pod is told to the agent with its identity, its annotations and its addresses, before it runs', async () => {
  const annotations = { 'nodesentry.io/intercept': 'enabled', 'example.com/süß': '🎈' };
  const pod = await containerd.runPod({ name: 'web-0', namespace: 'shop', runtime: 'runc', annotations });
  expect(agent.requests).toHaveLength(1);
  const [request] = agent.requests;
  expect(request).toMatchObject({
    version: 1,
    command: 'ADD',
    netns: pod.netns,
    ifname: 'eth0',
    podUid: pod.uid,
    podNamespace: 'shop',
    podName: 'web-0',
    annotations,
    prevResult: { cniVersion: '0.4.0', interfaces: expect.any(Array) },
  });
  const result = request?.prevResult as { ips: { address: string }[] } | undefined;
  expect(result?.ips.map(({ address }) => address.split('/')[0])).toEqual([pod.ips[4], pod.ips[6]]);
  await pod.stop();
  expect(agent.requests.slice(1).map(({ command }) => command)).toContain('DEL');
  expect(agent.requests[1]).toMatchObject({ containerId: request?.containerId, podUid: pod.uid });
});

it('a pod without annotations starts like any other', async () => {
  const pod = await containerd.runPod({ name: 'bare', runtime: 'runc' });
  await pod.stop();
});

it('a pod that the agent refuses does not start, and says why; its remains are taken away', async () => {
  behaviour = (_request, connection) =>
    void connection.end(JSON.stringify({ ok: false, code: 107, msg: 'no place', retry: false }));
  const refused = containerd.runPod({ name: 'refused', runtime: 'runc' });
  await expect(refused).rejects.toThrow(/refused: no place \(failure: closed/);
  behaviour = INTERCEPTED;
  const pod = await containerd.runPod({ name: 'refused', runtime: 'runc' });
  await pod.stop();
});

it('after the primary CNI has rewritten its file the next pod is told to the agent again', async () => {
  const before = agent.requests.length;
  writeFileSync(conflist(), original);
  await waitFor('the repair', () => keeper.repairs === 1);
  await waitFor(
    'containerd to load it',
    async () => {
      const { info } = (await containerd.call('Status', { verbose: true })) as {
        info: { cniconfig: string };
      };
      return /rewrites.*nodesentry-cni/s.test(info.cniconfig);
    },
    30_000,
  );
  const pod = await containerd.runPod({ name: 'after', runtime: 'runc' });
  expect(agent.requests[before]).toMatchObject({ command: 'ADD', podUid: pod.uid });
  await pod.stop();
});

it('once uninstalled pods start without us', async () => {
  const before = agent.requests.length;
  stop.abort();
  uninstall(places());
  await waitFor('containerd to load it', async () => !(await containerdCallsUs()), 30_000);
  const pod = await containerd.runPod({ name: 'free', runtime: 'runc' });
  await pod.stop();
  expect(agent.requests).toHaveLength(before);
});
