/**
 * Pods that listen from their first instruction on, while a client on another host dials them already, in both families: from
 * the moment that the agent says a pod is programmed, which is before the runtime starts its first process, none of its
 * segments may reach the pod past the proxy. The judge is a capture of what the node sends out by any interface: what goes to
 * the proxy instead is handed on without being sent. What comes before finds an interface with nobody behind it.
 */

import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { Containerd } from '../lab/containerd.js';
import type { Daemon } from '../lab/exec.js';
import { waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab } from '../lab/lab.js';
import { MicroVms } from '../lab/microvm.js';
import type { LabPod } from '../lab/pod.js';
import { sized } from '../lab/size.js';
import { enrolled, TestAgent, TestProxy } from './agent.js';
import { BOTH_WAYS, INBOUND_WORDS } from './scene.js';

const PODS = sized({ runc: 4, runsc: 4, rund: 1 }, { runc: 200, runsc: 200, rund: 50 });
const PORT = '80';
const ENROLLED = { annotations: { 'nodesentry.io/intercept': 'enabled' }, labels: enrolled('web') };
const FAR = { 4: '10.199.0.2', 6: 'fd00:199::2' } as const;
/** Pods that start at once. */
const AT_ONCE = 4;
/** Pods in whose turn the same client dials. */
const PER_CLIENT = 40;

let lab: Lab;
let agent: TestAgent;
let containerd: Containerd;
let microvms: MicroVms;
let past: Daemon;

beforeAll(async () => {
  lab = await Lab.create();
  agent = new TestAgent(lab, {
    sources: { cni: {}, static: { file: 'pods.yaml' } },
    instances: [BOTH_WAYS],
  });
  agent.writePods([]);
  const chained = { socket: join(agent.runDir, 'cni.sock'), timeoutMs: 30_000 };
  containerd = await Containerd.start(lab, 'ptp', { chained, sandbox: ['serve', PORT] });
  microvms = new MicroVms(lab, 'ptp', containerd.network);
  await agent.start();
  // Nobody but the CNI plugin knows the pods, so nobody knows their service accounts.
  await new TestProxy(lab, agent).start(
    '--allow-unidentified',
    '--resolve-timeout-ms',
    '100',
    ...INBOUND_WORDS,
  );
  await agent.adopted(4);
  const filter = `tcp and (src host ${FAR[4]} or src host ${FAR[6]})`;
  past = lab.daemon(lab.node, 'past', 'tcpdump', ['-i', 'any', '-Q', 'out', '-l', '-n', '-tt', filter]);
  await past.logged(/listening on/);
}, 120_000);

afterAll(async () => {
  await lab?.close();
}, 300_000);

type Ips = LabPod['ips'];

/** Of the pod whose addresses were given out last: IPv6's go on and on, IPv4's round and round. */
let latest: Ips;

const lastWord = (ips: Ips) => Number.parseInt(ips[6].split(':').at(-1) ?? '', 16);

/** Dials the addresses that pods get next. */
async function knock(): Promise<Daemon> {
  const lastByte = Number(latest[4].split('.').at(-1));
  const ahead = Array.from({ length: PER_CLIENT + AT_ONCE }, (_, n) => n + 1);
  const ips = [
    ...ahead.map((n) => latest[4].replace(/\d+$/, String(((lastByte - 2 + n) % 253) + 2))),
    ...ahead.map((n) => latest[6].replace(/[^:]+$/, (lastWord(latest) + n).toString(16))),
  ];
  const client = lab.daemon(lab.remote, 'knock', await buildApp(), ['knock', PORT, ...ips]);
  await client.logged(/"ok":true/);
  return client;
}

/** A pod that is dialled from before it is there, until connections to it have been intercepted. */
async function dialled(starting: Promise<LabPod>): Promise<LabPod> {
  const pod = await starting;
  if (lastWord(pod.ips) > lastWord(latest)) {
    latest = pod.ips;
  }
  await waitFor(
    `a connection to ${pod.name}`,
    async () => ((await agent.received(pod.name)).FLOW_STARTED ?? 0) > 1,
    60_000,
  );
  return pod;
}

/** So many of them, some at once, each batch with a client of its own. */
async function batches(count: number, atOnce: number, one: (index: number) => Promise<void>): Promise<void> {
  for (let first = 0; first < count; first += PER_CLIENT) {
    const client = await knock();
    const end = Math.min(count, first + PER_CLIENT);
    for (let next = first; next < end; next += atOnce) {
      const indices = Array.from({ length: Math.min(atOnce, end - next) }, (_, n) => next + n);
      await Promise.all(indices.map(one));
    }
    await client.stop();
  }
}

/** Until when pods of the test before were still being taken down. */
let ended = 0;

afterEach(() => {
  ended = Date.now();
});

interface Line {
  readonly msg: string;
  readonly time: string;
  readonly interface?: string;
}

/** Of what was sent to pods in the client's name, what came after the pod's interface was programmed, and before this. */
function late(untilMs = Date.now()): string[] {
  const programmed = new Map<string, number>();
  for (const line of agent
    .log()
    .split('\n')
    .filter((text) => text.includes('"pod programmed"'))) {
    const { interface: name = '', time } = JSON.parse(line) as Line;
    programmed.set(name, Date.parse(time) + 1); // the log has whole milliseconds
  }
  return segments().filter((line) => {
    const [, seconds = '', name = ''] = /^(\d+\.\d+) (\S+) /.exec(line) ?? [];
    const ms = Number(seconds) * 1_000;
    return ms > (programmed.get(name) ?? Number.POSITIVE_INFINITY) && ms > ended && ms < untilMs;
  });
}

/** What the node sent to a pod in the client's name. */
const segments = () =>
  past
    .log()
    .split('\n')
    .filter((line) => line.includes(' > '));

it('the capture sees what reaches a pod that is not enrolled, in both families', async () => {
  const plain = await containerd.runPod({ name: 'plain', runtime: 'runc', sandboxOnly: true });
  // As if it had been the one after this one.
  latest = {
    4: plain.ips[4].replace(/\d+$/, (last) => String(Number(last) - 1)),
    6: plain.ips[6].replace(/[^:]+$/, (last) => (Number.parseInt(last, 16) - 1).toString(16)),
  };
  const client = await knock();
  await waitFor('its segments', () =>
    [plain.ips[4], plain.ips[6]].every((ip) => segments().some((line) => line.includes(`> ${ip}.${PORT}`))),
  );
  await client.stop();
  await plain.stop();
  latest = plain.ips;
});

it.each(['runc', 'runsc'] as const)(
  `no segment reaches one of ${PODS.runc} %s pods past the proxy`,
  async (runtime) => {
    const pods: LabPod[] = [];
    await batches(PODS[runtime], AT_ONCE, async (index) => {
      const name = `${runtime}-${index}`;
      pods.push(await dialled(containerd.runPod({ name, runtime, sandboxOnly: true, ...ENROLLED })));
    });
    expect(late()).toEqual([]);
    await Promise.all(pods.map((pod) => pod.stop()));
  },
  900_000,
);

it(`no segment reaches one of ${PODS.rund} microVMs past the proxy`, async () => {
  await batches(PODS.rund, 1, async (index) => {
    const serving = async () => {
      const pod = await microvms.runPod({ name: `vm-${index}`, ...ENROLLED });
      expect(await pod.app(['server', PORT])).toMatchObject({ code: 0 });
      return pod;
    };
    await (await dialled(serving())).stop();
  });
  expect(late()).toEqual([]);
}, 900_000);
