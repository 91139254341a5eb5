/** Pods that dial their node's proxy by themselves: recorded and resolved like any intercepted flow, and left to the proxy. */

import { describe, expect, it } from 'vitest';
import { waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { REMOTE } from '../lab/lab.js';
import { Load } from '../lab/load.js';
import { reply } from '../lab/pod.js';
import { OUTBOUND } from './agent.js';
import { useScene } from './scene.js';

const FAMILIES = [4, 6] as const;
const PODS = ['routed', 'bridged'] as const;
/** The node's, on the way to the remote. */
const NODE = { 4: '10.199.0.1', 6: 'fd00:199::1' } as const;
const PORT = 3_128;

const scene = useScene({
  pods: [{ name: 'routed' }, { name: 'bridged', topology: 'bridge' }],
  agent: {
    instances: [{ name: 'default', outbound: [...OUTBOUND], explicit: [`0.0.0.0:${PORT}`, `[::]:${PORT}`] }],
  },
  prepare: async ({ lab }) => {
    const proxy = lab.daemon(lab.node, 'explicit', await buildApp(), ['serve', String(PORT)]);
    await proxy.logged(/"serving":true/);
  },
});

const bracket = (ip: string) => (ip.includes(':') ? `[${ip}]` : ip);
const EXPLICIT = {
  mode: 'EXPLICIT',
  direction: 'EGRESS',
  instance: 'default',
  assurance: 'DATAPATH_RECORDED',
};

async function dial(name: string, ip: string, port: number) {
  const dialled = reply(await scene.pod(name).app(['dial', ip, String(port)]));
  expect(dialled).toMatchObject({ ok: true });
  return { localPort: Number(dialled.localPort), peer: (dialled.server as { peer: string }).peer };
}

describe.each(PODS)('a %s pod', (name) => {
  const resolved = (family: 4 | 6, port: number, dst: { ip: string; port: number }) =>
    scene.agent.client.resolve({ proto: 'tcp', src: { ip: scene.pod(name).ips[family], port }, dst });

  it.each(FAMILIES)(
    'IPv%i: dials the proxy itself, which is told who it is as of any other flow',
    async (family) => {
      const explicit = await dial(name, NODE[family], PORT);
      const pod = scene.pod(name);
      expect(explicit.peer).toBe(`${bracket(pod.ips[family])}:${explicit.localPort}`);
      const answer = await resolved(family, explicit.localPort, { ip: NODE[family], port: PORT });
      expect(answer).toMatchObject({ ...EXPLICIT, workload: { podName: name } });
      const other = await dial(name, REMOTE[family], 80);
      const intercepted = await resolved(family, other.localPort, { ip: REMOTE[family], port: 80 });
      expect(intercepted).toMatchObject({ ...EXPLICIT, mode: 'INTERCEPTED' });
      expect(intercepted.workload).toEqual(answer.workload);
    },
  );

  it('is told what would become of it, and the flow is listed', async () => {
    const { localPort } = await dial(name, NODE[4], PORT);
    const explained = await scene.agent.client.explain(name, { dst: { ip: NODE[4], port: PORT } });
    expect(explained).toMatchObject({ outcome: 'EXPLICIT', instance: 'default', inForce: true });
    const proxyPort = { dst: { ip: NODE[4], port: 15_001 } };
    expect(await scene.agent.client.explain(name, proxyPort)).toMatchObject({ outcome: 'RESET' });
    const flows = await scene.agent.client.flows(100);
    const src = `${scene.pod(name).ips[4]}:${localPort}`;
    expect(flows.find((flow) => flow.src === src)).toMatchObject({
      mode: 'EXPLICIT',
      verdict: 'EXPLICIT',
      podName: name,
    });
    // Where it asked the proxy to go, that may tell.
    const told = { src, dst: `${NODE[4]}:${PORT}`, destination: 'shop.example:443' };
    await scene.agent.client.tell(told);
    expect((await scene.agent.client.flows(100)).find((flow) => flow.src === src)).toMatchObject({
      asked: 'shop.example:443',
    });
    expect((await scene.agent.cli('flows')).stdout).toContain(`${NODE[4]}:${PORT} (shop.example:443)`);
  });

  it('keeps its connections while the agent is killed and comes back, and while it is taken out', async () => {
    const at = { ip: NODE[4], port: PORT };
    const load = await Load.start(scene.lab, [
      { pod: scene.pod(name), family: 4, everyMs: 5, kind: 'keepalive', at },
      { pod: scene.pod(name), family: 4, everyMs: 20, kind: 'connects', at },
    ]);
    await scene.agent.stop('SIGKILL');
    await scene.agent.start();
    await scene.agent.reaches(name, 'INTERCEPTED');
    scene.describe(scene.pod(name), { annotations: { 'nodesentry.io/intercept': 'disabled' } });
    await scene.agent.reaches(name, 'NOT_ENROLLED');
    scene.describe(scene.pod(name));
    await scene.agent.reaches(name, 'INTERCEPTED');
    expect((await load.stop()).filter(({ failures }) => failures > 0)).toEqual([]);
    await load.end();
  });
});

it('another port of the node is none of it', async () => {
  const { lab } = scene;
  const server = lab.daemon(lab.node, 'plain', await buildApp(), ['serve', String(PORT + 1)]);
  await server.logged(/"serving":true/);
  await waitFor('an intercepted flow', async () => {
    const { localPort } = await dial('routed', NODE[4], PORT + 1);
    const flows = await scene.agent.client.flows(100);
    return flows.find(({ src }) => src.endsWith(`:${localPort}`))?.mode === 'INTERCEPTED';
  });
});
