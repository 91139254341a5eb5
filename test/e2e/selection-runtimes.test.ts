/** The same selection, rehearsal and explicit mode for pods of every runtime: what they rest on is at the host's side. */

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Containerd } from '../lab/containerd.js';
import { waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { MicroVms } from '../lab/microvm.js';
import { type LabPod, reply } from '../lab/pod.js';
import { RUNTIMES } from '../lab/runtimes.js';
import { OUTBOUND, staticPod, TestAgent, TestProxy } from './agent.js';

const FAMILIES = [4, 6] as const;
const NODE = { 4: '10.199.0.1', 6: 'fd00:199::1' } as const;
const OTHER_PORT = 81;
const EXPLICIT_PORT = 3_128;

let lab: Lab;
let agent: TestAgent;
const pods = new Map<string, LabPod>();
const said = new Map<string, object>();
const pod = (name: string) => pods.get(name) as LabPod;
const bracket = (ip: string) => (ip.includes(':') ? `[${ip}]` : ip);

function say(name: string, annotations: Record<string, string>): void {
  said.set(name, staticPod(pod(name), { annotations }));
  agent.writePods([...said.values()]);
}

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve(OTHER_PORT);
  const containerd = await Containerd.start(lab, 'ptp');
  const microvms = new MicroVms(lab, 'ptp', containerd.network);
  agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' }, cri: { endpoint: `unix://${containerd.socket}` } },
    instances: [
      {
        name: 'default',
        outbound: [...OUTBOUND],
        explicit: [`0.0.0.0:${EXPLICIT_PORT}`, `[::]:${EXPLICIT_PORT}`],
      },
    ],
  });
  const started = RUNTIMES.map((runtime) =>
    runtime === 'rund' ? microvms.runPod({ name: runtime }) : containerd.runPod({ name: runtime, runtime }),
  );
  for (const one of await Promise.all(started)) {
    pods.set(one.name, one);
    said.set(one.name, staticPod(one));
  }
  agent.writePods([...said.values()]);
  await agent.start();
  await new TestProxy(lab, agent).start();
  const proxy = lab.daemon(lab.node, 'explicit', await buildApp(), ['serve', String(EXPLICIT_PORT)]);
  await proxy.logged(/"serving":true/);
  await agent.adopted(2);
  await Promise.all(RUNTIMES.map((name) => agent.reaches(name, 'INTERCEPTED')));
});

afterAll(() => lab?.close());

/** Whom the server saw. */
async function sent(name: string, ip: string, port: number): Promise<'direct' | 'intercepted'> {
  const dialled = reply(await pod(name).app(['dial', ip, String(port)], 60_000));
  expect(dialled).toMatchObject({ ok: true });
  const own = `${bracket(pod(name).ips[ip.includes(':') ? 6 : 4])}:${dialled.localPort}`;
  return (dialled.server as { peer: string }).peer === own ? 'direct' : 'intercepted';
}

describe.each(RUNTIMES)('%s', (name) => {
  it.each(FAMILIES)(
    'IPv%i: goes by the ports and the addresses that its pod names, while it runs',
    async (family) => {
      const dst = REMOTE[family];
      say(name, { 'nodesentry.io/outbound': '80' });
      await waitFor(
        'the other port to be left alone',
        async () => (await sent(name, dst, OTHER_PORT)) === 'direct',
      );
      expect(await sent(name, dst, 80)).toBe('intercepted');
      say(name, { 'nodesentry.io/exclude-outbound-cidrs': `${dst}/${family === 4 ? 32 : 128}` });
      await waitFor('it to be excluded', async () => (await sent(name, dst, 80)) === 'direct');
      say(name, {});
      await waitFor(
        'it to be intercepted',
        async () => (await sent(name, dst, OTHER_PORT)) === 'intercepted',
      );
    },
  );

  it.each(FAMILIES)('IPv%i: dials the proxy by itself, which is told who it is', async (family) => {
    expect(await sent(name, NODE[family], EXPLICIT_PORT)).toBe('direct');
    const flow = await waitFor('its record', async () =>
      (await agent.client.flows(1_000)).find(
        ({ podName, mode, src }) =>
          podName === name && mode === 'EXPLICIT' && src.includes(pod(name).ips[family]),
      ),
    );
    expect(flow).toMatchObject({ direction: 'EGRESS', instance: 'default' });
  });

  it('is only observed where that is asked for', async () => {
    say(name, { 'nodesentry.io/mode': 'observe' });
    await agent.reaches(name, 'OBSERVED');
    expect(await sent(name, REMOTE[4], 80)).toBe('direct');
    say(name, {});
    await agent.reaches(name, 'INTERCEPTED');
    expect(await sent(name, REMOTE[4], 80)).toBe('intercepted');
  });
});
