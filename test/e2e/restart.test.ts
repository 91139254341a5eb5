/** The agent is killed in the middle of traffic, and comes back: no request fails, and nothing is changed in the kernel. */

import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Containerd } from '../lab/containerd.js';
import { inNetns, runIn, tryRun, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { NamespacePods } from '../lab/namespaces.js';
import { type LabPod, reply } from '../lab/pod.js';
import { enrolled, TestAgent, TestProxy } from './agent.js';

describe('an agent that is killed', () => {
  let lab: Lab;
  let agent: TestAgent;
  let pod: LabPod;

  beforeAll(async () => {
    lab = await Lab.create();
    await lab.serve();
    const containerd = await Containerd.start(lab, 'ptp');
    agent = new TestAgent(lab, { sources: { cri: { endpoint: `unix://${containerd.socket}` } } });
    pod = await containerd.runPod({ name: 'web', runtime: 'runc', labels: enrolled('web') });
    await agent.start();
    await new TestProxy(lab, agent).start();
    await agent.adopted(2);
    await agent.reaches('web', 'INTERCEPTED');
  });

  afterAll(async () => {
    await lab?.close();
  });

  /** Ids of what is loaded and attached: they differ if anything was replaced. */
  async function kernelState(): Promise<string> {
    const links = await runIn(lab.node, 'ip', ['-o', 'link']);
    const rules = await runIn(lab.node, 'ip', ['rule']);
    const table = await runIn(lab.node, 'nft', ['-a', 'list', 'table', 'inet', 'nodesentry']);
    const pinned = ['pod_egress', 'bridge_steer', 'socket_lookup'].map(async (name) => {
      const { stdout } = await tryRun('sh', ['-c', `ls ${agent.bpffs}/v1/programs | grep ^${name}-`]);
      const path = `${agent.bpffs}/v1/programs/${stdout.trim()}`;
      return runIn(lab.node, 'bpftool', ['-j', 'prog', 'show', 'pinned', path]);
    });
    const ids = (await Promise.all(pinned)).map((text) => (JSON.parse(text) as { id: number }).id);
    const linkIds = await tryRun('sh', [
      '-c',
      `for l in ${agent.bpffs}/v1/links/*; do echo $l; bpftool -j link show pinned $l | tr -d '\\n' | sed 's/.*"id":\\([0-9]*\\).*/\\1/'; echo; done`,
    ]);
    return JSON.stringify({ links, rules, table, ids, linkIds: linkIds.stdout }, null, 1);
  }

  it('fails none of 1,000 keep-alive requests and none of 200 new connections', async () => {
    const before = await kernelState();
    const { generation, uid } = (await agent.workload('web')) ?? { generation: 0, uid: '' };
    const [keepalive, connects] = [
      pod.app(['keepalive', REMOTE[4], '80', '1000', '4000'], 60_000),
      pod.app(['connects', REMOTE[4], '80', '200', '20000'], 60_000),
    ];
    await new Promise((resolve) => setTimeout(resolve, 1_000)); // well into the traffic
    await agent.stop('SIGKILL');
    await agent.start();
    expect(reply(await keepalive)).toMatchObject({ ok: true, done: 1000, failures: 0 });
    expect(reply(await connects)).toMatchObject({ ok: true, done: 200, failures: 0 });

    await agent.reaches('web', 'INTERCEPTED');
    expect(await kernelState()).toBe(before);
    expect(await agent.workload('web')).toMatchObject({ generation, uid });
    expect(agent.log()).not.toContain('pod programmed');
    expect(agent.log()).toContain('"takenOver":true');
  });

  it('leaves pods intercepted while no agent runs', async () => {
    const started = (await agent.packets('web')).FLOW_STARTED ?? 0;
    await agent.stop('SIGTERM');
    // It reaches the proxy, which can ask nobody whose it is and so resets it: it did not get past.
    const dialled = await pod.app(['dial', REMOTE[4], '80'], 30_000);
    expect(reply(dialled).ok).toBe(false);
    await agent.start();
    await agent.reaches('web', 'INTERCEPTED');
    expect((await agent.packets('web')).FLOW_STARTED).toBe(started + 1);
  });

  it('refuses a second agent on the same run directory, in one line', async () => {
    const { code, stderr } = await agent.cli('agent');
    expect(code).toBe(1);
    expect(stderr.trim().split('\n')).toHaveLength(1);
    expect(stderr).toContain('already running');
  });

  it('refuses to start without a capability, and names it', async () => {
    const words = ['--run-dir', `${lab.directory}/other`, '--config', agent.configPath, 'agent'];
    const { code, stderr } = await tryRun(
      ...inNetns(lab.node, 'capsh', [
        '--drop=cap_net_admin',
        '--',
        '-c',
        `bin/nodesentry ${words.join(' ')}`,
      ]),
    );
    expect(code).toBe(1);
    expect(stderr).toContain('CAP_NET_ADMIN');
    expect(stderr.trim().split('\n')).toHaveLength(1);
  });
});

describe('an agent that starts on a node full of pods', () => {
  const PODS = 60;
  let lab: Lab;
  let agent: TestAgent;

  beforeAll(async () => {
    lab = await Lab.create();
    agent = new TestAgent(lab, { sources: { cni: {} }, interception: { enrol: 'all' } });
    await agent.start();
    const pods = new NamespacePods(lab, { socket: join(agent.runDir, 'cni.sock') });
    await Promise.all(Array.from({ length: PODS }, () => pods.add()));
    await agent.stop();
    const { code } = await agent.cli('cleanup');
    expect(code).toBe(0);
  });

  afterAll(async () => {
    await lab?.close();
  });

  it('is ready when the program is at the interface of every pod, and not before', async () => {
    const attached = () => {
      const links = readdirSync(join(agent.bpffs, 'v1/links'));
      return links.filter((name) => name.startsWith('egress-')).length;
    };
    const starting = agent.start({ ready: false });
    const then = waitFor('the agent to be ready', () =>
      agent.client.check('ready').then(attached, () => undefined),
    );
    expect(await then).toBe(PODS);
    await starting;
  });
});
