/**
 * Proxies with four workers and a socket for each, run with the files of examples/: every connection of every runtime is
 * answered by the server behind the proxy, and every worker has some.
 */

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Capture, POD_TCP } from '../lab/capture.js';
import { Containerd } from '../lab/containerd.js';
import { type Daemon, inNetns, runIn, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { MicroVms } from '../lab/microvm.js';
import { type LabPod, type LabRuntime, reply } from '../lab/pod.js';
import { RUNTIMES } from '../lab/runtimes.js';
import { sized } from '../lab/size.js';
import { OUTBOUND, staticPod, TestAgent } from './agent.js';

const CONNECTIONS = sized(200, 1_000);
const WORKERS = 4;
const EXAMPLES = join(import.meta.dirname, '../../examples');
const ENVOY = join(import.meta.dirname, '../../.cache/bin/envoy');
/** Of all connections of a test. */
const LOAD_MS = 90_000;

/** What each of the examples logs of a connection: address of the peer, dialled address, dialled port. */
const CONNECTION = /peer=\[?(.+?)\]?:\d+ dialled=\[?(.+?)\]?:(\d+)$/;

interface Proxy {
  readonly name: string;
  /** Where the example listens. */
  readonly outbound: readonly string[];
  readonly command: string;
  words(): readonly string[];
  /** With a line for each connection that has ended. */
  log(daemon: Daemon): string;
  /** How many connections each worker has had since the start, by the proxy's own account. */
  workers(log: string): Promise<ReadonlyMap<string, number>>;
}

let lab: Lab;
let agent: TestAgent;
let uplink: Capture;
const pods = new Map<LabRuntime, LabPod>();

function byLine(log: string): Promise<Map<string, number>> {
  const found = new Map<string, number>();
  for (const [, worker = ''] of log.matchAll(/^worker=(\d+) /gm)) {
    found.set(worker, (found.get(worker) ?? 0) + 1);
  }
  return Promise.resolve(found);
}

const PROXIES: readonly Proxy[] = [
  {
    name: 'HAProxy',
    outbound: OUTBOUND,
    command: 'haproxy',
    words: () => ['-f', join(EXAMPLES, 'haproxy.cfg')],
    log: (daemon) => daemon.log(),
    workers: byLine,
  },
  {
    name: 'Envoy',
    outbound: OUTBOUND,
    command: ENVOY,
    words: () => [
      ...['-c', join(EXAMPLES, 'envoy.yaml'), '--concurrency', String(WORKERS)],
      // Which would be shared with the Envoys of other namespaces.
      '--disable-hot-restart',
      ...['--file-flush-interval-msec', '50'],
    ],
    log: (daemon) => daemon.log(),
    workers: async () => {
      const stats = await runIn(lab.node, 'curl', ['-sS', 'http://127.0.0.1:15000/stats?filter=worker_']);
      const found = new Map<string, number>();
      for (const [, worker = '', count] of stats.matchAll(
        /^listener\.outbound[46]\.(worker_\d+)\.downstream_cx_total: (\d+)$/gm,
      )) {
        found.set(worker, (found.get(worker) ?? 0) + Number(count));
      }
      return found;
    },
  },
  {
    name: 'nginx',
    outbound: ['0.0.0.0:15001', '[::]:15001'],
    command: 'nginx',
    words: () => [
      '-p',
      lab.directory,
      '-c',
      join(EXAMPLES, 'nginx.conf'),
      '-e',
      'stderr',
      '-g',
      'daemon off;',
    ],
    log: () => {
      const path = join(lab.directory, 'taken.log');
      return existsSync(path) ? readFileSync(path, 'utf8') : '';
    },
    workers: byLine,
  },
];

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  const containerd = await Containerd.start(lab, 'ptp');
  const microvms = new MicroVms(lab, 'ptp', containerd.network);
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  const started = RUNTIMES.map((runtime) => {
    const name = `web-${runtime}`;
    return runtime === 'rund' ? microvms.runPod({ name }) : containerd.runPod({ name, runtime });
  });
  for (const pod of await Promise.all(started)) {
    pods.set(pod.runtime, pod);
  }
  // Whoever reads the capture must be able to see a pod that does escape.
  const control = await Capture.start(lab, lab.node, 'uplink', POD_TCP);
  for (const pod of pods.values()) {
    expect(reply(await pod.app(['dial', REMOTE[4], '80']))).toMatchObject({ ok: true });
  }
  expect(new Set((await control.flows()).map((flow) => flow.split(':')[0])).size).toBe(RUNTIMES.length);
  await control.stop();
  uplink = await Capture.start(lab, lab.node, 'uplink', POD_TCP);
});

afterAll(async () => {
  await lab?.close();
});

function podOf(runtime: LabRuntime): LabPod {
  const found = pods.get(runtime);
  if (found === undefined) {
    throw new Error(`no ${runtime} pod was started`);
  }
  return found;
}

/** How many connections there are of each peer to each dialled address. */
function tally(lines: readonly string[]): Record<string, number> {
  const found: Record<string, number> = {};
  for (const line of lines) {
    const [, peer, dialled, port] = CONNECTION.exec(line) ?? [];
    const key = `${peer} > ${dialled} ${port}`;
    found[key] = (found[key] ?? 0) + 1;
  }
  return found;
}

/** Since `before`, of those workers that had any. */
function difference(before: ReadonlyMap<string, number>, after: ReadonlyMap<string, number>): number[] {
  return [...after].map(([worker, count]) => count - (before.get(worker) ?? 0)).filter((count) => count > 0);
}

describe.each(PROXIES)('$name with four workers', ({ name, outbound, command, words, log, workers }) => {
  let daemon: Daemon;
  const connections = () =>
    log(daemon)
      .split('\n')
      .filter((line) => CONNECTION.test(line));

  beforeAll(async () => {
    // Each worker's connections are counted: none is to be the agent's own.
    agent.writeConfig({ instances: [{ name: 'default', outbound, health: { checkSeconds: 0 } }] });
    agent.writePods([...pods.values()].map((pod) => staticPod(pod)));
    await agent.start();
    daemon = lab.daemon(lab.node, name, command, words());
    await waitFor(
      `all sockets of ${name} to be adopted`,
      async () => {
        if (!daemon.running) {
          throw new Error(`${name} ended: ${daemon.log().slice(-3_000)}`);
        }
        const { listeners } = await agent.client.status();
        const adopted = listeners.filter((listener) => listener.adopted);
        return (
          adopted.length === 2 &&
          adopted.every(({ sockets: { all, transparent } }) => all === WORKERS && transparent === WORKERS)
        );
      },
      30_000,
    );
    for (const pod of pods.values()) {
      await agent.reaches(pod.name, 'INTERCEPTED');
    }
  });

  afterAll(async () => {
    // The next one listens elsewhere.
    agent.writePods([]);
    await waitFor('the pods to be let go', () => agent.endpoints().length === 0, 10_000);
    await daemon?.stop();
    await agent.stop();
  });

  describe.each(RUNTIMES)('%s', (runtime) => {
    it.each([4, 6] as const)(
      `IPv%i: ${CONNECTIONS} connections are answered, and every worker had some`,
      async (family) => {
        const pod = podOf(runtime);
        const [alreadyLogged, alreadyHad] = [connections().length, await workers(log(daemon))];
        const load = ['connects', REMOTE[family], '80', String(CONNECTIONS), '0'];
        const done = reply(await pod.app(load, LOAD_MS));
        expect(done).toMatchObject({ ok: true, done: CONNECTIONS, failures: 0 });

        const wanted = alreadyLogged + CONNECTIONS;
        await waitFor(`${name} to log them`, () => connections().length >= wanted, 20_000);
        expect(tally(connections().slice(alreadyLogged))).toEqual({
          [`${pod.ips[family]} > ${REMOTE[family]} 80`]: CONNECTIONS,
        });

        const had = difference(alreadyHad, await workers(log(daemon)));
        process.stdout.write(`${name}, ${runtime}, IPv${family}: ${had.join(' + ')}, ${done.ms} ms\n`);
        expect(had).toHaveLength(WORKERS);
        expect(had.reduce((sum, count) => sum + count, 0)).toBe(CONNECTIONS);
      },
    );
  });

  it.each([4, 6] as const)(
    'IPv%i: what dials its own port is refused, and not passed on to it again without an end',
    async (family) => {
      const before = connections().length;
      const own = { 4: '127.0.0.1', 6: '::1' }[family];
      const dialled = await tryRun(...inNetns(lab.node, await buildApp(), ['dial', own, '15001']));
      expect(reply(dialled)).toMatchObject({ ok: false });
      expect(reply(await podOf('runc').app(['dial', REMOTE[family], '80']))).toMatchObject({ ok: true });
      const added = () => tally(connections().slice(before));
      const wanted = `${podOf('runc').ips[family]} > ${REMOTE[family]} 80`;
      await waitFor(`${name} to log the pod's`, () => added()[wanted] === 1, 20_000);
      // It may log what it refused.
      const refused = added()[`${own} > ${own} 15001`] ?? 0;
      expect(refused).toBeLessThanOrEqual(1);
      expect(connections()).toHaveLength(before + refused + 1);
    },
  );

  it('nothing of a pod has left the node but through the proxy', async () => {
    expect(await uplink.flows()).toEqual([]);
  });
});
