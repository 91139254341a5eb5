/**
 * Proxies that are reloaded under the traffic of a pod, as their own documentation says: what becomes of connections that
 * are open, of new ones, and of those that wait in the queue of a worker that ends.
 */

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it, onTestFinished } from 'vitest';
import type { ListenerMessage } from '../../src/api/messages.js';
import { Capture, POD_TCP } from '../lab/capture.js';
import { createNetwork } from '../lab/cni.js';
import { type Daemon, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { Load, type Told } from '../lab/load.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { staticPod, TestAgent } from './agent.js';

const RELOADS = 3;
/** Between two connections of a load. */
const EVERY_MS = 4;
/** The agent looks for listeners every 100 ms, and then for who holds them: twice that is noise. */
const REFUSED_MS = 250;
/** A SYN that is lost comes again after a second, the second time after two more. */
const [ONE_LOST_SYN_MS, NONE_LOST_MS] = [1_500, 900];
/** After each reload. */
const DIALS = 10;

const INSTANCES = [
  { name: 'one', apps: ['one'], outbound: '127.0.0.1:15020' },
  { name: 'shards', apps: ['shards'], outbound: '127.0.0.1:15021' },
  { name: 'handed', apps: ['handed'], outbound: '127.0.0.1:15023' },
  { name: 'nginx', apps: ['nginx'], outbound: '0.0.0.0:15022' },
];

let lab: Lab;
let agent: TestAgent;
let uplink: Capture;
const pods = new Map<string, PlainPod>();

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  const ptp = createNetwork(lab, 'ptp');
  for (const { name } of INSTANCES) {
    pods.set(name, await runPlainPod(lab, ptp, name));
  }
  // Whoever reads the capture must be able to see a pod that does escape.
  const control = await Capture.start(lab, lab.node, 'uplink', POD_TCP);
  expect(reply(await podOf('one').app(['dial', REMOTE[4], '80']))).toMatchObject({ ok: true });
  expect(await control.all()).not.toEqual([]);
  await control.stop();
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } }, instances: INSTANCES });
  uplink = await Capture.start(lab, lab.node, 'uplink', POD_TCP);
  agent.writePods([...pods.values()].map((pod) => staticPod(pod)));
  await agent.start();
  for (const { name } of INSTANCES) {
    await agent.reaches(name, 'INTERCEPTED');
  }
});

afterAll(async () => {
  await lab?.close();
});

function podOf(instance: string): PlainPod {
  const pod = pods.get(instance);
  if (pod === undefined) {
    throw new Error(`no pod of ${instance}`);
  }
  return pod;
}

async function listenerOf(instance: string): Promise<ListenerMessage | undefined> {
  const { listeners } = await agent.client.status();
  return listeners.find((listener) => listener.instance === instance && listener.family === 4);
}

/** Adopted, and every socket of it fit to take connections. */
function adopted(instance: string, sockets: number): Promise<ListenerMessage> {
  return waitFor(`the listener of ${instance} to be adopted`, async () => {
    const found = await listenerOf(instance);
    const isWhole = found?.sockets.all === sockets && found.sockets.transparent === sockets;
    return found?.adopted && isWhole ? found : undefined;
  });
}

/** The same, held by a worker of this master, and not by the one before: a master opens the sockets that it hands on. */
function adoptedWorker(
  instance: string,
  sockets: number,
  master: Daemon,
  before?: number,
): Promise<ListenerMessage> {
  return waitFor(`a worker of ${master.name} to be adopted`, async () => {
    const found = await adopted(instance, sockets);
    return found.pid !== before && parentOf(found.pid) === master.pid ? found : undefined;
  });
}

/** Undefined where there is no such process any more. */
function parentOf(pid: number | undefined): number | undefined {
  try {
    return Number(/^PPid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
  } catch {
    return undefined;
  }
}

/** Connections that wait for no answer, connections with a request, and requests over one connection. */
async function load(pod: PlainPod): Promise<Load> {
  const each = { pod, family: 4, everyMs: EVERY_MS } as const;
  const flowing = await Load.start(lab, [
    { ...each, kind: 'handshakes' },
    { ...each, kind: 'connects' },
    { ...each, kind: 'keepalive' },
  ]);
  onTestFinished(() => flowing.end());
  return flowing;
}

/** How many SYNs of the pod we have answered with a reset. */
async function resets({ name }: PlainPod): Promise<number> {
  return (await agent.packets(name)).NO_LISTENER_RESET ?? 0;
}

/**
 * Dials. Each has to be taken by a process that `isRight` of, with the pod as its peer, and the server has to see the proxy.
 * `log`: of the proxy, a line `took pid=… peer=…` for each connection.
 */
async function dialsAreTakenBy(
  pod: PlainPod,
  log: () => string,
  isRight: (pid: number) => boolean,
): Promise<void> {
  for (let n = 0; n < DIALS; n++) {
    const dialled = reply(await pod.app(['dial', REMOTE[4], '80']));
    expect(dialled).toMatchObject({ ok: true });
    expect(JSON.stringify(dialled.server)).not.toContain(pod.ips[4]);
    const peer = `peer=${pod.ips[4]}:${dialled.localPort}`;
    const line = await waitFor(`the proxy to log ${peer}`, () =>
      log()
        .split('\n')
        .find((candidate) => candidate.endsWith(peer)),
    );
    expect(line).toSatisfy((text: string) => isRight(Number(/took pid=(\d+)/.exec(text)?.[1])));
  }
}

/** The same, of HAProxy. */
function dialsAreTakenByWorker(
  pod: PlainPod,
  haproxy: Daemon,
  { pid: worker }: ListenerMessage,
): Promise<void> {
  return dialsAreTakenBy(
    pod,
    () => haproxy.log(),
    (pid) => pid === worker,
  );
}

interface Reloaded {
  readonly told: readonly Told[];
  readonly resets: number;
}

/** What the load met while `reload` ran. */
async function under(flowing: Load, pod: PlainPod, reload: () => Promise<void>): Promise<Reloaded> {
  await flowing.told();
  const before = await resets(pod);
  await reload();
  // Those of the verdicts that are younger than the load's own count are no load's.
  const told = await flowing.told();
  return { told, resets: (await resets(pod)) - before };
}

function check(what: string, { told, resets }: Reloaded): void {
  const [handshakes, connects, keepalive] = told as [Told, Told, Told];
  const refused = handshakes.failures + connects.failures;
  const slowest = Math.max(handshakes.slowestDialMs, connects.slowestDialMs);
  process.stdout.write(
    `${what}: refused for ${handshakes.failures * EVERY_MS} ms (${refused} connections, ${resets} resets of ours), ` +
      `slowest dial ${slowest} ms, slowest request of the open one ${keepalive.slowestMs} ms\n`,
  );
  expect(keepalive).toMatchObject({ failures: 0 });
  expect(keepalive.slowestMs).toBeLessThan(NONE_LOST_MS);
}

/** Whatever fails is a reset of ours: none waits in a queue that nobody empties, none is lost twice. */
function expectShortRefusal(what: string, reloaded: Reloaded): void {
  check(what, reloaded);
  const [handshakes, connects] = reloaded.told as [Told, Told, Told];
  for (const { failures, error, slowestDialMs } of [handshakes, connects]) {
    expect(failures * EVERY_MS).toBeLessThan(REFUSED_MS);
    expect(slowestDialMs).toBeLessThan(ONE_LOST_SYN_MS);
    expect(failures === 0 ? 'ECONNREFUSED' : error).toBe('ECONNREFUSED');
  }
  // One may have waited for `accept` at the moment at which the old worker closed: that is HAProxy's.
  const others = handshakes.failures + connects.failures - reloaded.resets;
  expect([0, 1]).toContain(others);
}

function expectNothingNoticed(what: string, reloaded: Reloaded): void {
  check(what, reloaded);
  expect(reloaded.resets).toBe(0);
  expect(reloaded.told.filter(({ failures }) => failures > 0)).toEqual([]);
  for (const { slowestMs } of reloaded.told) {
    expect(slowestMs).toBeLessThan(NONE_LOST_MS);
  }
}

let starts = 0;

interface Sockets {
  readonly shards: number;
  /** A new worker asks the old one for its sockets. */
  readonly exposed?: boolean;
  /** HAProxy's own word for what we set on every listener. */
  readonly transparent?: boolean;
}

/** In master-worker mode. */
function startHaproxy(
  instance: string,
  { shards, exposed = false, transparent = false }: Sockets,
  ...more: readonly string[]
): Daemon {
  starts += 1;
  const config = join(lab.directory, `haproxy-${instance}.cfg`);
  const bind = INSTANCES.find(({ name }) => name === instance)?.outbound;
  writeFileSync(
    config,
    `global
  maxconn 4000
  nbthread 4
  log stdout format raw local0
  ${exposed ? `stats socket ${lab.directory}/haproxy-${instance}.sock mode 600 level admin expose-fd listeners` : ''}
defaults
  mode tcp
  log global
  log-format "took pid=%pid peer=%ci:%cp"
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend out
  bind ${bind} shards ${shards}${transparent ? ' transparent' : ''}
  default_backend original
backend original
  server dst *:0
`,
  );
  const name = `haproxy-${starts}`;
  // Straight into the file: to a pipe that is full for a moment it drops lines.
  const line = `exec haproxy -W -f "$@" >>'${join(lab.directory, `${name}.log`)}' 2>&1`;
  const haproxy = lab.daemon(lab.node, name, 'sh', ['-c', line, 'sh', config, ...more]);
  onTestFinished(() => haproxy.stop());
  return haproxy;
}

/** A new master, which ends the old one as soon as its own worker listens. */
const SF = 'a new process with -sf';
/** The master executes itself and starts a new worker. */
const USR2 = 'SIGUSR2 of the master';

it.each([
  { instance: 'one', shards: 1, exposed: false, way: SF },
  { instance: 'one', shards: 1, exposed: false, way: USR2 },
  { instance: 'shards', shards: 4, exposed: false, way: SF },
  { instance: 'shards', shards: 4, exposed: false, way: USR2 },
  // A socket that is transparent, as ours has made it, is not what a bind line without that word asks for.
  { instance: 'handed', shards: 1, exposed: true, way: USR2 },
])(
  'HAProxy that opens its sockets anew ($shards, exposed: $exposed, $way): refused for an instant, then the new worker takes all',
  async ({ instance, shards, exposed, way }) => {
    const pod = podOf(instance);
    const spec = { shards, exposed };
    let haproxy = startHaproxy(instance, spec);
    let held = await adoptedWorker(instance, shards, haproxy);
    const flowing = await load(pod);
    for (let n = 0; n < RELOADS; n++) {
      const reloaded = await under(flowing, pod, async () => {
        if (way === SF) {
          haproxy = startHaproxy(instance, spec, '-sf', String(haproxy.pid));
        } else {
          process.kill(haproxy.pid, 'SIGUSR2');
        }
        held = await adoptedWorker(instance, shards, haproxy, held.pid);
        await dialsAreTakenByWorker(pod, haproxy, held);
      });
      expectShortRefusal(`HAProxy, ${shards} sockets, ${way}`, reloaded);
    }
    await flowing.stop();
    expect(await uplink.flows()).toEqual([]);
  },
);

it.each([
  { instance: 'handed', shards: 1 },
  { instance: 'handed', shards: 4 },
])(
  'HAProxy that hands its sockets on ($shards; expose-fd listeners, bind … transparent): nobody notices',
  async ({ instance, shards }) => {
    const pod = podOf(instance);
    const haproxy = startHaproxy(instance, { shards, exposed: true, transparent: true });
    let held = await adoptedWorker(instance, shards, haproxy);
    const flowing = await load(pod);
    for (let n = 0; n < RELOADS; n++) {
      const reloaded = await under(flowing, pod, async () => {
        process.kill(haproxy.pid, 'SIGUSR2');
        held = await adoptedWorker(instance, shards, haproxy, held.pid);
        await dialsAreTakenByWorker(pod, haproxy, held);
      });
      expectNothingNoticed(`HAProxy, ${shards} sockets handed on`, reloaded);
    }
    await flowing.stop();
    expect(await uplink.flows()).toEqual([]);
  },
);

it('nginx with a socket for each of two workers, HUP: nobody notices, and the new workers take all', async () => {
  const pod = podOf('nginx');
  const [config, taken] = [join(lab.directory, 'nginx.conf'), join(lab.directory, 'nginx-took.log')];
  writeFileSync(
    config,
    `load_module /usr/lib/nginx/modules/ngx_stream_module.so;
     daemon off; worker_processes 2; pid ${lab.directory}/nginx.pid; error_log stderr notice; events {}
     stream {
       log_format took 'took pid=$pid peer=$remote_addr:$remote_port';
       access_log ${taken} took;
       server { listen 0.0.0.0:15022 reuseport; proxy_pass $server_addr:$server_port; }
     }`,
  );
  const nginx = lab.daemon(lab.node, 'nginx', 'nginx', ['-c', config, '-e', 'stderr']);
  await adopted('nginx', 2);
  const workers = () =>
    [...nginx.log().matchAll(/start worker process (\d+)/g)].map(([, pid]) => Number(pid));
  const flowing = await load(pod);
  for (let n = 0; n < RELOADS; n++) {
    const before = workers();
    const reloaded = await under(flowing, pod, async () => {
      process.kill(nginx.pid, 'SIGHUP');
      await waitFor('two new workers', () => workers().length === before.length + 2);
      const ended = () => nginx.log().match(/gracefully shutting down/g)?.length ?? 0;
      await waitFor('the old ones to stop listening', () => ended() >= before.length);
      await adopted('nginx', 2);
      await dialsAreTakenBy(
        pod,
        () => (existsSync(taken) ? readFileSync(taken, 'utf8') : ''),
        (pid) => workers().slice(before.length).includes(pid),
      );
    });
    expectNothingNoticed('nginx, two workers', reloaded);
  }
  await flowing.stop();
  expect(await uplink.flows()).toEqual([]);
  await nginx.stop();
});
