/**
 * A proxy's upgrade, with the real ones: a second process beside the first takes over under load and nobody notices; a canary
 * that resets is called back; what cannot be is refused, and nothing has changed.
 */

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import type { UpgradeBody } from '../../src/api/client.js';
import type { InstanceMessage } from '../../src/api/messages.js';
import { createNetwork } from '../lab/cni.js';
import { type Daemon, inNetns, runIn, tryRun, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { Load } from '../lab/load.js';
import { patient } from '../lab/patience.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { sized } from '../lab/size.js';
import { CLI, staticPod, TestAgent } from './agent.js';

const TIMES = sized(2, 10);
const LONG_LIVED = sized(20, 100);
/** Of each stream of new connections, of which there are four: 500 a second. */
const EVERY_MS = 8;
const STREAMS = 4;
const EXAMPLES = join(import.meta.dirname, '../../examples');
const ENVOY = join(import.meta.dirname, '../../.cache/bin/envoy');
/** A canary that resets has to be back by then. */
const BACK_MS = 5_000;

let lab: Lab;
let agent: TestAgent;
let web: PlainPod;
let other: PlainPod;
let started = 0;

const addresses = (port: number) => [`127.0.0.1:${port}`, `[::1]:${port}`];

const PROXIES = [
  {
    name: 'HAProxy',
    port: 16_001,
    start: (port: number): Daemon => {
      const config = readFileSync(join(EXAMPLES, 'haproxy.cfg'), 'utf8').replaceAll(':15001', `:${port}`);
      const path = join(lab.directory, `haproxy-${port}.cfg`);
      writeFileSync(path, config);
      return daemon('haproxy', ['-db', '-f', path]);
    },
  },
  {
    name: 'Envoy',
    port: 16_201,
    start: (port: number): Daemon => {
      const config = readFileSync(join(EXAMPLES, 'envoy.yaml'), 'utf8')
        .replaceAll('port_value: 15001', `port_value: ${port}`)
        .replace('port_value: 15000', `port_value: ${port + 1_000}`);
      const path = join(lab.directory, `envoy-${port}.yaml`);
      writeFileSync(path, config);
      return daemon(ENVOY, [
        '-c',
        path,
        '--concurrency',
        '2',
        '--disable-hot-restart',
        '--log-level',
        'error',
      ]);
    },
  },
] as const;

function daemon(command: string, words: readonly string[]): Daemon {
  started += 1;
  const running = lab.daemon(lab.node, `upgraded-${started}`, command, words);
  onTestFinished(() => running.stop('SIGKILL'));
  return running;
}

async function instance(): Promise<InstanceMessage> {
  const found = (await agent.client.instances()).instances.find(({ name }) => name === 'web');
  if (found === undefined) {
    throw new Error('there is no instance web');
  }
  return found;
}

async function over(phase: 'DONE' | 'FAILED', timeoutMs = 60_000): Promise<string> {
  const upgrade = await waitFor(
    'the upgrade to be over',
    async () => {
      const { upgrade } = await instance();
      return upgrade?.phase === 'DONE' || upgrade?.phase === 'FAILED' ? upgrade : undefined;
    },
    timeoutMs,
  );
  expect(upgrade.phase, upgrade.detail).toBe(phase);
  return upgrade.detail;
}

/** New connections, with a request and without, and requests over ones that last. */
async function load(pod: PlainPod, longLived: number): Promise<Load> {
  const fresh = Array.from({ length: STREAMS }, (_, index) => ({
    pod,
    family: index % 2 === 0 ? (4 as const) : (6 as const),
    everyMs: EVERY_MS,
    kind: 'connects' as const,
  }));
  const lasting = Array.from({ length: longLived }, () => ({
    pod,
    family: 4 as const,
    everyMs: 100,
    kind: 'keepalive' as const,
  }));
  const flowing = await Load.start(lab, [...fresh, ...lasting]);
  onTestFinished(() => flowing.end());
  return flowing;
}

async function expectNoneFailed(flowing: Load): Promise<void> {
  const told = await flowing.stop();
  expect(told.filter(({ failures }) => failures > 0)).toEqual([]);
  expect(told.every(({ done }) => done > 0)).toBe(true);
}

const QUICK: UpgradeBody = { checkSeconds: 5, observeSeconds: 2, deadlineSeconds: 2 };

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  const ptp = createNetwork(lab, 'ptp');
  web = await runPlainPod(lab, ptp, 'web');
  other = await runPlainPod(lab, ptp, 'other');
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  agent.writePods([staticPod(web), staticPod(other)]);
});

afterAll(async () => {
  await lab?.close();
});

describe.each(PROXIES)('$name', ({ start, ...proxy }) => {
  let { port }: { port: number } = proxy;

  beforeAll(async () => {
    await agent.stop().catch(() => undefined);
    agent.writeConfig({
      instances: [
        { name: 'web', apps: ['web'], outbound: addresses(port) },
        { name: 'default', outbound: addresses(15_001) },
      ],
    });
    await agent.start();
  });

  it(
    `is exchanged ${TIMES} times under load, and nobody notices`,
    async () => {
      let running = start(port);
      await waitFor('the first to be adopted', async () =>
        (await instance()).listeners.every((l) => l.adopted),
      );
      await agent.reaches('web', 'INTERCEPTED');
      const { generation } = await instance();
      for (let time = 1; time <= TIMES; time++) {
        const flowing = await load(web, LONG_LIVED);
        const before = running;
        port += 1;
        running = start(port);
        await agent.client.upgradeInstance('web', {
          ...QUICK,
          outbound: addresses(port),
          ...(time % 2 === 0 ? { canary: '30%' } : {}),
          stop: false,
        });
        await over('DONE');
        expect(await instance()).toMatchObject({
          generation: generation + time,
          listeners: [
            { adopted: true, pid: running.pid },
            { adopted: true, pid: running.pid },
          ],
        });
        await expectNoneFailed(flowing); // those that last are at the old one still, which nobody has ended
        await before.stop('SIGKILL');
      }
    },
    patient(40_000 * TIMES),
  );
});

describe('an upgrade', () => {
  let generation: number;

  beforeAll(async () => {
    await agent.stop().catch(() => undefined);
    agent.writeConfig({
      instances: [
        { name: 'web', apps: ['web'], outbound: '127.0.0.1:17001' },
        { name: 'default', outbound: '127.0.0.1:17002' },
      ],
    });
    await agent.start();
    for (const port of [17_001, 17_002]) {
      lab.daemon(lab.node, `kept-${port}`, 'haproxy', ['-db', '-f', haproxyWithout6(port)]);
    }
    await waitFor('web to be adopted', async () =>
      (await instance()).listeners.some(({ adopted }) => adopted),
    );
    await agent.reaches('web', 'INTERCEPTED');
    await agent.reaches('other', 'INTERCEPTED');
    generation = (await instance()).generation;
  });

  function haproxyWithout6(port: number): string {
    const config = readFileSync(join(EXAMPLES, 'haproxy.cfg'), 'utf8')
      .replaceAll(':15001', `:${port}`)
      .replace(/^.*bind \[::1\].*$/m, '');
    const path = join(lab.directory, `haproxy4-${port}.cfg`);
    writeFileSync(path, config);
    return path;
  }

  it('to a canary that resets is back within 5 s, and harms its share alone', async () => {
    // Accepts, reads a little and resets what it has not read.
    const code = `require('net').createServer((s) => s.on('error', () => {}).once('data', () => s.resetAndDestroy())).listen(17003, '127.0.0.1')`;
    daemon(process.execPath, ['-e', code]);
    const [flowing, undisturbed] = [await load4(web), await load4(other)];
    const begun = Date.now();
    await agent.client.upgradeInstance('web', {
      ...QUICK,
      outbound: '127.0.0.1:17003',
      canary: '10%',
      observeSeconds: 60,
    });
    expect(await over('FAILED')).toMatch(/^it reset \d+ of \d+ new flows; the old one \d+ of \d+$/);
    expect(Date.now() - begun).toBeLessThan(BACK_MS);
    const [harmed] = await flowing.told();
    expect(harmed?.failures).toBeGreaterThan(0);
    expect(harmed?.failures).toBeLessThan((harmed?.done ?? 0) * 0.3);
    await waitFor('those that were under way to end', async () => (await flowing.told())[0]?.failures === 0);
    await expectNoneFailed(flowing);
    await expectNoneFailed(undisturbed);
    expect((await instance()).generation).toBe(generation);
  });

  async function load4(pod: PlainPod): Promise<Load> {
    const flowing = await Load.start(lab, [{ pod, family: 4, everyMs: EVERY_MS, kind: 'connects' }]);
    onTestFinished(() => flowing.end());
    return flowing;
  }

  it('to one that is not there, or does not accept, changes nothing', async () => {
    const flowing = await load4(web);
    await agent.client.upgradeInstance('web', { ...QUICK, checkSeconds: 1, outbound: '127.0.0.1:17009' });
    expect(await over('FAILED')).toBe('nobody listens at 127.0.0.1:17009 (IPv4)');
    const code = `const s = require('net').createServer().listen(17004, '127.0.0.1', () => process.kill(process.pid, 'SIGSTOP'))`;
    const hung = daemon(process.execPath, ['-e', code]);
    await agent.client.upgradeInstance('web', { ...QUICK, checkSeconds: 2, outbound: '127.0.0.1:17004' });
    expect(await over('FAILED')).toBe('it does not accept a connection (outbound, IPv4)');
    await hung.stop('SIGKILL');
    const foreign = lab.daemon(lab.node, 'foreign', 'setpriv', [
      ...['--reuid', '1234', '--clear-groups', 'socat'],
      ...['TCP-LISTEN:17005,bind=127.0.0.1,fork', 'EXEC:cat'],
    ]);
    await agent.client.upgradeInstance('web', { ...QUICK, checkSeconds: 2, outbound: '127.0.0.1:17005' });
    expect(await over('FAILED')).toContain('it is held by uid 1234');
    await foreign.stop();
    expect(await instance()).toMatchObject({ generation, listeners: [{ adopted: true }, {}] });
    await expectNoneFailed(flowing);
  });

  it.each([
    ['nobody', {}, 404, 'INSTANCE_NOT_FOUND', 'there is no instance nobody in the configuration'],
    ['web', {}, 400, 'KEY_INVALID', 'outbound: expected an address and a port'],
    ['web', { outbound: 'x' }, 400, 'KEY_INVALID', 'outbound: expected an address and a port'],
    [
      'web',
      { outbound: '127.0.0.1:17001' },
      400,
      'KEY_INVALID',
      'outbound: 127.0.0.1:17001 is where the present one',
    ],
    ['web', { outbound: '127.0.0.1:1', canary: '0%' }, 400, 'KEY_INVALID', 'canary: expected a share'],
    [
      'web',
      { outbound: '127.0.0.1:1', deadlineSeconds: -1 },
      400,
      'KEY_INVALID',
      'deadlineSeconds: expected a number',
    ],
    [
      'web',
      { outbound: '127.0.0.1:1', owner: { uid: 'x' } },
      400,
      'KEY_INVALID',
      'owner: expected at least one of',
    ],
    ['web', { outbound: '127.0.0.1:1', colour: 'red' }, 400, 'KEY_INVALID', 'colour: there is no such field'],
  ])('of %s with %j is refused', async (name, body, status, code, message) => {
    const asked = agent.client.upgradeInstance(name, body as UpgradeBody);
    await expect(asked).rejects.toMatchObject({ status, code, message: expect.stringContaining(message) });
    expect((await instance()).generation).toBe(generation);
  });

  it('is called off, and one at a time', async () => {
    await agent.client.upgradeInstance('web', { ...QUICK, checkSeconds: 60, outbound: '127.0.0.1:17009' });
    const second = agent.client.upgradeInstance('web', { outbound: '127.0.0.1:17008' });
    await expect(second).rejects.toMatchObject({ status: 409, code: 'INSTANCE_BUSY' });
    await agent.client.abortUpgrade('web');
    expect(await over('FAILED')).toBe('called off');
    await expect(agent.client.abortUpgrade('web')).rejects.toMatchObject({ code: 'INSTANCE_BUSY' });
  });

  it('by the command line tells each step, survives a restart of the agent, and stops the old one', async () => {
    const words = ['--run-dir', agent.runDir, 'instances', 'upgrade', 'web'];
    const next = lab.daemon(lab.node, 'kept-17006', 'haproxy', ['-db', '-f', haproxyWithout6(17_006)]);
    const [before] = (await instance()).listeners;
    const said = await runIn(lab.node, CLI, [...words, '--outbound', '127.0.0.1:17006', '--deadline', '2s']);
    expect(said.trim().split('\n').at(-1)).toBe('DONE');
    await waitFor('the old one to end', () => !existsSync(`/proc/${before?.pid}`));
    await agent.stop('SIGKILL');
    const flowing = Load.start(lab, [{ pod: web, family: 4, everyMs: EVERY_MS, kind: 'handshakes' }]);
    await agent.start();
    await expectNoneFailed(await flowing);
    expect(await instance()).toMatchObject({
      generation: generation + 1,
      listeners: [{ adopted: true, pid: next.pid }],
    });
    // The configuration says so by now as well.
    agent.writeConfig({
      instances: [
        { name: 'web', apps: ['web'], outbound: '127.0.0.1:17006' },
        { name: 'default', outbound: '127.0.0.1:17002' },
      ],
    });
    await waitFor('the first generation to have it', async () => {
      const { listeners } = await instance();
      return listeners[0]?.adopted && listeners[0].generation === undefined;
    });
    const refused = await tryRun(...inNetns(lab.node, CLI, [...words, '--canary', '5']));
    expect(refused).toMatchObject({ code: 1, stderr: expect.stringContaining('outbound: expected') });
  });
});

describe('an instance that hangs', () => {
  it('is not given new connections, alone, and is when it accepts again', async () => {
    agent.writeConfig({
      instances: [
        {
          name: 'web',
          apps: ['web'],
          outbound: '127.0.0.1:17006',
          health: { checkSeconds: 1, failSeconds: 2 },
        },
        { name: 'default', outbound: '127.0.0.1:17002' },
      ],
    });
    await waitFor('it to be asked', async () => (await instance()).health.state === 'ACCEPTING', 20_000);
    const undisturbed = await Load.start(lab, [
      { pod: other, family: 4, everyMs: EVERY_MS, kind: 'connects' },
      { pod: other, family: 4, everyMs: EVERY_MS, kind: 'keepalive' },
    ]);
    onTestFinished(() => undisturbed.end());
    const pid = (await instance()).listeners[0]?.pid ?? 0;
    process.kill(pid, 'SIGSTOP');
    await waitFor('it to be told', async () => (await instance()).health.state === 'HUNG', 20_000);
    expect((await instance()).health.reason).toMatch(/^a connection is not accepted since \d+ s$/);
    const refused = await web.app(['dial', REMOTE[4], '80']);
    expect(JSON.parse(refused.stdout)).toMatchObject({ ok: false, error: 'ECONNREFUSED' });
    process.kill(pid, 'SIGCONT');
    await waitFor('it to be well', async () => (await instance()).health.state === 'ACCEPTING', 20_000);
    expect(JSON.parse((await web.app(['dial', REMOTE[4], '80'])).stdout)).toMatchObject({ ok: true });
    await expectNoneFailed(undisturbed);
  });

  it('is no instance that has accepted while the agent was stopped', async () => {
    agent.writeConfig({
      instances: [
        {
          name: 'web',
          apps: ['web'],
          outbound: '127.0.0.1:17006',
          health: { checkSeconds: 1, failSeconds: 4 },
        },
        { name: 'default', outbound: '127.0.0.1:17002' },
      ],
    });
    await waitFor('it to be asked', async () => (await instance()).health.state === 'ACCEPTING', 20_000);
    const pid = (await instance()).listeners[0]?.pid ?? 0;
    const hung = () => agent.log().split('instance hangs').length;
    const before = hung();
    onTestFinished(() => void process.kill(agent.pid, 'SIGCONT'));
    onTestFinished(() => void process.kill(pid, 'SIGCONT'));
    process.kill(pid, 'SIGSTOP');
    await delay(2_600); // the agent asks at least every 2 s: its connection waits by now
    process.kill(agent.pid, 'SIGSTOP');
    process.kill(pid, 'SIGCONT');
    await delay(6_000); // longer than failSeconds, in which the connection is accepted
    process.kill(agent.pid, 'SIGCONT');
    expect(JSON.parse((await web.app(['dial', REMOTE[4], '80'])).stdout)).toMatchObject({ ok: true });
    await delay(2_500);
    expect((await instance()).health.state).toBe('ACCEPTING');
    expect(hung()).toBe(before);
  });
});
