/**
 * The agent is killed, stopped, upgraded and downgraded under load: no request fails, no packet of a pod leaves the
 * node, and flows that were open before keep their name. The judge of what leaves is a capture of the uplink.
 */

import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { BpfLink, BpfMap, programInfo } from '../../src/native/bpf.js';
import { Capture, POD_DIALS, POD_TCP } from '../lab/capture.js';
import { Containerd } from '../lab/containerd.js';
import { runIn, tryRun, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { Load, Pauses } from '../lab/load.js';
import { type LabPod, reply } from '../lab/pod.js';
import { enrolled, staticPod, TestAgent, TestProxy } from './agent.js';
import { BOTH_WAYS, INBOUND_WORDS } from './scene.js';

const BUILD = join(import.meta.dirname, '../../build');
const V1 = join(BUILD, 'bpf');
const V1B = join(BUILD, 'bpf-v1b');
const V2 = join(BUILD, 'bpf-v2');

let lab: Lab;
let agent: TestAgent;
let proxy: TestProxy;
let uplink: Capture;
let pauses: Pauses;
let pods: readonly [LabPod, LabPod];

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  const [ptp, bridge] = [await Containerd.start(lab, 'ptp'), await Containerd.start(lab, 'bridge')];
  pods = [
    await ptp.runPod({ name: 'web', runtime: 'runc', labels: enrolled('web') }),
    await bridge.runPod({ name: 'api', runtime: 'runc', labels: enrolled('api') }),
  ];
  for (const pod of pods) {
    expect(reply(await pod.app(['server', '80']))).toMatchObject({ serving: true });
  }
  // Whoever reads the capture must be able to see a pod that does escape.
  const before = await Capture.start(lab, lab.node, 'uplink', POD_TCP);
  expect(reply(await pods[0].app(['dial', REMOTE[4], '80']))).toMatchObject({ ok: true });
  expect(await escaped(before)).not.toEqual([]);
  await before.stop();

  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } }, instances: [BOTH_WAYS] });
  agent.writePods(pods.map((pod) => staticPod(pod)));
  await agent.start();
  proxy = new TestProxy(lab, agent);
  // It waits for an answer about each new connection: on a busy machine an agent needs its time to start.
  await proxy.start(...INBOUND_WORDS, '--resolve-timeout-ms', '30000');
  await agent.adopted(4);
  await intercepted();
  uplink = await Capture.start(lab, lab.node, 'uplink', POD_DIALS);
  const flowing = await load();
  pauses = await Pauses.undisturbed(flowing, busy);
  await flowing.stop();
});

/** What starting an agent costs the machine, without one. */
async function busy(): Promise<void> {
  for (let n = 0; n < 4; n++) {
    await agent.cli('status');
  }
}

afterAll(async () => {
  await lab?.close();
});

async function escaped(by = uplink): Promise<string[]> {
  return by.flows();
}

async function intercepted(): Promise<void> {
  await agent.reaches('web', 'INTERCEPTED');
  await agent.reaches('api', 'INTERCEPTED');
}

async function generations(): Promise<unknown[]> {
  const workloads = await Promise.all(pods.map(({ name }) => agent.workload(name)));
  return workloads.map((workload) => [workload?.uid, workload?.generation]);
}

/** Requests and new connections of both pods, and to them, in both families. */
function load(): Promise<Load> {
  const [web, api] = pods;
  return Load.start(lab, [
    { pod: web, kind: 'keepalive', family: 4, everyMs: 4 },
    { pod: api, kind: 'keepalive', family: 6, everyMs: 4 },
    { pod: web, kind: 'handshakes', family: 6, everyMs: 5 },
    { pod: api, kind: 'handshakes', family: 4, everyMs: 5 },
    { pod: web, kind: 'connects', family: 4, everyMs: 20 },
    { pod: api, kind: 'connects', family: 6, everyMs: 20 },
    { pod: web, kind: 'keepalive', family: 6, everyMs: 8, inbound: true },
    { pod: api, kind: 'handshakes', family: 4, everyMs: 10, inbound: true },
    { pod: web, kind: 'connects', family: 4, everyMs: 40, inbound: true },
    { pod: api, kind: 'connects', family: 6, everyMs: 40, inbound: true },
  ]);
}

/** Under load all through `change`: no request may fail, none may escape, none wait much longer than undisturbed. */
async function underLoad(what: string, change: () => Promise<void>): Promise<void> {
  const flowing = await load();
  const flowsBefore = proxy.flows().length;
  await waitFor('both pods to have new connections', () => proxy.flows().length > flowsBefore + 40, 30_000);
  await change();
  pauses.check(what, await flowing.stop());
  expect(await escaped()).toEqual([]);
}

async function replacedBy(objects: string, signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
  await agent.stop(signal);
  agent.objects = objects;
  await agent.start();
  await intercepted();
}

/** What runs by each of our links, whatever is pinned beside it. */
function running(): string[] {
  const [version = ''] = versions();
  const folder = join(agent.bpffs, version, 'links');
  return readdirSync(folder).map((name) => {
    const link = BpfLink.openPinned(join(folder, name));
    try {
      return `${name}: link ${link.id}, program ${link.programId} ${programInfo(link.programId)?.tag}`;
    } finally {
      link.close();
    }
  });
}

/** Without the kernel's own files at the root of a bpffs. */
function versions(): string[] {
  return readdirSync(agent.bpffs).filter((name) => !name.endsWith('.debug'));
}

it('serves the same load while nothing happens', async () => {
  await underLoad('nothing', busy);
});

it.each(['SIGKILL', 'SIGTERM'] as const)('survives %s and a restart', async (signal) => {
  const before = await generations();
  await underLoad(signal, () => replacedBy(V1, signal));
  expect(await generations()).toEqual(before);
});

it('other programs of the same layout, and back', async () => {
  const before = await generations();
  await underLoad('v1 to v1b', () => replacedBy(V1B, 'SIGKILL'));
  await underLoad('v1b to v1', () => replacedBy(V1));
  expect(await generations()).toEqual(before);
});

it('another layout: flows that are open keep their pod, its generation and their evidence', async () => {
  const before = await generations();
  const flowsBefore = proxy.flows().length;
  let open: { src: string; dst: string }[] = [];
  await underLoad('v1 to v2', async () => {
    open = proxy
      .flows()
      .slice(flowsBefore)
      .map(({ peer, originalDst }) => ({ src: peer, dst: originalDst }));
    await replacedBy(V2);
    await expectResolved(open, before);
  });
  expect(open.length).toBeGreaterThan(40);
  expect(await generations()).toEqual(before);
  expect(agent.log()).toContain('took over from an agent of an older layout');
  expect(agent.log()).not.toContain('pod programmed');
  expect(versions()).toEqual(['v2']);
  await expectResolved(open, before);
});

async function expectResolved(
  flows: readonly { src: string; dst: string }[],
  known: readonly unknown[],
): Promise<void> {
  for (const { src, dst } of flows) {
    const { code, stdout, stderr } = await tryRun('curl', [
      '-sSgG',
      '--unix-socket',
      join(agent.runDir, 'http.sock'),
      '-H',
      'nodesentry.io: true',
      '-d',
      'proto=tcp',
      '--data-urlencode',
      `src=${src}`,
      '--data-urlencode',
      `dst=${dst}`,
      'http://localhost/v1/resolve',
    ]);
    expect(stderr).toBe('');
    expect(code).toBe(0);
    const answer = JSON.parse(stdout) as {
      assurance: string;
      workload: { uid: string; generation: number };
    };
    expect(answer).toMatchObject({ assurance: 'DATAPATH_RECORDED' });
    expect(known).toContainEqual([answer.workload.uid, answer.workload.generation]);
  }
}

it('an older agent refuses the newer layout in one line, and all goes on until the newer is back', async () => {
  const before = await generations();
  await underLoad('v1 refused', async () => {
    await agent.stop();
    const before = running();
    expect(before).toHaveLength(8); // both pods twice, the bridge, our own interface, socket lookup, the proxy's cgroup
    agent.objects = V1;
    for (const command of ['agent', 'cleanup']) {
      const refused = await agent.cli(command);
      expect(refused.code).toBe(1);
      expect(refused.stderr.trim().split('\n')).toHaveLength(1);
      expect(refused.stderr).toContain('belongs to a newer agent');
    }
    expect(running()).toEqual(before);
    expect((await runIn(lab.node, 'ip', ['rule'])).includes('fwmark 0x40/0x40')).toBe(true);
    agent.objects = V2;
    await agent.start();
    await intercepted();
    expect(running()).toEqual(before);
  });
  expect(await generations()).toEqual(before);
});

it('cleanup of the newer version takes away every layout up to its own', async () => {
  await agent.stop();
  for (const folder of ['maps', 'programs', 'links']) {
    mkdirSync(join(agent.bpffs, 'v1', folder), { recursive: true });
  }
  const flows = BpfMap.openPinned(join(agent.bpffs, 'v2/maps/flows'));
  try {
    flows.pin(join(agent.bpffs, 'v1/maps/flows'));
  } finally {
    flows.close();
  }
  const { code, stdout, stderr } = await agent.cli('cleanup');
  expect(stderr).toBe('');
  expect(code).toBe(0);
  expect(stdout.match(/removed pin maps\/flows/g)).toHaveLength(2);
  expect(stdout.match(/removed program egress/g)).toHaveLength(2);
  expect(existsSync(agent.bpffs) ? readdirSync(agent.bpffs) : []).toEqual([]);
});

it('a newer agent that is killed in the middle of it, twice, is followed by one that completes it', async () => {
  agent.objects = V1;
  await agent.start();
  await agent.adopted(4);
  await intercepted();
  await uplink.stop();
  uplink = await Capture.start(lab, lab.node, 'uplink', POD_DIALS);
  const before = await generations();
  await underLoad('v1 to v2, killed twice', async () => {
    await agent.stop();
    agent.objects = V2;
    const newer = (...path: string[]) => join(agent.bpffs, 'v2', ...path);
    const seen = [
      () => existsSync(newer('maps/counters')),
      () => existsSync(newer('links')) && readdirSync(newer('links')).length > 0,
    ];
    for (const halfway of seen) {
      const starting = agent.start().then(
        () => 'started',
        () => 'killed',
      );
      await waitFor('it to be half way', halfway, 20_000, 1);
      await agent.stop('SIGKILL');
      expect(versions()).toEqual(['v1', 'v2']);
      expect(await starting).toBe('killed');
    }
    await agent.start();
    await intercepted();
  });
  expect(versions()).toEqual(['v2']);
  expect(await generations()).toEqual(before);
});
