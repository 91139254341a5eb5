/**
 * The release before this one hands over to this one under load, and takes back: no request fails, no packet of a pod
 * leaves the node, and flows that were open before keep their name.
 */

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { staticPod, TestAgent, TestProxy } from '../e2e/agent.js';
import { attachedOn } from '../lab/attached.js';
import { Capture, POD_TCP } from '../lab/capture.js';
import { createNetwork } from '../lab/cni.js';
import { run, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { Load, Pauses } from '../lab/load.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';

const ROOT = join(import.meta.dirname, '../..');

interface Release {
  readonly binary: string;
  readonly objects: string;
}

let lab: Lab;
let agent: TestAgent;
let proxy: TestProxy;
let pod: PlainPod;
let uplink: Capture;
let pauses: Pauses;
let previous: Release;
let current: Release;

function release(root: string): Release {
  return { binary: join(root, 'bin/nodesentry'), objects: join(root, 'build/bpf') };
}

beforeAll(async () => {
  const folder = await run(join(ROOT, 'scripts/build-previous'), [], { timeoutMs: 600_000 });
  [previous, current] = [release(join(ROOT, folder.trim())), release(ROOT)];
  lab = await Lab.create();
  await lab.serve();
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  pod = await runPlainPod(lab, createNetwork(lab, 'ptp'), 'web');
  // Whoever reads the capture must be able to see a pod that does escape.
  uplink = await Capture.start(lab, lab.node, 'uplink', POD_TCP);
  expect(reply(await pod.app(['dial', REMOTE[4], '80']))).toMatchObject({ ok: true });
  expect(await escaped()).not.toEqual([]);
  await uplink.stop();
  uplink = await Capture.start(lab, lab.node, 'uplink', POD_TCP);

  agent.writePods([staticPod(pod)]);
  await startsAs(previous);
  proxy = new TestProxy(lab, agent);
  // It waits for an answer about each new connection: on a busy machine an agent needs its time to start.
  await proxy.start('--resolve-timeout-ms', '30000');
  await agent.adopted(2);
  const flowing = await load();
  pauses = await Pauses.undisturbed(flowing, async () => {
    for (let n = 0; n < 4; n++) {
      await agent.cli('status');
    }
  });
  await flowing.stop();
}, 900_000);

afterAll(async () => {
  agent.binary = current.binary;
  agent.objects = current.objects;
  await lab?.close();
});

async function startsAs({ binary, objects }: Release): Promise<void> {
  agent.binary = binary;
  agent.objects = objects;
  await agent.start();
  await agent.reaches('web', 'INTERCEPTED');
}

async function escaped(): Promise<string[]> {
  return uplink.flows();
}

function load(): Promise<Load> {
  return Load.start(lab, [
    { pod, kind: 'keepalive', family: 4, everyMs: 4 },
    { pod, kind: 'keepalive', family: 6, everyMs: 4 },
    { pod, kind: 'handshakes', family: 6, everyMs: 5 },
    { pod, kind: 'connects', family: 4, everyMs: 20 },
  ]);
}

/** The program that the agent's process runs. */
function program(): string {
  return readFileSync(`/proc/${agent.pid}/cmdline`, 'utf8').split('\0')[1] ?? '';
}

async function identity(): Promise<unknown> {
  const found = await agent.workload('web');
  return { uid: found?.uid, generation: found?.generation };
}

/** Under load all through it: the one stops, the other starts. */
async function handsOver(what: string, to: Release): Promise<void> {
  const [before, ran, programs] = [await identity(), program(), await attachedOn(lab)];
  const flowing = await load();
  const flowsBefore = proxy.flows().length;
  await waitFor('new connections', () => proxy.flows().length > flowsBefore + 20, 30_000);
  const open = proxy.flows().slice(flowsBefore);
  await agent.stop();
  // Neither is there, and the programs are.
  expect(await attachedOn(lab)).toEqual(programs);
  await startsAs(to);
  pauses.check(what, await flowing.stop());
  expect(await escaped()).toEqual([]);
  expect(program()).not.toBe(ran);
  expect(agent.log()).toContain('"takenOver":true');
  expect(await identity()).toEqual(before);
  expect(await agent.client.status()).toMatchObject({ ready: true, blockers: [] });
  expect(open.length).toBeGreaterThan(20);
  for (const { peer, originalDst } of open) {
    const query = { proto: 'tcp', src: addressOf(peer), dst: addressOf(originalDst) } as const;
    expect(await agent.client.resolve(query)).toMatchObject({
      workload: { podName: 'web', uid: pod.uid },
      assurance: 'DATAPATH_RECORDED',
    });
  }
  const { localPort } = reply(await pod.app(['dial', REMOTE[6], '80']));
  expect(await proxy.flowFrom(`[${pod.ips[6]}]:${localPort}`)).toMatchObject({ workload: 'default/web' });
}

function addressOf(text: string): { ip: string; port: number } {
  const at = text.lastIndexOf(':');
  return { ip: text.slice(0, at).replace(/[[\]]/g, ''), port: Number(text.slice(at + 1)) };
}

it('an agent of the release before hands over to this one', async () => {
  await handsOver('upgrade', current);
});

it('and takes back', async () => {
  await handsOver('downgrade', previous);
});

it('and hands over once more, whose cleanup leaves nothing', async () => {
  await handsOver('upgrade again', current);
  await agent.stop();
  expect(await agent.cli('cleanup')).toMatchObject({ code: 0, stderr: '' });
  expect(await attachedOn(lab)).toEqual([]);
  expect(existsSync(agent.bpffs) ? readdirSync(agent.bpffs) : []).toEqual([]);
});
