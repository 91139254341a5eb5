/**
 * A thousand pods come and go, twenty a second, each with an address that was another's a moment ago, while others have
 * traffic: no failure, no wrong name, and nothing left behind.
 */

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import type { ApiError } from '../../src/api/client.js';
import { BpfMap } from '../../src/native/bpf.js';
import { inNetns, type Output, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type NamespacePod, NamespacePods } from '../lab/namespaces.js';
import { reply } from '../lab/pod.js';
import { CriStandIn } from '../unit/cri-stand-in.js';
import { TestAgent, TestProxy } from './agent.js';

const PODS = 1_000;
const PER_SECOND = 20;
const STANDING = 40;
const RESOLVES = 10_000;
/** Of the pods that come and go, one in so many dials. */
const DIALS_EVERY = 10;
/** A megabyte a thousand pods is what statuses, logs and the collector's laziness may add. */
const MAY_GROW_BYTES = 32 << 20;

let lab: Lab;
let agent: TestAgent;
let proxy: TestProxy;
let pods: NamespacePods;
/** Knows nothing of the pods but who they are: the plugin alone cannot say whose account they run under. */
let runtime: CriStandIn;
let app: string;

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  app = await buildApp();
  runtime = new CriStandIn(join(lab.directory, 'cri.sock'));
  await runtime.listen();
  lab.cleanup.add('the stand-in of the runtime', async () => runtime.kill());
  agent = new TestAgent(lab, {
    sources: { cni: {}, cri: { endpoint: runtime.endpoint, serviceAccount: 'default' } },
    interception: { enrol: 'all' },
  });
  await agent.start();
  proxy = new TestProxy(lab, agent);
  await proxy.start();
  await agent.adopted(2);
  pods = new NamespacePods(lab, { socket: join(agent.runDir, 'cni.sock') });
}, 60_000);

afterAll(async () => {
  await lab?.close();
}, 120_000);

async function add(): Promise<NamespacePod> {
  const pod = await pods.add();
  const { uid, name, ip, containerId } = pod;
  const metadata = { uid, name, namespace: 'churn', attempt: 0 };
  runtime.sandboxes = [...runtime.sandboxes, { id: containerId, metadata, network: { ip } }];
  runtime.event();
  return pod;
}

async function remove(pod: NamespacePod): Promise<void> {
  runtime.sandboxes = runtime.sandboxes.filter(({ id }) => id !== pod.containerId);
  runtime.event();
  await pods.remove(pod);
}

function inPod(pod: NamespacePod, ...words: readonly string[]): Promise<Output> {
  return tryRun(...inNetns(pod.netns, app, words), { timeoutMs: 120_000 });
}

function entries(name: string): number {
  const map = BpfMap.openPinned(join(agent.bpffs, 'v1/maps', name));
  try {
    return map.entries().length;
  } finally {
    map.close();
  }
}

function footprint() {
  const status = readFileSync(`/proc/${agent.pid}/status`, 'utf8');
  return {
    bytes: Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) * 1024,
    descriptors: readdirSync(`/proc/${agent.pid}/fd`).length,
    endpoints: entries('endpoints'),
    sources: entries('sources'),
  };
}

/** Two pods may have dialled from the same address and port, one after the other. */
interface Dial {
  readonly peer: string;
  readonly name: string;
}

/** Comes, perhaps dials, and goes; a steady number of them at any time. */
async function churn(count: number, dialled: Dial[]): Promise<void> {
  const running: Promise<void>[] = [];
  for (let i = 0; i < count; i++) {
    const one = (async () => {
      const pod = await add();
      if (i % DIALS_EVERY === 0) {
        const { ok, localPort } = reply(await inPod(pod, 'dial', REMOTE[4], '80'));
        expect(ok).toBe(true);
        dialled.push({ peer: `${pod.ip}:${localPort}`, name: pod.name });
      }
      await delay(500);
      await remove(pod);
    })();
    running.push(one);
    one.catch(() => undefined); // told by the end
    await delay(1_000 / PER_SECOND);
  }
  await Promise.all(running);
}

it('no failure, no wrong name, and nothing left behind', async () => {
  const standing = await Promise.all(Array.from({ length: STANDING }, () => add()));
  const dialled: Dial[] = [];
  await churn(100, dialled); // warm: what a first time needs is not a leak
  // The runtime tells of a pod's end a moment after the plugin.
  const onlyStanding = () => entries('endpoints') === STANDING && entries('sources') === STANDING;
  await waitFor('the pods of the warm-up to have gone', onlyStanding);
  const before = footprint();

  const traffic = standing
    .slice(0, 4)
    .map((pod) => inPod(pod, 'keepalive', REMOTE[4], '80', '2000', '20000'));
  let churning = true;
  const wrong: string[] = [];
  let resolves = 0;
  const asking = (async () => {
    while (churning || resolves < RESOLVES) {
      const live = pods.live();
      const pod = live[Math.floor(Math.random() * live.length)] as NamespacePod;
      const answer = await agent.client
        .resolve({
          proto: 'tcp',
          src: { ip: pod.ip, port: 1 },
          dst: { ip: REMOTE[4], port: 80 },
          minAssurance: 'IP_ONLY',
        })
        .then(
          ({ workload }) => workload.podUid,
          (error: ApiError) =>
            error.code === 'NOT_SYNCED' || error.code === 'AMBIGUOUS' ? undefined : String(error),
        );
      if (answer === undefined) {
        continue; // the runtime has not told of its coming yet, or of the going of who had the address
      }
      resolves += 1;
      // It may have gone, and another come under its address, while the question was on its way.
      if (answer !== pod.uid && pods.live().includes(pod)) {
        wrong.push(`${pod.ip} is ${pod.name} (${pod.uid}), the answer was ${answer}`);
      }
    }
  })();
  await churn(PODS, dialled);
  churning = false;
  await asking;
  expect(wrong).toEqual([]);
  expect(resolves).toBeGreaterThanOrEqual(RESOLVES);
  for (const output of await Promise.all(traffic)) {
    expect(reply(output)).toMatchObject({ ok: true, failures: 0 });
  }
  // Each flow was told to the proxy under the name of the pod that had the address at that moment.
  await waitFor('the proxy to have logged every flow', () => {
    const peers = new Set(proxy.flows().map(({ peer }) => peer));
    return dialled.every(({ peer }) => peers.has(peer));
  });
  const told = new Set(proxy.flows().map(({ peer, workload }) => `${peer} ${workload}`));
  expect(dialled.filter(({ peer, name }) => !told.has(`${peer} churn/${name}`))).toEqual([]);
  expect(dialled).toHaveLength((PODS + 100) / DIALS_EVERY);

  // A minute after the last one has gone, its row goes as well.
  await waitFor('rows of pods that have gone to go', () => entries('workloads') <= STANDING + 1, 90_000);
  await waitFor('their endpoints to go', onlyStanding);
  const after = footprint();
  expect(after).toMatchObject({ endpoints: before.endpoints, sources: before.sources });
  expect(after.descriptors).toBeLessThanOrEqual(before.descriptors + 2);
  expect(after.bytes).toBeLessThan(before.bytes + MAY_GROW_BYTES);
  expect(agent.log()).not.toContain('"level":"error"');
}, 300_000);
