/** Proxies that the agent starts, for the pods of their app. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it, onTestFinished } from 'vitest';
import type { InstanceMessage } from '../../src/api/messages.js';
import { processIdOf } from '../../src/supervise/processes.js';
import { readMessages } from '../../src/supervise/state.js';
import { instancesFolder } from '../../src/supervise/supervisor.js';
import { createNetwork } from '../lab/cni.js';
import { runIn, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { Load } from '../lab/load.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { CLI, OUTBOUND, staticPod, TestAgent, TestProxy } from './agent.js';

const COMMON = { name: 'default', outbound: [...OUTBOUND] };

let lab: Lab;
let agent: TestAgent;
let web: PlainPod;
let pay: PlainPod;
let pay2: PlainPod;
let haproxy: object;

/** Says its own pid and which pod it has in front of it, in every answer. */
const HAPROXY = `global
  log stdout format raw local0 info
defaults
  mode http
  log global
  option httplog
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend out
  bind fd@3
  http-request return status 200 content-type text/plain string "pay served"
`;

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  const ptp = createNetwork(lab, 'ptp');
  web = await runPlainPod(lab, ptp, 'web');
  pay = await runPlainPod(lab, ptp, 'pay');
  pay2 = await runPlainPod(lab, ptp, 'pay2');
  const config = join(lab.directory, 'pay.cfg');
  writeFileSync(config, HAPROXY);
  haproxy = {
    name: 'payments',
    apps: ['pay'],
    outbound: '127.0.0.1:16001',
    command: ['/usr/sbin/haproxy', '-db', '-f', config],
    run: { graceSeconds: 1, stopSignal: 'SIGUSR1' },
  };
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  agent.writeConfig({ instances: [haproxy, COMMON] });
  agent.writePods([staticPod(web)]);
  // They outlive the agent, which has ended by then.
  lab.cleanup.add('supervised proxies', async () => {
    for (const { pid } of readMessages(instancesFolder(agent.runDir))) {
      if (pid !== null) {
        process.kill(-pid, 'SIGKILL');
      }
    }
  });
  await agent.start();
  await new TestProxy(lab, agent).start('--allow-unidentified');
  await agent.adopted(2);
  await agent.reaches('web', 'INTERCEPTED');
});

afterAll(async () => {
  await lab?.close();
});

async function payments(): Promise<InstanceMessage> {
  const { instances } = await agent.client.instances();
  const found = instances.find(({ name }) => name === 'payments');
  if (found === undefined) {
    throw new Error('payments is not in the list');
  }
  return found;
}

function running(): Promise<number> {
  return waitFor('the proxy to run', async () => {
    const { process } = await payments();
    return process?.state === 'RUNNING' && process.pid !== null && process.pid;
  });
}

const asked = (pod: PlainPod, seconds = 10) =>
  runIn(pod.netnsName, 'curl', ['-sS', '-m', String(seconds), `http://${REMOTE[4]}:80/`]);

/** What the other app does all the while. */
async function undisturbed(): Promise<Load> {
  const each = { pod: web, family: 4, everyMs: 5 } as const;
  const flowing = await Load.start(lab, [
    { ...each, kind: 'handshakes' },
    { ...each, kind: 'keepalive' },
  ]);
  onTestFinished(() => flowing.end());
  return flowing;
}

const ofPay = (pod: PlainPod) =>
  staticPod(pod, { labels: { app: 'pay', 'nodesentry.io/intercept': 'enabled' } });

it('the first pod of its app starts it, the second shares it', async () => {
  const flowing = await undisturbed();
  expect((await payments()).process).toMatchObject({ state: 'STOPPED', pid: null });
  expect(await runIn(lab.node, 'ss', ['-Hltn', 'sport = 16001'])).toBe('');
  agent.writePods([staticPod(web), ofPay(pay)]);
  await agent.reaches('pay', 'INTERCEPTED');
  expect(await asked(pay)).toBe('pay served');
  const pid = await running();
  agent.writePods([staticPod(web), ofPay(pay), ofPay(pay2)]);
  await agent.reaches('pay2', 'INTERCEPTED');
  expect(await asked(pay2)).toBe('pay served');
  const { process, listeners } = await payments();
  expect(process).toMatchObject({ pid, restarts: 0, problem: '' });
  expect(process?.memoryBytes).toBeGreaterThan(1 << 20);
  expect(listeners).toContainEqual(
    expect.objectContaining({ direction: 'outbound', family: 4, adopted: true, pid }),
  );
  const { stdout } = await agent.cli('instances');
  expect(stdout).toMatch(
    /^payments .* IPv4 haproxy \(\d+\).* 2 +2 +\d+ +\d+\.\d MiB +\d+\.\d MiB +RUNNING +0$/m,
  );
  expect((await flowing.stop()).filter(({ failures }) => failures > 0)).toEqual([]);
});

it('is upgraded by another process with the same sockets, and nobody notices', async () => {
  const flowing = await undisturbed();
  const own = [
    { pod: pay, family: 4, everyMs: 2, kind: 'handshakes' },
    { pod: pay2, family: 4, everyMs: 5, kind: 'handshakes' },
  ] as const;
  const served = await Load.start(lab, own);
  onTestFinished(() => served.end());
  const before = await running();
  const words = ['instances', 'upgrade', 'payments', '--deadline', '10s'];
  const { stdout } = await agent.cli(...words);
  expect(stdout.trim().split('\n').at(-1)).toBe('DONE');
  const after = await running();
  expect(after).not.toBe(before);
  expect(processIdOf(before)).toBeUndefined();
  expect(await asked(pay)).toBe('pay served');
  expect((await served.stop()).filter(({ failures }) => failures > 0)).toEqual([]);
  expect((await flowing.stop()).filter(({ failures }) => failures > 0)).toEqual([]);
  expect((await payments()).process).toMatchObject({ pid: after, restarts: 0 });
});

it('another command takes its place in the same way; one that does not live changes nothing', async () => {
  const before = await running();
  const broken = { ...haproxy, command: ['/bin/sh', '-c', 'exit 3'] };
  agent.writeConfig({ instances: [broken, COMMON] });
  await waitFor('it to be told', async () => (await payments()).process?.problem !== '');
  expect((await payments()).process).toMatchObject({ pid: before, state: 'RUNNING' });
  expect((await payments()).process?.problem).toMatch(/exit code 3|ended at once/);
  agent.writeConfig({ instances: [haproxy, COMMON] });
  await waitFor('another one', async () => (await payments()).process?.pid !== before);
  expect(await asked(pay)).toBe('pay served');
});

it('what it writes is in the log of the agent, under its name', async () => {
  await waitFor('its line of the request', () =>
    agent
      .log()
      .split('\n')
      .some(
        (line) => line.includes('"instance":"payments","stream":"stdout"') && line.includes('GET / HTTP'),
      ),
  );
});

it('one that is killed comes back, and who connects meanwhile waits', async () => {
  const flowing = await undisturbed();
  const pid = await running();
  process.kill(pid, 'SIGKILL');
  expect(await asked(pay)).toBe('pay served');
  const next = await running();
  expect(next).not.toBe(pid);
  expect((await payments()).process).toMatchObject({ restarts: 1, lastExit: 'SIGKILL' });
  expect((await flowing.stop()).filter(({ failures }) => failures > 0)).toEqual([]);
});

it('it is the same process after the agent was killed and started again', async () => {
  const pid = await running();
  await agent.stop('SIGKILL');
  expect(await asked(pay)).toBe('pay served');
  await agent.start();
  expect(await running()).toBe(pid);
  process.kill(pid, 'SIGKILL');
  expect(await asked(pay)).toBe('pay served');
  await waitFor('the new agent to tell', async () => (await payments()).process?.restarts === 2);
  expect((await payments()).process?.lastExit).toBe('not known (it was adopted)');
});

it('`nodesentry supervise` takes it over from the agent, and does without it', async () => {
  const pid = await running();
  await agent.stop();
  agent.writeConfig({ supervision: { by: 'separate' }, instances: [haproxy, COMMON] });
  await agent.start();
  const words = ['supervise', '--run-dir', agent.runDir, '--config', agent.configPath];
  const supervisor = lab.daemon(lab.node, 'supervisor', CLI, words);
  await supervisor.logged(/supervisor running/);
  expect(await running()).toBe(pid);
  await agent.stop('SIGKILL');
  process.kill(pid, 'SIGKILL');
  expect(await asked(pay)).toBe('pay served');
  await agent.start();
  expect((await payments()).process?.restarts).toBe(3);
  const next = await running();
  await agent.stop();
  await supervisor.stop();
  agent.writeConfig({ instances: [haproxy, COMMON] });
  await agent.start();
  expect(await running()).toBe(next);
});

it('the last pod leaves, and after the grace it is stopped, and its listener gone', async () => {
  const flowing = await undisturbed();
  const pid = await running();
  agent.writePods([staticPod(web)]);
  await waitFor('it to stop', async () => (await payments()).process?.state === 'STOPPED');
  expect(processIdOf(pid)).toBeUndefined();
  expect(await runIn(lab.node, 'ss', ['-Hltn', 'sport = 16001'])).toBe('');
  expect((await flowing.stop()).filter(({ failures }) => failures > 0)).toEqual([]);
});

it('one that cannot be started says why, and its pods fall to the failure policy', async () => {
  const { changes } = await agent.client.instances();
  agent.writeConfig({ instances: [{ ...haproxy, command: ['/nowhere/proxy'] }, COMMON] });
  await waitFor('the list to be taken over', async () => (await agent.client.instances()).changes > changes);
  agent.writePods([staticPod(web), ofPay(pay)]);
  await waitFor('it to be told', async () => (await payments()).process?.state === 'FAILED');
  await agent.reaches('pay', 'INTERCEPTED');
  await expect(asked(pay, 2)).rejects.toThrow(/exited with/);
  expect((await agent.cli('instances')).stdout).toMatch(
    /^payments is not started: command: there is no executable \/nowhere\/proxy$/m,
  );
});
