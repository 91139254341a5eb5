/** nodesentry-cni behind a real primary CNI: called by hand as a runtime does, and by libcni's own cnitool. */

import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { install } from '../../src/cni/install.js';
import { uninstall } from '../../src/cni/uninstall.js';
import { cnitool, type Libcni, prepareLibcni, primaryPtp } from '../lab/cnitool.js';
import { Cleanup, inNetns, type Output, run, tryRun } from '../lab/exec.js';
import {
  AgentStandIn,
  answering,
  type Behaviour,
  type CniVersion,
  INTERCEPTED,
  PLUGIN,
  VERSIONS,
} from '../unit/cni-plugin-lab.js';

const DEBIAN = '/usr/lib/cni';

let cleanup: Cleanup;
let folder: string;
let node: string;
let pod: string;
let serial = 0;

beforeEach(async () => {
  cleanup = new Cleanup();
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-chain-'));
  cleanup.add('folder', () => rmSync(folder, { recursive: true, force: true }));
  [node, pod] = ['node', 'pod'].map((role) => `nscni-${process.pid}-${serial}-${role}`) as [string, string];
  serial++;
  for (const name of [node, pod]) {
    await run('ip', ['netns', 'add', name]);
    cleanup.add(name, () => run('ip', ['netns', 'delete', name]));
    await run(...inNetns(name, 'ip', ['link', 'set', 'lo', 'up']));
    // Debian's plugins wait until an address is known to be nobody else's, a second each time.
    await run(...inNetns(name, 'sysctl', ['-qw', 'net.ipv6.conf.default.accept_dad=0']));
  }
});

afterEach(() => cleanup.run());

const socket = () => join(folder, 'cni.sock');

async function agent(behaviour: Behaviour): Promise<AgentStandIn> {
  const listening = await AgentStandIn.listen(socket(), behaviour);
  cleanup.add('agent', () => listening.close());
  return listening;
}

async function podLink(): Promise<string> {
  return (await tryRun(...inNetns(pod, 'ip', ['-o', 'addr', 'show', 'dev', 'eth0']))).stdout;
}

test.each(['0.3.1', '0.4.0', '1.0.0'] as const)(
  "Debian's ptp of CNI %s, with ours after it",
  async (version) => {
    const { requests } = await agent(INTERCEPTED);
    const env = {
      CNI_CONTAINERID: 'c1',
      CNI_NETNS: `/run/netns/${pod}`,
      CNI_IFNAME: 'eth0',
      CNI_PATH: DEBIAN,
    };
    const base = { cniVersion: version, name: 'chain' };
    const call = (plugin: string, command: string, config: string): Promise<Output> =>
      tryRun(...inNetns(node, plugin, []), { env: { ...env, CNI_COMMAND: command }, input: config });
    const ptp = (command: string) =>
      call(join(DEBIAN, 'ptp'), command, JSON.stringify({ ...base, ...primaryPtp(folder) }));

    const added = await ptp('ADD');
    expect(added).toMatchObject({ code: 0 });
    const own = JSON.stringify({ ...base, type: 'nodesentry-cni', socket: socket() });
    const config = `${own.slice(0, -1)},"prevResult":${added.stdout}}`;
    const chained = await call(PLUGIN, 'ADD', config);
    expect(chained).toEqual({ stdout: `${added.stdout.trimEnd()}\n`, stderr: '', code: 0 });
    expect(requests[0]).toMatchObject({ netns: env.CNI_NETNS, prevResult: JSON.parse(added.stdout) });
    const hasCheck = version !== '0.3.1';
    const checked = await call(PLUGIN, 'CHECK', config);
    expect(checked).toMatchObject(hasCheck ? { stdout: '', stderr: '', code: 0 } : { code: 1 });
    expect(await call(PLUGIN, 'DEL', config)).toEqual({ stdout: '', stderr: '', code: 0 });
    expect(await ptp('DEL')).toMatchObject({ code: 0 });
    expect(requests.map(({ command }) => command)).toEqual(
      hasCheck ? ['ADD', 'CHECK', 'DEL'] : ['ADD', 'DEL'],
    );
  },
);

function chain(version: CniVersion): Libcni {
  const libcni = prepareLibcni(folder, node, 'chain');
  const list = { cniVersion: version, name: 'chain', plugins: [primaryPtp(folder)] };
  writeFileSync(join(libcni.confDir, '10-ptp.conflist'), JSON.stringify(list, null, 2));
  install({ ...places(libcni), plugin: PLUGIN, socket: socket(), failure: 'closed', timeoutMs: 2_000 });
  return libcni;
}

function places({ confDir, binDir }: Libcni) {
  return { confDir, binDir, stateDir: join(folder, 'state') };
}

function call(libcni: Libcni, command: string): Promise<Output> {
  const annotations = { 'a/b': 'c' };
  return cnitool(libcni, command, {
    netns: pod,
    uid: '6f0c-11',
    namespace: 'shop',
    name: 'web-0',
    annotations,
  });
}

describe.each(VERSIONS)('libcni with a conflist of %s', (version: CniVersion) => {
  let libcni: Libcni;

  beforeEach(() => {
    libcni = chain(version);
  });

  const ask = (command: string) => call(libcni, command);

  test('adds, checks and deletes a pod, with ours last in the chain', async () => {
    const { requests } = await agent(INTERCEPTED);
    const added = await ask('add');
    expect([added.code, added.stderr]).toEqual([0, '']);
    const result = JSON.parse(added.stdout) as { cniVersion: string; ips: { address: string }[] };
    expect(result.cniVersion).toBe(version);
    for (const { address } of result.ips) {
      expect(await podLink()).toContain(address);
    }
    expect(requests[0]).toMatchObject({
      command: 'ADD',
      netns: `/run/netns/${pod}`,
      ifname: 'eth0',
      podUid: '6f0c-11',
      podNamespace: 'shop',
      podName: 'web-0',
      annotations: { 'a/b': 'c' },
      prevResult: result,
    });
    if (version === '0.3.1') {
      // libcni does not ask the plugins at all.
      expect(await ask('check')).toMatchObject({ code: 1, stderr: expect.stringContaining('0.3.1') });
    } else {
      expect(await ask('check')).toMatchObject({ stdout: '', stderr: '', code: 0 });
      expect(requests[1]).toMatchObject({ command: 'CHECK', prevResult: result });
    }
    expect(await ask('del')).toMatchObject({ stdout: '', stderr: '', code: 0 });
    expect(requests.at(-1)).toMatchObject({ command: 'DEL', containerId: requests[0]?.containerId });
    expect(await podLink()).toBe('');
  });

  test('fails a check that the agent does not pass', async () => {
    await agent((request, connection, n) =>
      (n === 0 ? INTERCEPTED : answering({ ok: false, code: 100, msg: 'a program is missing' }))(
        request,
        connection,
        n,
      ),
    );
    expect(await ask('add')).toMatchObject({ code: 0 });
    const failed = await ask('check');
    const why = version === '0.3.1' ? 'does not support the CHECK command' : 'a program is missing';
    expect([failed.code, failed.stderr]).toEqual([1, expect.stringContaining(why)]);
    expect(await ask('del')).toMatchObject({ code: 0 });
  });

  test('asks for the status and collects garbage where the version has that', async () => {
    const away = await ask('status');
    expect([away.code, away.stderr]).toEqual(
      version === '1.1.0' ? [1, expect.stringContaining(socket())] : [0, ''],
    );
    const { requests } = await agent(answering({ ok: true }));
    expect(await ask('status')).toMatchObject({ stdout: '', stderr: '', code: 0 });
    expect(requests.map(({ command }) => command)).toEqual(version === '1.1.0' ? ['STATUS'] : []);
    await ask('add');
    // cnitool names no attachment that is valid: libcni deletes all it remembers, then asks the plugins.
    expect(await ask('gc')).toMatchObject({ stdout: '', code: 0 });
    expect(requests.map(({ command }) => command).slice(-2)).toEqual(['ADD', 'DEL']);
    expect(await podLink()).toBe('');
  });
});

describe('libcni', () => {
  let libcni: Libcni;

  beforeEach(() => {
    libcni = chain('1.1.0');
  });

  const ask = (command: string) => call(libcni, command);

  test('fails the pod while the agent is away, and still deletes what the CNI made', async () => {
    const failed = await ask('add');
    expect(failed.code).toBe(1);
    expect(failed.stderr).toContain(`agent at ${socket()} did not answer within 2000 ms`);
    expect(failed.stderr).toContain('failure: closed');
    expect(await podLink()).not.toBe('');
    expect(await ask('del')).toMatchObject({ code: 0 });
    expect(await podLink()).toBe('');
  });

  test('works as before once uninstalled', async () => {
    uninstall({ ...places(libcni), plugin: PLUGIN });
    expect(readdirSync(libcni.binDir).sort()).toEqual(['host-local', 'ptp']);
    expect(await ask('add')).toMatchObject({ code: 0 });
    expect(await ask('del')).toMatchObject({ code: 0 });
  });
});
