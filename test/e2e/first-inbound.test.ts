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
/** Addresses that pods get, one after the other, from the first one's on. */
const AHEAD = 250;

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

async function started(pod: LabPod): Promise<void> {
  await waitFor(
    `a connection to ${pod.name}`,
    async () => ((await agent.received(pod.name)).FLOW_STARTED ?? 0) > 1,
    60_000,
  );
}

it('the capture sees what reaches a pod that is not enrolled, in both families', async () => {
  const plain = await containerd.runPod({ name: 'plain', runtime: 'runc', sandboxOnly: true });
  const first = Number(plain.ips[4].split('.').at(-1));
  const ahead = Array.from({ length: AHEAD }, (_, n) => first + n);
  const v4 = plain.ips[4].replace(/\.\d+$/, '.');
  const v6 = plain.ips[6].replace(/::.*$/, '::');
  const ips = [
    ...ahead.filter((last) => last < 255).map((last) => `${v4}${last}`),
    ...ahead.map((last) => `${v6}${last.toString(16)}`),
  ];
  const client = lab.daemon(lab.remote, 'knock', await buildApp(), ['knock', PORT, ...ips]);
  await client.logged(/"ok":true/);
  await waitFor('its segments', () =>
    [plain.ips[4], plain.ips[6]].every((ip) => segments().some((line) => line.includes(`> ${ip}.${PORT}`))),
  );
  await plain.stop();
});

it.each(['runc', 'runsc'] as const)(
  `no segment reaches one of ${PODS.runc} %s pods past the proxy`,
  async (runtime) => {
    const pods: LabPod[] = [];
    for (let index = 0; index < PODS[runtime]; index++) {
      const pod = await containerd.runPod({
        name: `${runtime}-${index}`,
        runtime,
        sandboxOnly: true,
        ...ENROLLED,
      });
      await started(pod);
      pods.push(pod);
    }
    expect(late()).toEqual([]);
    await Promise.all(pods.map((pod) => pod.stop()));
  },
  900_000,
);

it(`no segment reaches one of ${PODS.rund} microVMs past the proxy`, async () => {
  for (let index = 0; index < PODS.rund; index++) {
    const pod = await microvms.runPod({ name: `vm-${index}`, ...ENROLLED });
    expect(await pod.app(['server', PORT])).toMatchObject({ code: 0 });
    await started(pod);
    await pod.stop();
  }
  expect(late()).toEqual([]);
}, 900_000);
