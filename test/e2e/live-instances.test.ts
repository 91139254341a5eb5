/** The list of instances changes while the agent runs: each change touches the apps that it is about, and no other. */

import { renameSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, it, onTestFinished } from 'vitest';
import { createNetwork } from '../lab/cni.js';
import { runIn, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { Load } from '../lab/load.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { OUTBOUND, staticPod, TestAgent, TestProxy } from './agent.js';

const PORT = { payments: 16001, moved: 16002 } as const;

let lab: Lab;
let agent: TestAgent;
let web: PlainPod;
let pay: PlainPod;

const COMMON = { name: 'default', outbound: [...OUTBOUND] };
const payments = (port: number) => ({
  name: 'payments',
  apps: ['pay'],
  outbound: `127.0.0.1:${port}`,
});

/** A proxy that tells its name to whoever comes. */
function startTeller(name: keyof typeof PORT): void {
  const listen = `TCP-LISTEN:${PORT[name]},bind=127.0.0.1,fork,reuseaddr`;
  lab.daemon(lab.node, `proxy-${name}`, 'socat', [listen, `SYSTEM:echo ${name}; cat`]);
}

/** Whose proxy a new connection of the pod comes to; empty where it is reset, or the proxy says no name. */
async function reached(pod: PlainPod): Promise<string> {
  const words = ['-c', `socat -u -T1 TCP:${REMOTE[4]}:80,connect-timeout=5 - 2>/dev/null || true`];
  return (await runIn(pod.netnsName, 'sh', words)).trim();
}

async function listed(name: string) {
  const { instances } = await agent.client.instances();
  return instances.find((instance) => instance.name === name);
}

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  const ptp = createNetwork(lab, 'ptp');
  web = await runPlainPod(lab, ptp, 'web');
  pay = await runPlainPod(lab, ptp, 'pay');
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  agent.writePods([staticPod(web), staticPod(pay)]);
  agent.writeConfig({ instances: [COMMON] });
  await agent.start();
  await new TestProxy(lab, agent).start('--allow-unidentified');
  startTeller('payments');
  startTeller('moved');
  await agent.adopted(2);
  await agent.reaches('web', 'INTERCEPTED');
  await agent.reaches('pay', 'INTERCEPTED');
});

afterAll(async () => {
  await lab?.close();
});

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

async function expectNothingNoticed(flowing: Load): Promise<void> {
  expect((await flowing.stop()).filter(({ failures }) => failures > 0)).toEqual([]);
}

it('one that is added takes over its app, at once and without a restart', async () => {
  const flowing = await undisturbed();
  const { pid } = agent;
  agent.writeConfig({ instances: [payments(PORT.payments), COMMON] });
  await waitFor('payments to serve its app', async () => (await reached(pay)) === 'payments');
  expect(await listed('payments')).toMatchObject({
    apps: ['pay'],
    pods: [{ podName: 'pay', state: 'INTERCEPTED' }],
    listeners: expect.arrayContaining([
      expect.objectContaining({ direction: 'outbound', family: 4, adopted: true, process: 'socat' }),
    ]),
  });
  expect((await agent.workload('pay'))?.interception.state).toBe('INTERCEPTED');
  expect(agent.pid).toBe(pid);
  await expectNothingNoticed(flowing);
});

it('one whose address changes goes on there; what is open at the old one stays open', async () => {
  const flowing = await undisturbed();
  const dial = `socat -T6 TCP:${REMOTE[4]}:80 SYSTEM:'sleep 4; echo still; cat >&2'`;
  const open = runIn(pay.netnsName, 'sh', ['-c', `${dial} 2>&1`], { timeoutMs: 40_000 });
  await waitFor('the connection to be recorded', async () =>
    (await agent.client.flows(50)).some(({ src }) => src.startsWith(`${pay.ips[4]}:`)),
  );
  agent.writeConfig({ instances: [payments(PORT.moved), COMMON] });
  await waitFor('payments to have moved', async () => (await reached(pay)) === 'moved');
  expect(await open).toContain('still');
  await expectNothingNoticed(flowing);
});

it('what is wrong changes nothing, is told by its field, and is over when it is mended', async () => {
  const flowing = await undisturbed();
  agent.writeConfig({ instances: [{ ...payments(PORT.moved), colour: 'red' }, COMMON] });
  await waitFor('the mistake to be told', async () =>
    (await agent.client.instances()).problem.includes('colour'),
  );
  expect(await reached(pay)).toBe('moved');
  const { stdout } = await agent.cli('instances');
  expect(stdout).toMatch(
    /^payments +pay +uid 0 +IPv4 socat \(\d+\) +- +1 +\w+ +1 +1 +\d+ +\d+\.\d MiB +0\.0 MiB$/m,
  );
  expect(stdout).toMatch(/Not taken over: .*colour.*the instances stay as they were/);
  agent.writeConfig({ interception: { failure: 'open' }, instances: [payments(PORT.moved), COMMON] });
  await waitFor('it to be over, but for what only a restart changes', async () =>
    (await agent.client.instances()).problem.includes(
      'interception: what changed there holds after a restart',
    ),
  );
  agent.writeConfig({ instances: [payments(PORT.moved), COMMON] });
  await waitFor('it to be over', async () => (await agent.client.instances()).problem === '');
  await expectNothingNoticed(flowing);
});

it('the file may be swapped, as a config map is, and SIGHUP reads it at once', async () => {
  const other = `${agent.configPath}.new`;
  const { changes } = await agent.client.instances();
  renameSync(agent.configPath, other);
  await waitFor(
    'a file that is gone to be told',
    async () => (await agent.client.instances()).problem !== '',
  );
  renameSync(other, agent.configPath);
  process.kill(agent.pid, 'SIGHUP');
  await waitFor('it to be there again', async () => (await agent.client.instances()).problem === '');
  expect((await agent.client.instances()).changes).toBe(changes);
  writeFileSync(agent.configPath, 'sources: [');
  process.kill(agent.pid, 'SIGHUP');
  await waitFor('nonsense to be told', async () => (await agent.client.instances()).problem !== '');
  expect(await reached(pay)).toBe('moved');
});

it('one that is removed leaves its app to the others', async () => {
  const flowing = await undisturbed();
  agent.writeConfig({ instances: [COMMON] });
  await waitFor('the app to go to the default', async () => (await reached(pay)) === '');
  const { localPort, ok } = JSON.parse((await pay.app(['dial', REMOTE[4], '80'])).stdout) as {
    localPort: number;
    ok: boolean;
  };
  expect(ok).toBe(true);
  const flows = await agent.client.flows(500);
  expect(flows.find(({ src }) => src === `${pay.ips[4]}:${localPort}`)?.instance).toBe('default');
  expect((await agent.client.instances()).instances.map(({ name }) => name)).toEqual(['default']);
  await expectNothingNoticed(flowing);
});
