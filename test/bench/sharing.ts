/**
 * What it costs that the pods of an app have a proxy: one for all of them, which the agent starts for the first pod, beside
 * one in each pod, as a sidecar is. Of 1, 3 and 10 pods that come at once: when the first is served, when all are, and what
 * the proxies hold of memory then. It is the same HAProxy with the same configuration but for its listener; a pod is served
 * once the proxy, and there is nobody else, has answered what the pod dialled. Medians of the rounds, in which the two take turns.
 *
 *   make bench-sharing [ROUNDS=5]      prints a table
 */

import { writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { memoryOf } from '../../src/instances/memory.js';
import { staticPod, TestAgent } from '../e2e/agent.js';
import { createNetwork } from '../lab/cni.js';
import { type Daemon, inNetns, runIn, tryRun, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';

const SIZES = [1, 3, 10] as const;
const ROUNDS = Number(process.env.ROUNDS ?? 5);
const PORT = 16_001;
/** Whose connections the rules in a sidecar's pod leave alone. */
const PROXY_UID = 1_337;
const ANSWER = 'served';

interface Measured {
  readonly firstMs: number;
  readonly allMs: number;
  readonly bytes: number;
}

const proxy = (listener: string) => `global
  uid ${PROXY_UID}
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend out
  bind ${listener}
  http-request return status 200 content-type text/plain string ${ANSWER}
`;

const REDIRECT = `table ip sidecar {
  chain output {
    type nat hook output priority -100
    meta skuid != ${PROXY_UID} ip daddr ${REMOTE[4]} tcp dport 80 redirect to :${PORT}
  }
}`;

const lab = await Lab.create();

async function served(pod: PlainPod): Promise<void> {
  await waitFor(
    `${pod.name} to be served`,
    async () => {
      const words = ['-s', '-m', '1', `http://${REMOTE[4]}:80/`];
      return (await tryRun(...inNetns(pod.netnsName, 'curl', words))).stdout === ANSWER;
    },
    30_000,
    2,
  );
}

/** From `begin` on; `pids` are the proxies that there are once all pods are served. */
async function measure(
  pods: readonly PlainPod[],
  begin: () => Promise<void>,
  pids: () => Promise<readonly number[]>,
): Promise<Measured> {
  const started = performance.now();
  await begin();
  const took = await Promise.all(
    pods.map(async (pod) => {
      await served(pod);
      return performance.now() - started;
    }),
  );
  const bytes = memoryOf(await pids());
  if (bytes === undefined) {
    throw new Error('the proxies have ended');
  }
  return { firstMs: Math.min(...took), allMs: Math.max(...took), bytes };
}

async function processOf(agent: TestAgent) {
  const { instances } = await agent.client.instances();
  return instances.find(({ name }) => name === 'pay')?.process;
}

async function shared(agent: TestAgent, pods: readonly PlainPod[]): Promise<Measured> {
  const labels = { app: 'pay', 'nodesentry.io/intercept': 'enabled' };
  const measured = await measure(
    pods,
    async () => agent.writePods(pods.map((pod) => staticPod(pod, { labels }))),
    async () => [(await processOf(agent))?.pid ?? 0],
  );
  agent.writePods([]);
  await waitFor('the proxy to be stopped', async () => (await processOf(agent))?.state === 'STOPPED', 20_000);
  await waitFor('the pods to be let go', () => agent.endpoints().length === 0);
  return measured;
}

let started = 0;

async function perPod(config: string, pods: readonly PlainPod[]): Promise<Measured> {
  const sidecars: Daemon[] = [];
  const measured = await measure(
    pods,
    async () => {
      await Promise.all(
        pods.map(async ({ name, netnsName }) => {
          started += 1;
          const words = ['-db', '-f', config];
          sidecars.push(lab.daemon(netnsName, `sidecar-${name}-${started}`, 'haproxy', words));
          await runIn(netnsName, 'nft', ['-f', '-'], { input: REDIRECT });
        }),
      );
    },
    async () => sidecars.map(({ pid }) => pid),
  );
  await Promise.all(sidecars.map((sidecar) => sidecar.stop('SIGKILL')));
  await Promise.all(pods.map(({ netnsName }) => runIn(netnsName, 'nft', ['flush', 'ruleset'])));
  return measured;
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

function row(size: number, name: string, all: readonly Measured[]): string {
  const [first, last, bytes] = (['firstMs', 'allMs', 'bytes'] as const).map((field) =>
    median(all.map((measured) => measured[field])),
  ) as [number, number, number];
  return `| ${size} | ${name} | ${first.toFixed(0)} | ${last.toFixed(0)} | ${(bytes / 2 ** 20).toFixed(1)} |`;
}

try {
  const ptp = createNetwork(lab, 'ptp');
  const pods: PlainPod[] = [];
  for (let i = 0; i < Math.max(...SIZES); i++) {
    const pod = await runPlainPod(lab, ptp, `pay-${i}`);
    await runIn(pod.netnsName, 'ip', ['link', 'set', 'lo', 'up']);
    pods.push(pod);
  }
  const handed = join(lab.directory, 'shared.cfg');
  const sidecar = join(lab.directory, 'sidecar.cfg');
  writeFileSync(handed, proxy('fd@3'));
  writeFileSync(sidecar, proxy(`127.0.0.1:${PORT}`));
  const agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' } },
    instances: [
      {
        name: 'pay',
        apps: ['pay'],
        outbound: `127.0.0.1:${PORT}`,
        command: ['/usr/sbin/haproxy', '-db', '-f', handed],
        run: { graceSeconds: 0, stopSeconds: 1 },
      },
    ],
  });
  lab.cleanup.add('the shared proxy', async () => {
    const pid = (await processOf(agent).catch(() => undefined))?.pid ?? null;
    if (pid !== null) {
      process.kill(-pid, 'SIGKILL');
    }
  });
  agent.writePods([]);
  await agent.start();
  const found = SIZES.map((size) => ({ size, shared: [] as Measured[], perPod: [] as Measured[] }));
  for (let round = 0; round < ROUNDS; round++) {
    for (const at of found) {
      at.shared.push(await shared(agent, pods.slice(0, at.size)));
      await delay(500);
      at.perPod.push(await perPod(sidecar, pods.slice(0, at.size)));
      await delay(500);
    }
    console.log(`round ${round + 1} of ${ROUNDS}`);
  }
  console.log(`\n${cpus().length} × ${cpus()[0]?.model}, Linux ${release()}, Node ${process.version}\n`);
  console.log('| pods | proxies | first pod served, ms | all served, ms | proxies hold, MiB |');
  console.log('|---|---|---|---|---|');
  for (const at of found) {
    console.log(row(at.size, 'one for all', at.shared));
    console.log(row(at.size, 'one per pod', at.perPod));
  }
} finally {
  await lab.close();
}
