/**
 * Pods whose very first instruction is a connect, by the hundred: none of their packets may leave the node. The judge
 * is a packet capture on the uplink, not a counter of ours; what passes the proxy leaves under the node's address.
 */

import { afterAll, beforeAll, expect, it } from 'vitest';
import { Containerd } from '../lab/containerd.js';
import { type Daemon, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { MicroVms } from '../lab/microvm.js';
import type { LabPod } from '../lab/pod.js';
import { enrolled, TestAgent, TestProxy } from './agent.js';

const PODS = 200;
/** Emulated, they need seconds of a CPU each. */
const MICROVMS = 50;

let lab: Lab;
let agent: TestAgent;
let proxy: TestProxy;
let containerd: Containerd;
let capture: Daemon;

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  const chained = { socket: `${lab.directory}/run/cni.sock`, timeoutMs: 30_000 };
  containerd = await Containerd.start(lab, 'ptp', { chained, sandbox: ['first', REMOTE[4], '80'] });
  agent = new TestAgent(lab, {
    sources: { cni: {}, cri: { endpoint: `unix://${containerd.socket}` } },
  });
  await agent.start();
  proxy = new TestProxy(lab, agent);
  // Nobody but the CNI plugin knows the microVMs, so nobody knows their service accounts.
  await proxy.start('--allow-unidentified', '--resolve-timeout-ms', '1000');
  await agent.adopted(2);
  capture = lab.daemon(lab.node, 'capture', 'tcpdump', [
    '-i',
    'uplink',
    '-nn',
    '-l',
    '--immediate-mode',
    'tcp and (src net 10.66.0.0/16 or src net fd00:66::/32)',
  ]);
  await capture.logged(/listening on uplink/);
}, 120_000);

afterAll(async () => {
  await lab?.close();
}, 300_000);

function escaped(): string[] {
  return capture
    .log()
    .split('\n')
    .filter((line) => / IP6? /.test(line));
}

/** As many as told, a few at a time. */
async function runAll(
  count: number,
  atOnce: number,
  start: (index: number) => Promise<LabPod>,
): Promise<LabPod[]> {
  const pods: LabPod[] = [];
  let next = 0;
  const worker = async () => {
    while (next < count) {
      const index = next;
      next += 1;
      pods.push(await start(index));
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  return pods;
}

async function expectAllIntercepted(pods: readonly LabPod[]): Promise<void> {
  const ips = new Set(pods.map((pod) => pod.ips[4]));
  expect(ips.size).toBe(pods.length);
  const seen = () => new Map(proxy.flows().map((flow) => [flow.peer.split(':')[0] ?? '', flow]));
  await waitFor('the proxy to see every pod', () => [...ips].every((ip) => seen().has(ip)), 60_000);
  const flows = seen();
  for (const pod of pods) {
    expect(flows.get(pod.ips[4])).toMatchObject({ originalDst: `${REMOTE[4]}:80` });
  }
  expect(escaped()).toEqual([]);
}

/** Whoever reads the capture must be able to see a pod that does escape. */
it('the capture sees the packets of a pod that is not enrolled', async () => {
  const plain = await containerd.runPod({ name: 'plain', runtime: 'runc', sandboxOnly: true });
  await waitFor('its packets', () => escaped().some((line) => line.includes(`${plain.ips[4]}.`)));
  await plain.stop();
  const before = escaped().length;
  // It may have been in the middle of something: from here on the capture starts afresh.
  await capture.stop();
  capture = lab.daemon(lab.node, 'capture-2', 'tcpdump', [
    '-i',
    'uplink',
    '-nn',
    '-l',
    '--immediate-mode',
    'tcp and (src net 10.66.0.0/16 or src net fd00:66::/32)',
  ]);
  await capture.logged(/listening on uplink/);
  expect(before).toBeGreaterThan(0);
  expect(escaped()).toEqual([]);
});

it.each(['runc', 'runsc'] as const)(
  `none of ${PODS} %s pods whose first instruction is a connect gets a packet out`,
  async (runtime) => {
    const pods = await runAll(PODS, 4, (index) =>
      containerd.runPod({
        name: `${runtime}-${index}`,
        runtime,
        sandboxOnly: true,
        annotations: { 'nodesentry.io/intercept': 'enabled' },
        labels: enrolled('web'),
      }),
    );
    await expectAllIntercepted(pods);
    await runAll(pods.length, 8, async (index) => {
      const pod = pods[index] as LabPod;
      await pod.stop();
      return pod;
    });
    expect(escaped()).toEqual([]);
  },
  600_000,
);

it(`none of ${MICROVMS} microVMs whose first instruction is a connect gets a packet out`, async () => {
  const vms = new MicroVms(lab, 'ptp', containerd.network);
  const pods = await runAll(MICROVMS, 3, async (index) => {
    const pod = await vms.runPod(
      { name: `vm-${index}`, annotations: { 'nodesentry.io/intercept': 'enabled' } },
      [REMOTE[4], '80'],
    );
    await waitFor(`the proxy to see ${pod.name}`, () =>
      proxy.flows().some((flow) => flow.peer.startsWith(`${pod.ips[4]}:`)),
    );
    await pod.stop();
    return pod;
  });
  await expectAllIntercepted(pods);
}, 600_000);
