/** Life-cycle hooks of pods: called from the pod, and by the node as the kubelet does; who calls is known by the flow. */

import { expect, it, onTestFinished } from 'vitest';
import { inNetns, runIn, tryRun, waitFor } from '../lab/exec.js';
import { REMOTE } from '../lab/lab.js';
import { Load } from '../lab/load.js';
import type { PlainPod } from '../lab/plain.js';
import { BOTH_WAYS, useScene } from './scene.js';

const PORT = 15_077;
const FAMILIES = [4, 6] as const;

const scene = useScene({
  pods: [{ name: 'web' }, { name: 'db' }, { name: 'plain', described: { labels: { app: 'plain' } } }],
  inbound: true,
  agent: { instances: [{ ...BOTH_WAYS, health: { checkSeconds: 1, failSeconds: 1 } }], lifecycle: {} },
});

const pod = (name: string) => scene.pod(name) as PlainPod;

/** The node's own address towards its pods. */
async function nodeAddress(family: 4 | 6): Promise<string> {
  const shown = JSON.parse(
    await runIn(scene.lab.node, 'ip', ['-j', `-${family}`, 'addr', 'show', 'dev', 'uplink']),
  ) as {
    addr_info: { local: string; scope: string }[];
  }[];
  return shown[0]?.addr_info.find(({ scope }) => scope === 'global')?.local ?? '';
}

const host = (ip: string) => (ip.includes(':') ? `[${ip}]` : ip);

async function ask(netns: string, ip: string, path: string, timeoutMs = 60_000) {
  const url = `http://${host(ip)}:${PORT}${path}`;
  const words = ['-sS', '-g', '-o', '-', '-w', '\n%{http_code}', '--max-time', '50', url];
  const { stdout, stderr } = await tryRun(...inNetns(netns, 'curl', words), { timeoutMs });
  const [, body = '', status] = /^(.*?)\n*(\d{3})$/s.exec(stdout) ?? [];
  return { status: Number(status), body, stderr };
}

it.each(FAMILIES)('post-start from the pod answers once it is intercepted (IPv%i)', async (family) => {
  const answer = await ask(pod('web').netnsName, await nodeAddress(family), '/post-start');
  expect(answer).toMatchObject({ status: 200 });
  expect(JSON.parse(answer.body)).toEqual({ ready: true, reason: '' });
  expect((await scene.agent.packets('web')).LIFECYCLE).toBeGreaterThan(0);
});

it.each(FAMILIES)(
  'post-start by the kubelet, at the pod’s own address, is answered in its name (IPv%i)',
  async (family) => {
    const answer = await ask(scene.lab.node, pod('web').ips[family], '/post-start');
    expect(answer).toMatchObject({ status: 200 });
    expect((await scene.agent.received('web')).LIFECYCLE).toBeGreaterThan(0);
  },
);

it('is nobody else’s to ask: not from the node, from outside, or of another pod', async () => {
  expect(await ask(scene.lab.node, '127.0.0.1', '/post-start')).toMatchObject({ status: 403 });
  const outside = await ask(scene.lab.remote, pod('web').ips[4], '/post-start', 20_000);
  expect(outside.status).not.toBe(200);
  const other = await ask(pod('db').netnsName, pod('web').ips[4], '/pre-stop', 20_000);
  expect(other.status).not.toBe(200);
  const plain = await ask(pod('plain').netnsName, await nodeAddress(4), '/post-start', 20_000);
  expect(plain.status).not.toBe(200);
  expect((await scene.agent.received('web')).CLOSING ?? 0).toBe(0);
});

it.each([
  ['/nothing', 404, 'there are /post-start and /pre-stop'],
  ['/post-start?deadlineSeconds=x', 400, 'deadlineSeconds: expected a number from 0 to 3600, got \\"x\\"'],
  ['/pre-stop?quietSeconds=-1', 400, 'quietSeconds: expected a number'],
  ['/pre-stop?colour=red', 400, 'colour: there is no such parameter'],
])('%s is refused by name', async (path, status, message) => {
  const answer = await ask(pod('web').netnsName, await nodeAddress(4), path);
  expect(answer.status).toBe(status);
  expect(answer.body).toContain(message);
});

it('post-start waits for an instance that does not accept, and says so at its deadline', async () => {
  const { pid } = (await scene.agent.client.status()).listeners[0] ?? {};
  process.kill(pid ?? 0, 'SIGSTOP');
  const late = await ask(pod('web').netnsName, await nodeAddress(4), '/post-start?deadlineSeconds=1');
  expect(late).toMatchObject({ status: 503, body: expect.stringContaining('does not accept connections') });
  const waiting = ask(pod('web').netnsName, await nodeAddress(4), '/post-start?deadlineSeconds=30');
  process.kill(pid ?? 0, 'SIGCONT');
  expect(await waiting).toMatchObject({ status: 200 });
});

it('pre-stop refuses new connections once none comes, and waits for those that are open', async () => {
  scene.lab.daemon(pod('db').netnsName, 'server', 'socat', ['TCP-LISTEN:80,fork,reuseaddr', 'EXEC:cat']);
  await waitFor('the server', async () => {
    const { code } = await tryRun(
      ...inNetns(scene.lab.remote, 'socat', ['-T1', '/dev/null', `TCP:${pod('db').ips[4]}:80`]),
    );
    return code === 0;
  });
  const open = runIn(scene.lab.remote, 'sh', [
    '-c',
    `(echo one; sleep 4; echo two) | socat -t2 - TCP:${pod('db').ips[4]}:80`,
  ]);
  const begun = Date.now();
  const answer = await ask(scene.lab.node, pod('db').ips[4], '/pre-stop?deadlineSeconds=20&quietSeconds=1');
  expect(answer).toMatchObject({ status: 200 });
  expect(JSON.parse(answer.body)).toMatchObject({ open: 0 });
  expect(Date.now() - begun).toBeGreaterThan(3_000);
  expect(await open).toBe('one\ntwo\n');
  const refused = await tryRun(
    ...inNetns(scene.lab.remote, 'socat', ['-T1', '/dev/null', `TCP:${pod('db').ips[4]}:80`]),
  );
  expect(refused.stderr).toContain('Connection refused');
  expect((await scene.agent.received('db')).CLOSING).toBeGreaterThan(0);
  // What it sends itself goes on.
  expect(JSON.parse((await pod('db').app(['dial', REMOTE[4], '80'])).stdout)).toMatchObject({ ok: true });
});

it('what other pods do meanwhile is not touched', async () => {
  const flowing = await Load.start(scene.lab, [
    { pod: pod('web'), family: 4, everyMs: 5, kind: 'handshakes' },
  ]);
  onTestFinished(() => flowing.end());
  await ask(scene.lab.node, pod('db').ips[4], '/pre-stop?deadlineSeconds=2&quietSeconds=0');
  expect((await flowing.stop()).filter(({ failures }) => failures > 0)).toEqual([]);
});

it('is answered again by the next agent', async () => {
  await scene.agent.stop('SIGKILL');
  await scene.agent.start();
  await scene.agent.reaches('web', 'INTERCEPTED');
  expect(await ask(pod('web').netnsName, await nodeAddress(4), '/post-start')).toMatchObject({ status: 200 });
});
