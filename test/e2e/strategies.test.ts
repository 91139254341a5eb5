/** Pods that are wired in unusual ways, or wired anew while they run: intercepted, or told why not. */

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { InterfaceStatus } from '../../src/reconcile/status.js';
import { Capture } from '../lab/capture.js';
import { createNetwork, type Network } from '../lab/cni.js';
import { runIn, script, waitFor } from '../lab/exec.js';
import { GvisorSandbox } from '../lab/gvisor.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { MicroVms } from '../lab/microvm.js';
import { hostIndexOf, hostLinkOf, type PlainPod, runPlainPod } from '../lab/plain.js';
import { type LabPod, reply } from '../lab/pod.js';
import { staticPod, TestAgent, TestProxy } from './agent.js';

const FAMILIES = [4, 6] as const;
/** Addresses of the remote that pods reach by their second interface. */
const SECOND = { 4: '10.200.1.2', 6: 'fd00:200::2' } as const;

let lab: Lab;
let ptp: Network;
let bridge: Network;
let agent: TestAgent;
let proxy: TestProxy;
const described = new Map<string, object>();

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  await script(
    lab.remote,
    `ip addr add ${SECOND[4]}/32 dev lo
     ip addr add ${SECOND[6]}/128 dev lo nodad`,
  );
  await script(
    lab.node,
    `ip route add ${SECOND[4]}/32 via 10.199.0.2
     ip route add ${SECOND[6]}/128 via fd00:199::2`,
  );
  ptp = createNetwork(lab, 'ptp');
  bridge = createNetwork(lab, 'bridge');
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  agent.writePods([]);
  await agent.start();
  proxy = new TestProxy(lab, agent);
  await proxy.start();
  await agent.adopted(2);
}, 120_000);

afterAll(async () => {
  await lab?.close();
});

/** Puts the pod into the static file, or changes what stands there. */
function describePod(pod: LabPod, more: object = {}): void {
  described.set(pod.name, staticPod(pod, more));
  agent.writePods([...described.values()]);
}

function bracket(ip: string): string {
  return ip.includes(':') ? `[${ip}]` : ip;
}

async function interfacesOf(pod: LabPod): Promise<readonly InterfaceStatus[]> {
  return (await agent.workload(pod.name))?.interception.interfaces ?? [];
}

/** Dials, and finds the flow under this pod, from this address, to where it was meant to go. */
async function goesThroughTheProxy(pod: LabPod, from: string, to: string): Promise<{ generation: number }> {
  const dialled = reply(await pod.app(['dial', to, '80']));
  expect(dialled).toMatchObject({ ok: true });
  expect(JSON.stringify(dialled.server)).not.toContain(from);
  return isKnownAs(pod, from, Number(dialled.localPort), to);
}

/** The proxy saw this flow, and is told that it is the pod's. */
async function isKnownAs(
  pod: LabPod,
  from: string,
  port: number,
  to: string,
): Promise<{ generation: number }> {
  const peer = `${bracket(from)}:${port}`;
  expect(await proxy.flowFrom(peer)).toMatchObject({ peer, originalDst: `${bracket(to)}:80` });
  const resolution = await agent.client.resolve({
    proto: 'tcp',
    src: { ip: from, port },
    dst: { ip: to, port: 80 },
  });
  expect(resolution).toMatchObject({
    assurance: 'DATAPATH_RECORDED',
    workload: { podName: pod.name, podUid: pod.uid, state: 'LIVE' },
  });
  return { generation: resolution.workload.generation };
}

/** The pod dials until `found`: its packets are dropped, so that it would wait long for an answer. */
async function whileItDials(pod: PlainPod, to: string, what: string, found: () => Promise<boolean>) {
  const dialling = lab.daemon(pod.netnsName, `dial-${pod.name}`, await buildApp(), ['dial', to, '80']);
  await waitFor(what, found, 15_000);
  await dialling.stop();
}

describe("a microVM wired by Kata's macvtap model", () => {
  let vm: LabPod;

  beforeAll(async () => {
    vm = await new MicroVms(lab, 'ptp', ptp).runPod({ name: 'macvtap' }, undefined, 'macvtap');
    describePod(vm);
  }, 120_000);

  it.each(FAMILIES)('IPv%i: the proxy sees both addresses and is told the pod', async (family) => {
    const { interception } = await agent.reaches('macvtap', 'INTERCEPTED');
    expect(interception.interfaces).toMatchObject([{ podInterface: 'eth0' }]);
    await goesThroughTheProxy(vm, vm.ips[family], REMOTE[family]);
  });
});

describe('a pod with two interfaces', () => {
  it('both veths to the node: intercepted at both, under one name', async () => {
    const pod = await runPlainPod(lab, ptp, 'two-veths');
    describePod(pod);
    await agent.reaches(pod.name, 'INTERCEPTED');
    // As Multus adds it: when the first one has been there for some time.
    const second = await bridge.attach(`${pod.netnsName}-net1`, pod.netns, undefined, 'net1');
    lab.cleanup.add('net1', () => bridge.detach(`${pod.netnsName}-net1`, pod.netns, 'net1'));
    await script(
      pod.netnsName,
      `ip route add ${REMOTE[4]}/32 via ${pod.gateway[4]} dev eth0
       ip route add ${REMOTE[6]}/128 via ${pod.gateway[6]} dev eth0
       ip route add ${SECOND[4]}/32 via ${second.gateway[4]} dev net1
       ip route add ${SECOND[6]}/128 via ${second.gateway[6]} dev net1`,
    );
    // Nobody has told its addresses: it is left alone, and named.
    const { interception } = await agent.reaches(pod.name, 'DEGRADED');
    expect(interception.reason).toContain('not intercepted: no source tells the addresses of net1');
    expect(await interfacesOf(pod)).toHaveLength(1);
    // What it sends by there gets straight through, and is not taken for forged.
    for (const family of FAMILIES) {
      const dialled = reply(await pod.app(['dial', SECOND[family], '80']));
      expect(dialled.server).toMatchObject({ peer: `${bracket(second[family])}:${dialled.localPort}` });
    }
    expect((await agent.packets(pod.name)).SPOOFED_SOURCE ?? 0).toBe(0);

    describePod(pod, { interfaceIps: { net1: [second[4], second[6]] } });
    await waitFor('both interfaces', async () => (await interfacesOf(pod)).length === 2);
    await agent.reaches(pod.name, 'INTERCEPTED');
    expect(await interfacesOf(pod)).toMatchObject([
      { podInterface: 'eth0', topology: 'routed', ifindex: await hostIndexOf(pod.netnsName, 'eth0') },
      { podInterface: 'net1', topology: 'bridge', ifindex: await hostIndexOf(pod.netnsName, 'net1') },
    ]);
    for (const family of FAMILIES) {
      await goesThroughTheProxy(pod, pod.ips[family], REMOTE[family]);
      await goesThroughTheProxy(pod, second[family], SECOND[family]);
    }
  });

  it('the second one a macvlan: DEGRADED, and the reason names it; the first goes through the proxy', async () => {
    const pod = await runPlainPod(lab, ptp, 'macvlan-beside');
    describePod(pod);
    await agent.reaches(pod.name, 'INTERCEPTED');
    await script(lab.node, `ip link add net1 link uplink netns ${pod.netnsName} type macvlan mode bridge`);
    await runIn(pod.netnsName, 'ip', ['link', 'set', 'net1', 'up']);
    const { interception } = await agent.reaches(pod.name, 'DEGRADED');
    expect(interception.reason).toContain('net1 is a macvlan interface');
    expect(interception.interfaces).toMatchObject([{ podInterface: 'eth0' }]);
    await goesThroughTheProxy(pod, pod.ips[4], REMOTE[4]);

    await runIn(pod.netnsName, 'ip', ['link', 'del', 'net1']);
    await agent.reaches(pod.name, 'INTERCEPTED');
  });
});

it('a pod whose only interface is a macvlan is REFUSED, and told why', async () => {
  const pod = await runPlainPod(lab, ptp, 'macvlan-only');
  await ptp.detach(pod.netnsName, pod.netns);
  await script(lab.node, `ip link add eth0 link uplink netns ${pod.netnsName} type macvlan mode bridge`);
  await runIn(pod.netnsName, 'ip', ['link', 'set', 'eth0', 'up']);
  describePod(pod);
  const { interception } = await agent.reaches(pod.name, 'REFUSED');
  expect(interception.reason).toContain('UNSUPPORTED_INTERFACE: eth0 in the pod is a macvlan interface');
});

describe.each([
  { family: 4, address: '10.66.200.200', length: 32 },
  { family: 6, address: 'fd00:66:1::200', length: 128 },
] as const)('an IPv$family address that a pod gives itself', ({ family, address, length }) => {
  it('is dropped and counted until a source names it, and is intercepted from then on', async () => {
    const pod = await runPlainPod(lab, ptp, `secondary-${family}`);
    describePod(pod);
    await agent.reaches(pod.name, 'INTERCEPTED');
    await script(
      pod.netnsName,
      `ip addr add ${address}/${length} dev eth0 ${family === 6 ? 'nodad' : ''}
       ip route add ${SECOND[family]}/${length} via ${pod.gateway[family]} dev eth0 src ${address}`,
    );
    const wire = await Capture.start(lab, lab.node, 'uplink', `tcp and host ${address}`);
    await whileItDials(
      pod,
      SECOND[family],
      'the forged packets to be counted',
      async () => ((await agent.packets(pod.name)).SPOOFED_SOURCE ?? 0) > 0,
    );
    expect(proxy.flows().filter(({ peer }) => peer.includes(address))).toEqual([]);
    expect(await wire.flows()).toEqual([]);

    await script(lab.node, `ip route add ${address}/${length} dev ${await hostLinkOf(lab, pod.netnsName)}`);
    describePod(pod, { ips: [pod.ips[4], pod.ips[6], address] });
    await waitFor('the address to be known', async () =>
      (await agent.workload(pod.name))?.ips.includes(address),
    );
    await agent.reaches(pod.name, 'INTERCEPTED');
    await goesThroughTheProxy(pod, address, SECOND[family]);
    expect(
      (await wire.flows()).filter((flow) => flow.startsWith(family === 4 ? `${address}:` : `[${address}]:`)),
    ).toEqual([]);
  });
});

describe('a pod that is wired anew under the same uid', () => {
  const OLD_PORT = 33_000;

  /** Replaces what carries the pod by `replace`, and sees that it is intercepted there within two seconds. */
  async function rewired(pod: LabPod, replace: () => Promise<LabPod>): Promise<LabPod> {
    const [before] = await interfacesOf(pod);
    // The server closes first: this runsc cannot save a connection in TIME_WAIT.
    expect(reply(await pod.app(['reuse', REMOTE[4], '80', String(OLD_PORT), '1']))).toMatchObject({
      ok: true,
    });
    const { generation } = await isKnownAs(pod, pod.ips[4], OLD_PORT, REMOTE[4]);
    const replaced = await replace();
    const startedMs = performance.now();
    await waitFor('another interface', async () => {
      const workload = await agent.workload(pod.name);
      const [now] = workload?.interception.interfaces ?? [];
      return workload?.interception.state === 'INTERCEPTED' && now?.ifindex !== before?.ifindex;
    });
    expect(performance.now() - startedMs).toBeLessThan(2_000);
    for (const family of FAMILIES) {
      const again = await goesThroughTheProxy(replaced, replaced.ips[family], REMOTE[family]);
      expect(again.generation).toBeGreaterThan(generation);
    }
    // What the pod sent before is still known to have been its own.
    const past = await agent.client.resolve({
      proto: 'tcp',
      src: { ip: pod.ips[4], port: OLD_PORT },
      dst: { ip: REMOTE[4], port: 80 },
    });
    expect(past.workload.podUid).toBe(pod.uid);
    return replaced;
  }

  it('a veth of the same name with another ifindex: intercepted there within 2 s', async () => {
    const pod = await runPlainPod(lab, ptp, 'new-veth');
    describePod(pod);
    await agent.reaches(pod.name, 'INTERCEPTED');
    const name = await hostLinkOf(lab, pod.netnsName);
    const addresses = FAMILIES.map((family) => pod.ips[family]);
    await rewired(pod, async () => {
      await script(
        lab.node,
        `ip link del ${name}
         ip link add ${name} type veth peer name eth0 netns ${pod.netnsName}
         ip addr add ${pod.gateway[4]}/32 dev ${name}
         ip addr add ${pod.gateway[6]}/128 dev ${name} nodad
         ip link set ${name} up`,
      );
      await script(
        pod.netnsName,
        `ip link set eth0 up
         ip addr add ${pod.ips[4]}/32 dev eth0
         ip addr add ${pod.ips[6]}/128 dev eth0 nodad
         ip route add ${pod.gateway[4]} dev eth0
         ip route add ${pod.gateway[6]} dev eth0
         ip route add default via ${pod.gateway[4]}
         ip -6 route add default via ${pod.gateway[6]}`,
      );
      for (const address of addresses) {
        await runIn(lab.node, 'ip', ['route', 'add', address, 'dev', name]);
      }
      return pod;
    });
  });

  it('another network namespace: intercepted there within 2 s', async () => {
    const pod = await runPlainPod(lab, ptp, 'new-netns');
    describePod(pod);
    await agent.reaches(pod.name, 'INTERCEPTED');
    await rewired(pod, async () => {
      await pod.stop();
      const next = await runPlainPod(lab, ptp, pod.name, { uid: pod.uid, id: 'new-netns-2' });
      describePod(next);
      return next;
    });
  });

  it('another network namespace at the same path: intercepted there within 2 s', async () => {
    const pod = await runPlainPod(lab, ptp, 'same-path');
    describePod(pod);
    await agent.reaches(pod.name, 'INTERCEPTED');
    await rewired(pod, async () => {
      await pod.stop();
      const next = await runPlainPod(lab, ptp, pod.name, { uid: pod.uid });
      describePod(next);
      return next;
    });
  });

  it('a gVisor sandbox, checkpointed and restored in another namespace: intercepted there within 2 s', async () => {
    const first = await runPlainPod(lab, ptp, 'restored');
    const sandbox = await GvisorSandbox.start(lab, 'restored-1', first.netns);
    const pod: LabPod = { ...first, runtime: 'runsc', app: (words, ms) => sandbox.app(words, ms) };
    describePod(pod);
    await agent.reaches(pod.name, 'INTERCEPTED');
    await rewired(pod, async () => {
      const image = await sandbox.checkpoint();
      await first.stop();
      const next = await runPlainPod(lab, ptp, pod.name, { uid: pod.uid, id: 'restored-2' });
      const restored = await GvisorSandbox.restore(lab, 'restored-2', next.netns, image);
      const same: LabPod = { ...next, runtime: 'runsc', app: (words, ms) => restored.app(words, ms) };
      describePod(same);
      return same;
    });
  });
});
