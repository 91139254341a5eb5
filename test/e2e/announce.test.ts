/** A proxy that needs no port which the configuration knows: it announces its listeners, or somebody names its process. */

import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { createNetwork } from '../lab/cni.js';
import { type Daemon, inNetns, run, runIn, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { OUTBOUND, staticPod, TestAgent, TestProxy } from './agent.js';

const EXAMPLE = join(import.meta.dirname, '../../examples/announce/announce.c');
const NODE = '10.199.0.1';
const OTHER_UID = '12345';
const WORKERS = 4;
const CONNECTIONS = 200;

let lab: Lab;
let agent: TestAgent;
let web: PlainPod;
let pay: PlainPod;
let announcer: string;

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  const folder = mkdtempSync(join(tmpdir(), 'announce-'));
  lab.cleanup.add('the example', () => rmSync(folder, { recursive: true }));
  chmodSync(folder, 0o755); // another uid executes it as well
  announcer = join(folder, 'announce');
  await run('gcc', ['-O2', '-Wall', '-Wextra', '-Werror', '-o', announcer, EXAMPLE]);
  const ptp = createNetwork(lab, 'ptp');
  web = await runPlainPod(lab, ptp, 'web');
  pay = await runPlainPod(lab, ptp, 'pay');
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  chmodSync(lab.directory, 0o755);
  chmodSync(agent.runDir, 0o755);
  agent.writePods([staticPod(web), staticPod(pay)]);
  agent.writeConfig({
    instances: [
      { name: 'payments', apps: ['pay'], announced: ['outbound', 'inbound'] },
      { name: 'default', outbound: [...OUTBOUND] },
    ],
  });
  await agent.start();
  await new TestProxy(lab, agent).start('--allow-unidentified');
  await agent.adopted(2);
  await agent.reaches('web', 'INTERCEPTED');
  await agent.reaches('pay', 'INTERCEPTED');
});

afterAll(async () => {
  await lab?.close();
});

let starts = 0;

/** The example, which tells its word to whoever comes. */
async function startExample(word: string): Promise<Daemon> {
  starts += 1;
  const words = [join(agent.runDir, 'announce.sock'), 'payments', word];
  const daemon = lab.daemon(lab.node, `announcer-${starts}`, announcer, words);
  await daemon.logged(/"ok":true/);
  return daemon;
}

/** What a connection of the pod is told; empty where it is reset. */
async function told(netns = pay.netnsName, ip: string = REMOTE[4]): Promise<string> {
  const words = ['-c', `socat -u -T1 TCP:${ip}:80,connect-timeout=5 - 2>/dev/null || true`];
  return (await runIn(netns, 'sh', words)).trim();
}

async function payments() {
  const { instances } = await agent.client.instances();
  return (instances.find(({ name }) => name === 'payments')?.listeners ?? []).filter(
    ({ adopted }) => adopted,
  );
}

it('gets its pod’s connections in both directions; without one they meet the policy', async () => {
  expect(await told()).toBe('');
  expect(reply(await web.app(['dial', REMOTE[4], '80']))).toMatchObject({ ok: true });
  const daemon = await startExample('one');
  expect(await told()).toBe(`one outbound ${REMOTE[4]}:80`);
  expect(await told(lab.remote, pay.ips[4])).toBe(`one inbound ${pay.ips[4]}:80`);
  expect(await payments()).toMatchObject([
    { direction: 'outbound', family: 4, announced: true, pid: daemon.pid, process: 'announce' },
    { direction: 'inbound', family: 4, announced: true },
  ]);
  expect((await agent.cli('instances')).stdout).toMatch(/IPv4 announce \(\d+\) announced/);
  const [outbound] = await payments();
  const port = outbound?.address.split(':')[1] ?? '';
  const before = (await agent.packets('pay')).PROXY_PORT ?? 0;
  expect(reply(await pay.app(['dial', NODE, port]))).toMatchObject({ ok: false, error: 'ECONNREFUSED' });
  expect((await agent.packets('pay')).PROXY_PORT).toBe(before + 1);

  await daemon.stop('SIGKILL');
  await waitFor('the policy', async () => (await told()) === '');
  expect(await told(lab.remote, pay.ips[4])).toBe('');
  await startExample('two');
  expect(await told()).toBe(`two outbound ${REMOTE[4]}:80`);
});

it('goes on while the agent is away, and with the next one', async () => {
  const before = await payments();
  await agent.stop('SIGKILL');
  expect(await told()).toBe(`two outbound ${REMOTE[4]}:80`);
  await agent.start();
  expect(await payments()).toEqual(before);
  expect(await told(lab.remote, pay.ips[4])).toBe(`two inbound ${pay.ips[4]}:80`);
});

it('another uid is refused, and nothing changes', async () => {
  const before = await payments();
  const words = [
    `--reuid=${OTHER_UID}`,
    `--regid=${OTHER_UID}`,
    '--clear-groups',
    ...[announcer, join(agent.runDir, 'announce.sock'), 'payments', 'thief'],
  ];
  const { code, stdout } = await tryRun(...inNetns(lab.node, 'setpriv', words));
  expect(code).toBe(2);
  expect(JSON.parse(stdout)).toMatchObject({
    status: 403,
    reason: 'CALLER_NOT_ALLOWED',
    detail: expect.stringContaining(`with uid ${OTHER_UID}`),
  });
  expect(await payments()).toEqual(before);
  expect(await told()).toBe(`two outbound ${REMOTE[4]}:80`);
});

it('of a process with several workers, every worker gets connections', async () => {
  const config = join(lab.directory, 'haproxy.cfg');
  writeFileSync(
    config,
    [
      'global',
      `  nbthread ${WORKERS}`,
      '  log stdout format raw local0',
      'defaults',
      '  mode tcp',
      '  timeout connect 5s',
      '  timeout client 60s',
      '  timeout server 60s',
      'listen outbound',
      `  bind 127.0.0.1:16301 shards by-thread`,
      '  log global',
      '  log-format "worker=%[thread] dialled=%[dst]"',
      '  server remote *:0',
      '',
    ].join('\n'),
  );
  const haproxy = lab.daemon(lab.node, 'haproxy', 'haproxy', ['-db', '-f', config]);
  const request = { pid: haproxy.pid, outbound: '127.0.0.1:16301' };
  const adopt = () => agent.client.adoptListeners('payments', request);
  await waitFor('HAProxy to listen', async () => {
    const reason = await adopt().then(
      () => '',
      (error: { code?: string }) => error.code,
    );
    return reason === 'LISTENER_TAKEN';
  });
  const { listeners } = await agent.client.adoptListeners('payments', { ...request, replace: true });
  expect(listeners.find(({ direction, family }) => direction === 'outbound' && family === 4)).toMatchObject({
    address: '127.0.0.1:16301',
    announced: true,
    sockets: { all: WORKERS, transparent: WORKERS },
  });
  const load = ['connects', REMOTE[4], '80', String(CONNECTIONS), '0'];
  await tryRun(...inNetns(pay.netnsName, await buildApp(), load));
  const lines = () => [...haproxy.log().matchAll(/^worker=(\d+) dialled=(\S+)/gm)];
  await waitFor('HAProxy to log them', () => lines().length >= CONNECTIONS);
  expect(new Set(lines().map(([, worker]) => worker)).size).toBe(WORKERS);
  expect(new Set(lines().map(([, , dialled]) => dialled))).toEqual(new Set([REMOTE[4]]));

  const withdrawn = await agent.client.withdrawListeners('payments');
  expect(withdrawn.listeners.some(({ adopted }) => adopted)).toBe(false);
  expect(await told()).toBe('');
});
