/** After `cleanup` the node is as it was before the agent first started, compared piece by piece. */

import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { MANIFEST } from '../../src/datapath/manifest.js';
import { tcxSupported } from '../../src/native/bpf.js';
import { attachedOn } from '../lab/attached.js';
import { Containerd } from '../lab/containerd.js';
import { runIn, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { pinnedIds, stillThere } from '../lab/pinned.js';
import { type LabPod, reply } from '../lab/pod.js';
import { enrolled, TestAgent, TestProxy } from './agent.js';
import { BOTH_WAYS, INBOUND_WORDS } from './scene.js';

let lab: Lab;
let agent: TestAgent;
let pods: LabPod[];
let ptp: Containerd;
let conflist: string;
let plugin: string;

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  ptp = await Containerd.start(lab, 'ptp');
  const bridge = await Containerd.start(lab, 'bridge');
  const { directory: confDir, plugins: binDir } = ptp.network;
  conflist = join(confDir, '10-lab.conflist');
  plugin = join(binDir, 'nodesentry-cni');
  pods = [
    await ptp.runPod({ name: 'web-0', runtime: 'runc', labels: enrolled('web') }),
    await bridge.runPod({ name: 'web-1', runtime: 'runc', labels: enrolled('web') }),
  ];
  agent = new TestAgent(lab, {
    sources: {
      static: { file: 'pods.yaml' },
      cni: { install: true, confDir, binDir, stateDir: join(lab.directory, 'cni-state'), timeoutMs: 2_000 },
    },
    interception: { mark: '0x40/0x40', table: 7340 },
    instances: [BOTH_WAYS],
  });
  const described = pods.map((pod) => ({
    namespace: pod.namespace,
    name: pod.name,
    uid: pod.uid,
    runtime: pod.runtime,
    labels: { 'nodesentry.io/intercept': 'enabled' },
    ips: [pod.ips[4], pod.ips[6]],
    netns: pod.netns,
  }));
  agent.writePods(described);
});

afterAll(async () => {
  await lab?.close();
});

/** What containerd has loaded, not what is in the file. */
async function callsUs(): Promise<boolean> {
  const { info } = (await ptp.call('Status', { verbose: true })) as { info: { cniconfig?: string } };
  return info.cniconfig?.includes('nodesentry-cni') === true;
}

/** Everything a program or rule of ours could stand in, as text; counters left out. A command that fails, fails the test. */
async function node(): Promise<Record<string, string>> {
  const show = (command: string, ...args: string[]) => runIn(lab.node, command, args);
  return {
    links: (await show('ip', '-o', 'link')).replaceAll(/^\d+: /gm, ''),
    rules4: await show('ip', 'rule'),
    rules6: await show('ip', '-6', 'rule'),
    routes4: await show('ip', 'route', 'show', 'table', 'all'),
    routes6: await show('ip', '-6', 'route', 'show', 'table', 'all'),
    // Without tcx an empty clsact stays where we needed one: it may be somebody else's (docs/kernels.md).
    qdiscs: (await show('tc', 'qdisc', 'show'))
      .split('\n')
      .filter((line) => tcxSupported() || !line.startsWith('qdisc clsact'))
      .join('\n'),
    nft: await show('nft', 'list', 'ruleset'),
    net: await show('bpftool', 'net'),
    attached: JSON.stringify(await attachedOn(lab)),
    conflist: readFileSync(conflist, 'utf8'),
    plugin: String(existsSync(plugin)),
    // What another process of this machine counts is not compared.
    sysctls: (await show('sysctl', '-ar', '^net\\.(ipv4|ipv6|netfilter|bridge)\\.'))
      .split('\n')
      .filter((line) => !/nf_conntrack_count|tcp_mem|random|route.gc/.test(line))
      .join('\n'),
    mounts: readFileSync('/proc/self/mounts', 'utf8')
      .split('\n')
      .filter((line) => line.includes(lab.directory) && line.includes(' bpf '))
      .join('\n'),
    bpffs: existsSync(agent.bpffs) ? readdirSync(agent.bpffs).join(' ') : '',
  };
}

it('leaves rules, routes, qdiscs, nftables, the chain of plugins and sysctls as they were, and no program, map or link', async () => {
  // WireGuard and some clouds set this: the agent then needs accept_local on pods' interfaces.
  await runIn(lab.node, 'sysctl', ['-qw', 'net.ipv4.conf.all.src_valid_mark=1']);
  const before = await node();

  await agent.start();
  const proxy = new TestProxy(lab, agent);
  await proxy.start(...INBOUND_WORDS);
  await agent.adopted(4);
  for (const pod of pods) {
    await agent.reaches(pod.name, 'INTERCEPTED');
    expect(reply(await pod.app(['dial', REMOTE[4], '80']))).toMatchObject({ ok: true });
  }
  const during = await node();
  for (const piece of Object.keys(during).filter((name) => !['qdiscs', 'net'].includes(name))) {
    expect(during[piece], piece).not.toBe(before[piece]);
  }
  const ids = await pinnedIds(join(agent.bpffs, 'v1'));
  const pinned = Object.entries(MANIFEST.maps).filter(([, map]) => !('neverShared' in map));
  expect([...ids.prog].length).toBeGreaterThanOrEqual(Object.keys(MANIFEST.programs).length);
  expect([...ids.map].length).toBeGreaterThanOrEqual(pinned.length);
  // Each pod's interface twice, the bridge of one and our own, where they are not filters, the node's namespace, a cgroup.
  expect([...ids.link].length).toBe((tcxSupported() ? 2 * pods.length + 2 : 0) + 2);
  expect(await stillThere(ids)).toHaveLength(ids.prog.size + ids.map.size + ids.link.size);

  const refused = await agent.cli('cleanup');
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain('running');

  await proxy.stop();
  await agent.stop('SIGKILL');
  const done = await agent.cli('cleanup');
  expect(done.stderr).toBe('');
  expect(done.code).toBe(0);
  // The kernel frees programs and maps a moment after their last reference.
  const remaining = () => stillThere(ids);
  await waitFor('all of it to be freed', async () => (await remaining()).length === 0, 5_000).catch(
    () => undefined,
  );
  expect(await remaining()).toEqual([]);
  expect(await node()).toEqual(before);
  // First of all: pods of the moment between would wait for an agent that is gone.
  const [first, second] = done.stdout.split('\n');
  expect(first).toBe(`removed CNI plugin from ${conflist}, which is as it was before, byte for byte`);
  expect(second).toBe(`removed ${plugin}`);
});

it('pods start without the agent from then on', async () => {
  await waitFor('containerd to load the chain', async () => !(await callsUs()), 30_000);
  const pod = await ptp.runPod({ name: 'after', runtime: 'runc' });
  await pod.stop();
});

it('finds nothing to do the second time', async () => {
  const again = await agent.cli('cleanup', '--json');
  expect(again.code).toBe(0);
  expect(JSON.parse(again.stdout)).toMatchObject({ removed: [] });
});

it('takes the rest away where the chain cannot be restored, and says which file is in the way', async () => {
  await agent.start();
  const installed = readFileSync(conflist, 'utf8');
  expect(installed).toContain('nodesentry-cni');
  await agent.stop();
  const state = join(lab.directory, 'cni-state/state.json');
  const kept = readFileSync(state);
  writeFileSync(state, 'not what we wrote');
  const failed = await agent.cli('cleanup');
  expect(failed.code).toBe(1);
  expect(failed.stderr).toContain(`the CNI plugin is still installed: ${state}`);
  expect(failed.stdout).toContain('removed pin');
  // In the chain without its binary no pod would start at all.
  expect([readFileSync(conflist, 'utf8'), existsSync(plugin)]).toEqual([installed, true]);

  writeFileSync(state, kept);
  const done = await agent.cli('cleanup');
  expect([done.code, done.stderr]).toEqual([0, '']);
  expect([readFileSync(conflist, 'utf8').includes('nodesentry-cni'), existsSync(plugin)]).toEqual([
    false,
    false,
  ]);
});

it('finds the plugin by options where the configuration cannot be read, and says so where it may be elsewhere', async () => {
  const { directory: confDir, plugins: binDir } = ptp.network;
  const stateDir = join(lab.directory, 'cni-state');
  const before = readFileSync(conflist, 'utf8');
  const install = ['--conf-dir', confDir, '--bin-dir', binDir, '--state-dir', stateDir];
  expect((await agent.cli('cni', 'install', ...install)).code).toBe(0);
  const config = readFileSync(agent.configPath, 'utf8');
  writeFileSync(agent.configPath, 'sources: {cni: {confDirs: /x}}');
  const places = ['--cni-conf-dir', confDir, '--cni-bin-dir', binDir];
  const elsewhere = await agent.cli('cleanup', '--cni-conf-dir', join(lab.directory, 'none'));
  expect([elsewhere.code, elsewhere.stderr]).toEqual([1, expect.stringContaining('confDirs')]);
  expect(existsSync(plugin)).toBe(true);
  const done = await agent.cli('cleanup', ...places, '--cni-state-dir', stateDir);
  writeFileSync(agent.configPath, config);
  expect([done.code, done.stderr]).toEqual([0, '']);
  expect([readFileSync(conflist, 'utf8'), existsSync(plugin)]).toEqual([before, false]);
});
