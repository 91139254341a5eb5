/** The agent is killed in the middle of traffic, and comes back: no request fails, and nothing is changed in the kernel. */

import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { BpfLink, tcxSupported } from '../../src/native/bpf.js';
import { attachedOn } from '../lab/attached.js';
import { Capture, POD_DIALS } from '../lab/capture.js';
import { Containerd } from '../lab/containerd.js';
import { inNetns, runIn, tryRun, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { Load, Pauses } from '../lab/load.js';
import { NamespacePods } from '../lab/namespaces.js';
import { patient } from '../lab/patience.js';
import { type LabPod, reply } from '../lab/pod.js';
import { enrolled, TestAgent, TestProxy } from './agent.js';
import { BOTH_WAYS, INBOUND_WORDS } from './scene.js';

describe('an agent that is killed', () => {
  let lab: Lab;
  let agent: TestAgent;
  let proxy: TestProxy;
  let pod: LabPod;
  let uplink: Capture;

  beforeAll(async () => {
    lab = await Lab.create();
    await lab.serve();
    const containerd = await Containerd.start(lab, 'ptp');
    agent = new TestAgent(lab, {
      sources: { cri: { endpoint: `unix://${containerd.socket}` } },
      instances: [BOTH_WAYS],
    });
    pod = await containerd.runPod({ name: 'web', runtime: 'runc', labels: enrolled('web') });
    expect(reply(await pod.app(['server', '80']))).toMatchObject({ serving: true });
    await agent.start();
    // As long as an agent may take to start here, under load.
    proxy = new TestProxy(lab, agent);
    await proxy.start(...INBOUND_WORDS, '--resolve-timeout-ms', String(patient(10_000)));
    await agent.adopted(4);
    await agent.reaches('web', 'INTERCEPTED');
    uplink = await Capture.start(lab, lab.node, 'uplink', POD_DIALS);
  });

  afterAll(async () => {
    await lab?.close();
  });

  /** Ids of what is loaded and attached: they differ if anything was replaced. */
  async function kernelState(): Promise<string> {
    const [rules, rules6] = [await inNode('ip', 'rule'), await inNode('ip', '-6', 'rule')];
    const table = await inNode('nft', '-a', 'list', 'table', 'inet', 'nodesentry');
    const pinned = (folder: string) => readdirSync(join(agent.bpffs, 'v1', folder)).sort();
    const links = pinned('links').map((name) => {
      const link = BpfLink.openPinned(join(agent.bpffs, 'v1/links', name));
      try {
        return `${name}: ${link.id} runs ${link.programId}`;
      } finally {
        link.close();
      }
    });
    const attached = await attachedOn(lab);
    const pins = [...pinned('programs'), ...pinned('maps')];
    return JSON.stringify({ rules, rules6, table, links, attached, pins }, null, 1);
  }

  function inNode(...[command = '', ...words]: readonly string[]): Promise<string> {
    return runIn(lab.node, command, words);
  }

  it('fails no request and holds none up, and changes nothing in the kernel', async () => {
    const before = await kernelState();
    const { generation, uid } = (await agent.workload('web')) ?? { generation: 0, uid: '' };
    const flowing = await Load.start(lab, [
      { pod, kind: 'keepalive', family: 4, everyMs: 4 },
      { pod, kind: 'handshakes', family: 6, everyMs: 5 },
      { pod, kind: 'connects', family: 4, everyMs: 20 },
      { pod, kind: 'keepalive', family: 6, everyMs: 4, inbound: true },
      { pod, kind: 'handshakes', family: 4, everyMs: 5, inbound: true },
      { pod, kind: 'connects', family: 6, everyMs: 20, inbound: true },
    ]);
    const pauses = await Pauses.undisturbed(flowing, async () => {
      for (let n = 0; n < 4; n++) {
        await agent.cli('status');
      }
    });
    await agent.stop('SIGKILL');
    await agent.start();
    pauses.check('SIGKILL and a restart', await flowing.stop());
    expect(await escaped()).toEqual([]);

    await agent.reaches('web', 'INTERCEPTED');
    expect(await kernelState()).toBe(before);
    expect(await agent.workload('web')).toMatchObject({ generation, uid });
    expect(agent.log()).not.toContain('pod programmed');
    expect(agent.log()).toContain('"takenOver":true');
  });

  async function escaped(): Promise<string[]> {
    return uplink.flows();
  }

  it('leaves pods intercepted while no agent runs', async () => {
    const started = (await agent.packets('web')).FLOW_STARTED ?? 0;
    await agent.stop('SIGTERM');
    // It reaches the proxy, which asks the kernel whose it is: it did not get past.
    const { ok, localPort } = reply(await pod.app(['dial', REMOTE[4], '80'], 30_000));
    expect(ok).toBe(true);
    expect(await proxy.flowFrom(`${pod.ips[4]}:${localPort}`)).toMatchObject({ by: 'getsockopt' });
    await agent.start();
    await agent.reaches('web', 'INTERCEPTED');
    expect((await agent.packets('web')).FLOW_STARTED).toBe(started + 1);
    expect(await escaped()).toEqual([]);
  });

  it('refuses a second agent on the same run directory, in one line', async () => {
    const { code, stderr } = await agent.cli('agent');
    expect(code).toBe(1);
    expect(stderr.trim().split('\n')).toHaveLength(1);
    expect(stderr).toContain('already running');
  });

  it('refuses to start without a capability, and names it', async () => {
    const own = ['--run-dir', `${lab.directory}/other`, '--bpffs', `${lab.directory}/other-bpf`];
    const words = [...own, '--config', agent.configPath, 'agent'];
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
    // At once, where links tell.
    const attached = () => {
      if (!tcxSupported()) {
        return attachedOn(lab).then(({ length }) => length);
      }
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
