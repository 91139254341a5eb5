/** After `cleanup` the node is as it was before the agent first started, compared piece by piece. */

import { afterAll, beforeAll, expect, it } from 'vitest';
import { Containerd } from '../lab/containerd.js';
import { inNetns, runIn, tryRun, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type LabPod, reply } from '../lab/pod.js';
import { enrolled, TestAgent, TestProxy } from './agent.js';

let lab: Lab;
let agent: TestAgent;
let pods: LabPod[];

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  const [ptp, bridge] = [await Containerd.start(lab, 'ptp'), await Containerd.start(lab, 'bridge')];
  pods = [
    await ptp.runPod({ name: 'web-0', runtime: 'runc', labels: enrolled('web') }),
    await bridge.runPod({ name: 'web-1', runtime: 'runc', labels: enrolled('web') }),
  ];
  agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' } },
    interception: { mark: '0x40/0x40', table: 7340 },
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

/** Everything a program or rule of ours could stand in, as text; counters left out. */
async function node(): Promise<Record<string, string>> {
  const show = async (command: string, ...args: string[]) =>
    (await tryRun(...inNetns(lab.node, command, args))).stdout;
  return {
    rules4: await show('ip', 'rule'),
    rules6: await show('ip', '-6', 'rule'),
    routes4: await show('ip', 'route', 'show', 'table', 'all'),
    routes6: await show('ip', '-6', 'route', 'show', 'table', 'all'),
    qdiscs: await show('tc', 'qdisc', 'show'),
    nft: await show('nft', 'list', 'ruleset'),
    net: await show('bpftool', 'net'),
    // Others on this machine load programs too: ours are known by name.
    programs: await show(
      'sh',
      '-c',
      'bpftool prog | grep -E "pod_egress|bridge_steer|socket_lookup" | cut -d" " -f2-6',
    ),
    maps: await show(
      'sh',
      '-c',
      'bpftool map | grep -E "name (endpoints|sources|workloads|listeners|flows|counters|events) " | cut -d" " -f2-6',
    ),
    sysctls: await show(
      'sh',
      '-c',
      'sysctl -a 2>/dev/null | grep -E "^net\\.(ipv4|ipv6|netfilter|bridge)\\." | grep -vE "nf_conntrack_count|tcp_mem|random|route.gc"',
    ),
    bpffs: await show(
      'sh',
      '-c',
      `grep ${lab.directory} /proc/self/mounts | grep bpf; ls ${lab.directory}/bpf 2>/dev/null`,
    ),
  };
}

it('leaves rules, routes, tc, nftables, programs, maps and sysctls as they were', async () => {
  // WireGuard and some clouds set this: the agent then needs accept_local on pods' interfaces.
  await runIn(lab.node, 'sysctl', ['-qw', 'net.ipv4.conf.all.src_valid_mark=1']);
  const before = await node();

  await agent.start();
  const proxy = new TestProxy(lab, agent);
  await proxy.start();
  await agent.adopted(2);
  for (const pod of pods) {
    await agent.reaches(pod.name, 'INTERCEPTED');
    expect(reply(await pod.app(['dial', REMOTE[4], '80']))).toMatchObject({ ok: true });
  }
  const during = await node();
  for (const piece of ['rules4', 'rules6', 'nft', 'programs', 'maps', 'sysctls', 'bpffs']) {
    expect(during[piece], piece).not.toBe(before[piece]);
  }

  const refused = await agent.cli('cleanup');
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain('running');

  await proxy.stop();
  await agent.stop('SIGKILL');
  const done = await agent.cli('cleanup');
  expect(done.stderr).toBe('');
  expect(done.code).toBe(0);
  // The kernel frees programs and maps a moment after their last reference.
  await waitFor('programs to be freed', async () => (await node()).programs === before.programs, 5_000);
  expect(await node()).toEqual(before);
});

it('finds nothing to do the second time', async () => {
  const again = await agent.cli('cleanup', '--json');
  expect(again.code).toBe(0);
  expect(JSON.parse(again.stdout)).toMatchObject({ removed: [] });
});
