/**
 * Pods whose very first instruction is a connect, in both families: none of their packets may leave the node. The judge
 * is a packet capture on the uplink, not a counter of ours; what passes the proxy leaves under the node's address.
 */

import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Capture, POD_TCP } from '../lab/capture.js';
import { Containerd } from '../lab/containerd.js';
import { runIn, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { MicroVms } from '../lab/microvm.js';
import type { LabPod, Topology } from '../lab/pod.js';
import { sized } from '../lab/size.js';
import { enrolled, TestAgent, TestProxy } from './agent.js';
import { AnswerGate } from './answer-gate.js';

/** One at a time, the agent stopped from its answer on: what it leaves for later shows each time. */
const FROZEN = { runc: 5, runsc: 5, rund: 1 } as const;
/** Together with others, as a node starts them: each run may or may not meet the moment that matters. */
const TOGETHER = sized({ runc: 10, runsc: 10, rund: 2 }, { runc: 200, runsc: 200, rund: 50 });
const ENROLLED = { annotations: { 'nodesentry.io/intercept': 'enabled' }, labels: enrolled('web') };
const FIRST = [REMOTE[4], '80', REMOTE[6], '80'];
const TOPOLOGIES = ['ptp', 'bridge'] as const;

let lab: Lab;
let agent: TestAgent;
let proxy: TestProxy;
let gate: AnswerGate;
let uplink: Capture;
const containerds = {} as Record<Topology, Containerd>;

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  gate = await AnswerGate.listen(lab, () => agent);
  const chained = { socket: gate.socket, timeoutMs: 30_000 };
  for (const topology of TOPOLOGIES) {
    containerds[topology] = await Containerd.start(lab, topology, { chained, sandbox: ['first', ...FIRST] });
  }
  agent = new TestAgent(lab, {
    sources: { cni: {}, cri: { endpoint: `unix://${containerds.ptp.socket}` } },
  });
  await agent.start();
  proxy = new TestProxy(lab, agent);
  // Nobody but the CNI plugin knows the microVMs and the bridge's pods, so nobody knows their service accounts.
  await proxy.start('--allow-unidentified', '--resolve-timeout-ms', '1000');
  await agent.adopted(2);
  uplink = await Capture.start(lab, lab.node, 'uplink', POD_TCP);
}, 120_000);

afterAll(async () => {
  await lab?.close();
}, 300_000);

async function escaped(): Promise<string[]> {
  return uplink.flows();
}

/** As many as told, a few at a time. */
async function runAll<T>(count: number, atOnce: number, start: (index: number) => Promise<T>): Promise<T[]> {
  const done: T[] = [];
  let next = 0;
  const worker = async () => {
    while (next < count) {
      const index = next;
      next += 1;
      done.push(await start(index));
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  return done;
}

/** The node has the other end of a connection of the pod in each family, whoever is stopped. */
async function connected({ name, ips }: LabPod): Promise<void> {
  await waitFor(
    `the proxy's socket of ${name}`,
    async () => {
      const open = await runIn(lab.node, 'ss', ['-Htan']);
      const has = (ip: string) =>
        new RegExp(`^(ESTAB|CLOSE-WAIT|LAST-ACK|FIN).*\\s${ip}:\\d+ *$`, 'm').test(open);
      return has(ips[4].replaceAll('.', '\\.')) && has(`\\[${ips[6]}\\]`);
    },
    60_000,
  );
}

function peerOf({ ips }: LabPod, family: 4 | 6): string {
  return family === 4 ? `${ips[4]}:` : `[${ips[6]}]:`;
}

async function expectAllIntercepted(pods: readonly LabPod[]): Promise<void> {
  expect(new Set(pods.map(({ ips }) => ips[4])).size).toBe(pods.length);
  for (const pod of pods) {
    for (const family of [4, 6] as const) {
      const flow = await waitFor(
        `the proxy to see ${pod.name} over IPv${family}`,
        () => proxy.flows().find(({ peer }) => peer.startsWith(peerOf(pod, family))),
        60_000,
      );
      const target = family === 4 ? REMOTE[4] : `[${REMOTE[6]}]`;
      expect(flow).toMatchObject({ originalDst: `${target}:80` });
    }
  }
  expect(await escaped()).toEqual([]);
}

/** Whoever reads the capture must be able to see a pod that does escape, in both families. */
it('the capture sees the packets of a pod that is not enrolled', async () => {
  const plain = await containerds.ptp.runPod({ name: 'plain', runtime: 'runc', sandboxOnly: true });
  await waitFor('its packets', async () => {
    const flows = await escaped();
    return ([4, 6] as const).every((family) =>
      flows.some((flow) => flow.includes(`${REMOTE[family].slice(0, 4)}`)),
    );
  });
  await plain.stop();
  // It may have been in the middle of something: from here on the capture starts afresh.
  await uplink.stop();
  uplink = await Capture.start(lab, lab.node, 'uplink', POD_TCP);
  expect(await escaped()).toEqual([]);
});

describe('while the agent is stopped from the moment of its answer', () => {
  async function frozen(start: () => Promise<LabPod>): Promise<LabPod> {
    const answers = gate.answers;
    gate.freezing = true;
    try {
      const pod = await start();
      expect(gate.answers).toBe(answers + 1);
      await connected(pod);
      return pod;
    } finally {
      gate.freezing = false;
      process.kill(agent.pid, 'SIGCONT');
    }
  }

  describe.each(TOPOLOGIES)('%s', (topology) => {
    it.each(['runc', 'runsc'] as const)('no packet of a %s pod gets out', async (runtime) => {
      const pods: LabPod[] = [];
      for (let index = 0; index < FROZEN[runtime]; index++) {
        const name = `frozen-${topology}-${runtime}-${index}`;
        pods.push(
          await frozen(() => containerds[topology].runPod({ name, runtime, sandboxOnly: true, ...ENROLLED })),
        );
      }
      await expectAllIntercepted(pods);
      await Promise.all(pods.map((pod) => pod.stop()));
    });

    it('no packet of a microVM gets out', async () => {
      const vms = new MicroVms(lab, topology, containerds[topology].network);
      const pods: LabPod[] = [];
      for (let index = 0; index < FROZEN.rund; index++) {
        const pod = await frozen(() =>
          vms.runPod({ name: `frozen-${topology}-vm-${index}`, ...ENROLLED }, FIRST),
        );
        pods.push(pod);
        await pod.stop();
      }
      await expectAllIntercepted(pods);
    });
  });

  it('a pod whose ADD the agent has not answered does not start at all', async () => {
    process.kill(agent.pid, 'SIGSTOP');
    let started = false;
    const starting = containerds.ptp
      .runPod({ name: 'waits', runtime: 'runc', sandboxOnly: true, ...ENROLLED })
      .finally(() => {
        started = true;
      });
    try {
      await delay(2_000);
      expect(started).toBe(false);
    } finally {
      process.kill(agent.pid, 'SIGCONT');
    }
    const pod = await starting;
    await expectAllIntercepted([pod]);
    await pod.stop();
  });
});

describe('many at once', () => {
  it.each(['runc', 'runsc'] as const)(
    `no packet of ${TOGETHER.runc} %s pods gets out`,
    async (runtime) => {
      const pods = await runAll(TOGETHER[runtime], 4, (index) =>
        containerds.ptp.runPod({ name: `${runtime}-${index}`, runtime, sandboxOnly: true, ...ENROLLED }),
      );
      await expectAllIntercepted(pods);
      await runAll(pods.length, 8, (index) => (pods[index] as LabPod).stop());
      expect(await escaped()).toEqual([]);
    },
    600_000,
  );

  it(`no packet of ${TOGETHER.rund} microVMs gets out`, async () => {
    const vms = new MicroVms(lab, 'ptp', containerds.ptp.network);
    const pods = await runAll(TOGETHER.rund, 2, async (index) => {
      const pod = await vms.runPod({ name: `vm-${index}`, ...ENROLLED }, FIRST);
      await connected(pod);
      await pod.stop();
      return pod;
    });
    await expectAllIntercepted(pods);
  }, 900_000);
});
