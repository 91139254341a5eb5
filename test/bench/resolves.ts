/**
 * Whether questions about identity hold up the enrolment of pods, or each other: a node of so many pods, on which pods
 * start all the time, is asked up to 5,000 times a second, over HTTP one by one and in batches of 50, and over gRPC. The cases take turns.
 *
 *   make bench-resolves [PODS=100]
 */

import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { staticPod, TestAgent, TestProxy } from '../e2e/agent.js';
import { createNetwork } from '../lab/cni.js';
import { run } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { NamespacePods } from '../lab/namespaces.js';
import { runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';

const PODS = Number(process.env.PODS ?? 100);
const ROUNDS = 3;
const SECONDS = 6;
const STARTS_EVERY_MS = 200;
const ASK = join(import.meta.dirname, 'ask.ts');

const DOORS = ['http', 'batch', 'grpc'] as const;
type Door = (typeof DOORS)[number];
/** Questions a second. */
type Case = Readonly<Partial<Record<Door, number>>>;

const CASES: readonly Case[] = [
  {},
  { http: 1_000 },
  { grpc: 1_000 },
  { http: 5_000 },
  { batch: 5_000 },
  { batch: 4_000, http: 500, grpc: 500 },
];

interface Asked {
  readonly perSecond: number;
  readonly failures: number;
  readonly p50: number;
  readonly p99: number;
}

interface Round {
  readonly addMs: readonly number[];
  readonly asked: Readonly<Partial<Record<Door, Asked>>>;
  /** Of the agent's event loop, milliseconds. */
  readonly held: { readonly p50: number; readonly p99: number; readonly max: number };
}

function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(q * sorted.length) - 1)] ?? Number.NaN;
}

interface Flow {
  readonly src: string;
  readonly dst: string;
}

async function ask(agent: TestAgent, door: Door, rate: number, flow: Flow): Promise<Asked> {
  const socket = join(agent.runDir, door === 'grpc' ? 'identity.sock' : 'http.sock');
  const words = [ASK, door, socket, String(rate), String(SECONDS), flow.src, flow.dst];
  return JSON.parse(await run('npx', ['--no-install', 'tsx', ...words])) as Asked;
}

/** Since the last call. */
async function heldMs(agent: TestAgent): Promise<Round['held']> {
  const socket = join(agent.runDir, 'http.sock');
  const text = await run('curl', ['-sS', '--unix-socket', socket, 'http://localhost/metrics']);
  const at = (quantile: string) =>
    1_000 *
    Number(
      new RegExp(`^nodesentry_event_loop_delay_seconds\\{quantile="${quantile}"\\} (.*)$`, 'm').exec(
        text,
      )?.[1],
    );
  return { p50: at('0.5'), p99: at('0.99'), max: at('1') };
}

/** Pods start and end until `until` is kept. */
async function starting(pods: NamespacePods, until: Promise<unknown>): Promise<number[]> {
  const addMs: number[] = [];
  let isOver = false;
  const over = until.finally(() => {
    isOver = true;
  });
  while (!isOver) {
    const pod = await pods.add();
    addMs.push(pod.addMs);
    await pods.remove(pod);
    await delay(STARTS_EVERY_MS);
  }
  await over;
  return addMs;
}

async function measure(agent: TestAgent, pods: NamespacePods, flow: Flow, rates: Case): Promise<Round> {
  await delay(1_000);
  await heldMs(agent);
  const asked: Partial<Record<Door, Asked>> = {};
  const all = DOORS.map(async (door) => {
    const rate = rates[door];
    if (rate !== undefined) {
      asked[door] = await ask(agent, door, rate, flow);
    }
  });
  const addMs = await starting(pods, Promise.all([...all, delay(SECONDS * 1_000)]));
  return { addMs, asked, held: await heldMs(agent) };
}

const lab = await Lab.create();
try {
  await lab.serve();
  const web = await runPlainPod(lab, createNetwork(lab, 'ptp'), 'web');
  const agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' }, cni: {} },
    interception: { enrol: 'all' },
  });
  agent.writePods([staticPod(web)]);
  await agent.start();
  const proxy = new TestProxy(lab, agent);
  await proxy.start();
  await agent.adopted(2);
  await agent.reaches('web', 'INTERCEPTED');
  const { localPort } = reply(await web.app(['dial', REMOTE[4], '80']));
  const flow = { src: `${web.ips[4]}:${localPort}`, dst: `${REMOTE[4]}:80` };
  const pods = new NamespacePods(lab, { socket: join(agent.runDir, 'cni.sock') });
  while (pods.live().length < PODS) {
    await Promise.all(Array.from({ length: Math.min(8, PODS - pods.live().length) }, () => pods.add()));
  }
  const rounds = new Map<Case, Round[]>(CASES.map((one) => [one, []]));
  for (let round = 0; round < ROUNDS; round++) {
    for (const [one, measured] of rounds) {
      measured.push(await measure(agent, pods, flow, one));
    }
  }
  const ms = (value: number) => value.toFixed(1);
  const tell = (list: readonly (Asked | undefined)[]) => {
    const all = list.flatMap((one) => one ?? []);
    const median = (of: (one: Asked) => number) => quantile(all.map(of), 0.5);
    return all.length === 0
      ? '–'
      : `${median(({ perSecond }) => perSecond)}/s, p50 ${ms(median(({ p50 }) => p50))}, p99 ${ms(median(({ p99 }) => p99))}, ${all.reduce((sum, { failures }) => sum + failures, 0)} failed`;
  };
  console.log(
    '| asked a second | HTTP | HTTP, batches | gRPC | ADD p50 ms | p99 | loop late p99 ms | at most |',
  );
  console.log('|---|---|---|---|---|---|---|---|');
  for (const [rates, measured] of rounds) {
    const addMs = measured.flatMap((round) => round.addMs);
    const cells = [
      Object.values(rates).reduce((sum, rate) => sum + rate, 0),
      ...DOORS.map((door) => tell(measured.map(({ asked }) => asked[door]))),
      ms(quantile(addMs, 0.5)),
      ms(quantile(addMs, 0.99)),
      ms(
        quantile(
          measured.map(({ held }) => held.p99),
          0.5,
        ),
      ),
      ms(Math.max(...measured.map(({ held }) => held.max))),
    ];
    console.log(`| ${cells.join(' | ')} |`);
  }
} finally {
  await lab.close();
}
