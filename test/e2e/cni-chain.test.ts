/** nodesentry-cni behind a real primary CNI: called by hand as a runtime does, and by libcni's own cnitool. */

import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { install } from '../../src/cni/install.js';
import { uninstall } from '../../src/cni/uninstall.js';
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
/** Of scripts/install-go-tools. */
const GO_TOOLS = join(process.cwd(), '.cache/bin');

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
  }
});

afterEach(() => cleanup.run());

const socket = () => join(folder, 'cni.sock');

async function agent(behaviour: Behaviour): Promise<AgentStandIn> {
  const listening = await AgentStandIn.listen(socket(), behaviour);
  cleanup.add('agent', () => listening.close());
  return listening;
}

function primary() {
  return {
    type: 'ptp',
    ipMasq: false,
    mtu: 1400,
    ipam: {
      type: 'host-local',
      dataDir: join(folder, 'ipam'),
      ranges: [[{ subnet: '10.66.9.0/24' }], [{ subnet: 'fd00:66:9::/64' }]],
      routes: [{ dst: '0.0.0.0/0' }, { dst: '::/0' }],
    },
    dns: { nameservers: ['10.96.0.10'], search: ['svc.local'] },
  };
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
      call(join(DEBIAN, 'ptp'), command, JSON.stringify({ ...base, ...primary() }));

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

describe.each(VERSIONS)('libcni with a conflist of %s', (version: CniVersion) => {
  let confDir: string;
  let binDir: string;

  beforeEach(() => {
    [confDir, binDir] = [join(folder, 'net.d'), join(folder, 'bin')];
    mkdirSync(confDir);
    mkdirSync(binDir);
    for (const name of ['ptp', 'host-local']) {
      symlinkSync(join(GO_TOOLS, name), join(binDir, name));
    }
    mkdirSync(join(folder, 'varlib'));
    const list = { cniVersion: version, name: 'chain', plugins: [primary()] };
    writeFileSync(join(confDir, '10-ptp.conflist'), JSON.stringify(list, null, 2));
    install({ ...places(), plugin: PLUGIN, socket: socket(), failure: 'closed', timeoutMs: 2_000 });
  });

  const places = () => ({ confDir, binDir, stateDir: join(folder, 'state') });

  /** libcni keeps its results below /var/lib/cni: given a folder of its own there. */
  const cnitool = (command: string): Promise<Output> => {
    const script = `mount --bind '${join(folder, 'varlib')}' /var/lib && exec "$@"`;
    const inner = inNetns(node, join(GO_TOOLS, 'cnitool'), [command, 'chain', `/run/netns/${pod}`]);
    return tryRun('unshare', ['-m', 'sh', '-c', script, 'sh', inner[0], ...inner[1]], {
      env: {
        CNI_PATH: binDir,
        NETCONFPATH: confDir,
        CNI_ARGS: 'IgnoreUnknown=1;K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=shop;K8S_POD_UID=6f0c-11',
        CAP_ARGS: JSON.stringify({ 'io.kubernetes.cri.pod-annotations': { 'a/b': 'c' } }),
      },
    });
  };

  test('adds, checks and deletes a pod, with ours last in the chain', async () => {
    const { requests } = await agent(INTERCEPTED);
    const added = await cnitool('add');
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
      expect(await cnitool('check')).toMatchObject({ code: 1, stderr: expect.stringContaining('0.3.1') });
    } else {
      expect(await cnitool('check')).toMatchObject({ stdout: '', stderr: '', code: 0 });
      expect(requests[1]).toMatchObject({ command: 'CHECK', prevResult: result });
    }
    expect(await cnitool('del')).toMatchObject({ stdout: '', stderr: '', code: 0 });
    expect(requests.at(-1)).toMatchObject({ command: 'DEL', containerId: requests[0]?.containerId });
    expect(await podLink()).toBe('');
  });

  test('fails the pod while the agent is away, and still deletes what the CNI made', async () => {
    const failed = await cnitool('add');
    expect(failed.code).toBe(1);
    expect(failed.stderr).toContain(`agent at ${socket()} did not answer within 2000 ms`);
    expect(failed.stderr).toContain('failure: closed');
    expect(await podLink()).not.toBe('');
    expect(await cnitool('del')).toMatchObject({ code: 0 });
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
    expect(await cnitool('add')).toMatchObject({ code: 0 });
    const failed = await cnitool('check');
    const why = version === '0.3.1' ? 'does not support the CHECK command' : 'a program is missing';
    expect([failed.code, failed.stderr]).toEqual([1, expect.stringContaining(why)]);
    expect(await cnitool('del')).toMatchObject({ code: 0 });
  });

  test('asks for the status and collects garbage where the version has that', async () => {
    const away = await cnitool('status');
    expect([away.code, away.stderr]).toEqual(
      version === '1.1.0' ? [1, expect.stringContaining(socket())] : [0, ''],
    );
    const { requests } = await agent(answering({ ok: true }));
    expect(await cnitool('status')).toMatchObject({ stdout: '', stderr: '', code: 0 });
    expect(requests.map(({ command }) => command)).toEqual(version === '1.1.0' ? ['STATUS'] : []);
    await cnitool('add');
    // cnitool names no attachment that is valid: libcni deletes all it remembers, then asks the plugins.
    expect(await cnitool('gc')).toMatchObject({ stdout: '', code: 0 });
    expect(requests.map(({ command }) => command).slice(-2)).toEqual(['ADD', 'DEL']);
    expect(await podLink()).toBe('');
  });

  test('works as before once uninstalled', async () => {
    uninstall({ ...places(), plugin: PLUGIN });
    expect(readdirSync(binDir).sort()).toEqual(['host-local', 'ptp']);
    expect(await cnitool('add')).toMatchObject({ code: 0 });
    expect(await cnitool('del')).toMatchObject({ code: 0 });
  });
});
