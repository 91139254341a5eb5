/**
 * Two apps of two pods, each with a real proxy of its own: HAProxy and Envoy. What becomes of the one is nothing that the
 * other's requests notice.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { parse } from 'yaml';
import type { InstanceMessage } from '../../src/api/messages.js';
import { createNetwork } from '../lab/cni.js';
import { type Daemon, inNetns, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { Load, type LoadSpec, type Told } from '../lab/load.js';
import { patient } from '../lab/patience.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { FULL_SIZE, sized } from '../lab/size.js';
import { staticPod, TestAgent } from './agent.js';

/** Of the other app, while the victim is in trouble. */
const REQUESTS = sized(2_000, 10_000);
const WINDOW_MS = 2_000;
const MIN_ROUNDS = 2;
const EVERY_MS = 4;
const FAMILIES = [4, 6] as const;
/** Where what comes to pods from outside comes from. */
const FAR = { 4: '10.199.0.2', 6: 'fd00:199::2' } as const;
const EXAMPLES = join(import.meta.dirname, '../../examples');
const ENVOY = join(import.meta.dirname, '../../.cache/bin/envoy');
/** How many connections a proxy takes, and how many each pod of an overloaded one wants open. */
const [TAKEN, WANTED] = [60, 300];
/** The p99 of the other app's requests: so many times the undisturbed one, or so much more than that. */
const [TIMES, NOISE_MS] = [1.2, patient(3)];

/** What both log of a connection: peer, its port, dialled address, dialled port. */
const CONNECTION = /peer=\[?(.+?)\]?:(\d+) dialled=\[?(.+?)\]?:(\d+)$/;

type App = 'one' | 'two';
const OUTBOUND_PORT = { one: 16_001, two: 17_001 } as const;
const inboundPort = (app: App) => OUTBOUND_PORT[app] + 5;

let lab: Lab;
let agent: TestAgent;
const pods = new Map<App, readonly [PlainPod, PlainPod]>();
const proxies = new Map<App, Daemon>();

const both = (port: number) => [`127.0.0.1:${port}`, `[::1]:${port}`];
const example = (name: string) => readFileSync(join(EXAMPLES, name), 'utf8');

/** Both examples in one process, each listening at the app's own addresses. */
const START: Record<App, () => Daemon> = {
  one: () => {
    const words = (['haproxy.cfg', 'haproxy-inbound.cfg'] as const).flatMap((name) => {
      const path = join(lab.directory, name);
      const config = example(name)
        .replaceAll(':15001', `:${OUTBOUND_PORT.one}`)
        .replaceAll(':15006', `:${inboundPort('one')}`)
        .replace('maxconn 4000', `maxconn ${TAKEN}`);
      writeFileSync(path, name === 'haproxy.cfg' ? config : config.replaceAll(/\boriginal$/gm, 'to-the-pod'));
      return ['-f', path];
    });
    return lab.daemon(lab.node, 'haproxy', 'haproxy', ['-db', ...words]);
  },
  two: () => {
    const [outbound, inbound] = ['envoy.yaml', 'envoy-inbound.yaml'].map((name) =>
      parse(
        example(name)
          .replaceAll('port_value: 15001', `port_value: ${OUTBOUND_PORT.two}`)
          .replaceAll('port_value: 15006', `port_value: ${inboundPort('two')}`),
      ),
    );
    const listeners: { name: string }[] = [
      ...outbound.static_resources.listeners,
      ...inbound.static_resources.listeners,
    ];
    const limits = Object.fromEntries(listeners.map(({ name }) => [name, { connection_limit: TAKEN }]));
    const config = {
      ...outbound,
      static_resources: { ...outbound.static_resources, listeners },
      layered_runtime: {
        layers: [{ name: 'limits', static_layer: { envoy: { resource_limits: { listener: limits } } } }],
      },
    };
    const path = join(lab.directory, 'envoy.json');
    writeFileSync(path, JSON.stringify(config));
    const words = ['--concurrency', '2', '--disable-hot-restart', '--log-level', 'error'];
    return lab.daemon(lab.node, 'envoy', ENVOY, [
      ...['-c', path, '--file-flush-interval-msec', '50'],
      ...words,
    ]);
  },
};

async function instance(app: App): Promise<InstanceMessage> {
  const found = (await agent.client.instances()).instances.find(({ name }) => name === app);
  if (found === undefined) {
    throw new Error(`there is no instance ${app}`);
  }
  return found;
}

/** Returns once all its listeners are the new process's, and it accepts. */
async function start(app: App): Promise<void> {
  const daemon = START[app]();
  proxies.set(app, daemon);
  await waitFor(
    `the proxy of ${app} to serve`,
    async () => {
      if (!daemon.running) {
        throw new Error(`${daemon.name} ended: ${daemon.log().slice(-3_000)}`);
      }
      const { listeners } = await instance(app);
      return listeners.length === 4 && listeners.every(({ adopted, pid }) => adopted && pid === daemon.pid);
    },
    30_000,
  );
  await accepting(app);
}

const accepting = (app: App) =>
  waitFor(`${app} to accept`, async () => (await instance(app)).health.state === 'ACCEPTING', 20_000);

const podsOf = (app: App) => pods.get(app) ?? ([] as never);
const proxyOf = (app: App) => proxies.get(app) as Daemon;

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  const ptp = createNetwork(lab, 'ptp');
  const server = await buildApp();
  const add = async (name: string) => {
    const pod = await runPlainPod(lab, ptp, name);
    await lab.daemon(pod.netnsName, `server-${name}`, server, ['serve', '80']).logged(/"serving":true/);
    return pod;
  };
  pods.set('one', [await add('one-a'), await add('one-b')]);
  pods.set('two', [await add('two-a'), await add('two-b')]);
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  agent.writeConfig({
    instances: [...pods.keys()].map((app) => ({
      name: app,
      apps: [app],
      outbound: both(OUTBOUND_PORT[app]),
      inbound: both(inboundPort(app)),
      health: { checkSeconds: 1, failSeconds: 2 },
    })),
  });
  agent.writePods(
    [...pods].flatMap(([app, all]) =>
      all.map((pod) => staticPod(pod, { labels: { app, 'nodesentry.io/intercept': 'enabled' } })),
    ),
  );
  await agent.start();
  await start('one');
  await start('two');
  for (const pod of [...pods.values()].flat()) {
    await agent.reaches(pod.name, 'INTERCEPTED');
  }
});

afterAll(async () => {
  await lab?.close();
});

function connections(app: App): string[][] {
  return proxyOf(app)
    .log()
    .split('\n')
    .flatMap((line) => {
      const [, ...words] = CONNECTION.exec(line) ?? [];
      return words.length > 0 ? [words] : [];
    });
}

const dialsPod = async (pod: PlainPod, family: 4 | 6) =>
  tryRun(...inNetns(lab.remote, await buildApp(), ['dial', pod.ips[family], '80']));

describe.each(['one', 'two'] as const)('a flow of app %s', (app) => {
  it.each(FAMILIES)('IPv%i: reaches its own proxy in both directions', async (family) => {
    for (const pod of podsOf(app)) {
      const out = reply(await pod.app(['dial', REMOTE[family], '80']));
      const into = reply(await dialsPod(pod, family));
      expect([out, into]).toMatchObject([{ ok: true }, { ok: true }]);
      await waitFor('its proxy to log both', () => {
        const logged = connections(app).map((words) => words.join(' '));
        return (
          logged.includes(`${pod.ips[family]} ${out.localPort} ${REMOTE[family]} 80`) &&
          logged.includes(`${FAR[family]} ${into.localPort} ${pod.ips[family]} 80`)
        );
      });
    }
  });
});

/** A new connection of the pod has had an answer within two seconds. */
async function served(pod: PlainPod): Promise<boolean> {
  const words = ['2', await buildApp(), 'dial', REMOTE[4], '80'];
  return (await tryRun(...inNetns(pod.netnsName, 'timeout', words))).code === 0;
}

const servedAgain = (app: App) =>
  waitFor(
    `${app} to be served again`,
    async () => (await Promise.all(podsOf(app).map(served))).every((well) => well),
    30_000,
  );

/** Connections that stay, and are made anew a second after they were ended. */
const HOG = `const dial = () => require('node:net').connect(80, '${REMOTE[4]}')
  .on('connect', function () { this.write('x\\n') }).on('error', () => {}).on('close', () => setTimeout(dial, 1_000))
  .resume();
for (let i = 0; i < ${WANTED}; i++) dial();`;

/** Asking costs time of the CPU, and there is none of it in the undisturbed window. */
const seldom = (what: string, condition: () => Promise<boolean>) => waitFor(what, condition, 20_000, 250);

interface Trouble {
  readonly name: string;
  begin(app: App): Promise<unknown>;
  end(app: App): Promise<unknown>;
}

let hogs: readonly Daemon[] = [];

const TROUBLES: readonly Trouble[] = [
  {
    name: 'is killed',
    begin: async (app) => {
      await proxyOf(app).stop('SIGKILL');
      await seldom('it to be told', async () =>
        (await instance(app)).listeners.every(({ adopted }) => !adopted),
      );
    },
    end: start,
  },
  {
    name: 'is stopped',
    begin: async (app) => {
      process.kill(proxyOf(app).pid, 'SIGSTOP');
      await seldom('it to be told', async () => (await instance(app)).health.state === 'HUNG');
      const refused = { ok: false, error: 'ECONNREFUSED' };
      for (const pod of podsOf(app)) {
        expect(reply(await pod.app(['dial', REMOTE[4], '80']))).toMatchObject(refused);
      }
    },
    end: async (app) => {
      process.kill(proxyOf(app).pid, 'SIGCONT');
      await accepting(app);
    },
  },
  {
    name: 'is overloaded',
    begin: async (app) => {
      hogs = podsOf(app).map((pod) =>
        lab.daemon(pod.netnsName, `hog-${pod.name}`, process.execPath, ['-e', HOG]),
      );
      await seldom('it to take no more', async () => !(await served(podsOf(app)[0])));
    },
    end: async (app) => {
      await Promise.all(hogs.map((hog) => hog.stop()));
      await accepting(app);
    },
  },
];

const connects = (pod: PlainPod, family: 4 | 6, everyMs: number): LoadSpec[] => [
  { pod, family, everyMs, kind: 'connects' },
  { pod, family, everyMs, kind: 'connects', inbound: true },
];

async function flowing(specs: readonly LoadSpec[]): Promise<Load> {
  const load = await Load.start(lab, specs);
  onTestFinished(() => load.end());
  return load;
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

const total = (told: readonly Told[]) => told.reduce((sum, { done }) => sum + done, 0);

describe.each([
  ['HAProxy', 'one', 'two'],
  ['Envoy', 'two', 'one'],
] as const)('while %s, of app %s,', (_name, victim, other) => {
  it.each(TROUBLES.map((trouble) => [trouble.name, trouble] as const))(
    `%s, none of ${REQUESTS} requests of app ${other} fails${FULL_SIZE ? ' or is slower' : ''}`,
    async (name, { begin, end }) => {
      const [a, b] = podsOf(other);
      await flowing(connects(podsOf(victim)[0], 4, 4 * EVERY_MS));
      const watched = await flowing([...connects(a, 4, EVERY_MS), ...connects(b, 6, EVERY_MS)]);
      const [undisturbed, disturbed]: [Told[], Told[]] = [[], []];
      for (let round = 0; round < MIN_ROUNDS || total(disturbed) < REQUESTS; round++) {
        await watched.told();
        await sleep(WINDOW_MS);
        undisturbed.push(...(await watched.told()));
        try {
          await begin(victim);
          await sleep(WINDOW_MS);
          disturbed.push(...(await watched.told()));
        } finally {
          await end(victim);
        }
        await servedAgain(victim);
      }
      const [before, meanwhile] = [undisturbed, disturbed].map((told) =>
        median(told.map(({ p99Ms }) => p99Ms)),
      );
      process.stdout.write(
        `${victim} ${name}: ${total(disturbed)} requests of ${other}, p99 ${meanwhile} ms, undisturbed ${before} ms, ` +
          `slowest ${Math.max(...disturbed.map(({ slowestMs }) => slowestMs))} ms\n`,
      );
      expect([...undisturbed, ...disturbed].filter(({ failures }) => failures > 0)).toEqual([]);
      if (FULL_SIZE) {
        expect(meanwhile).toBeLessThanOrEqual(Math.max(TIMES * Number(before), Number(before) + NOISE_MS));
      }
    },
    patient(300_000),
  );
});

it.each(['one', 'two'] as const)('all that the proxy of %s has had is of its own pods', (app) => {
  const own = podsOf(app).flatMap(({ ips }) => Object.values(ips));
  const logged = connections(app);
  const strange = logged.filter(
    ([peer = '', , dialled = '']) =>
      !own.includes(peer) && !own.includes(dialled) && dialled !== '127.0.0.1' && dialled !== '::1',
  );
  expect(logged.length).toBeGreaterThan(REQUESTS);
  expect(strange).toEqual([]);
});
