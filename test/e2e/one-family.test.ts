/** A node without IPv6, or that loses it and gets it back, and a node that lacks a part for a while. */

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { CheckResult } from '../../src/doctor/check.js';
import { attachedOn } from '../lab/attached.js';
import { createNetwork, type Network } from '../lab/cni.js';
import { type Daemon, runIn, script, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { hostLinkOf, type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { OUTBOUND, staticPod, TestAgent, TestProxy } from './agent.js';

let lab: Lab;
let ptp: Network;
let agent: TestAgent;
let proxy: TestProxy;
let web: PlainPod;
const described: object[] = [];

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  ptp = createNetwork(lab, 'ptp');
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  web = await enrolledPod('web');
  await sysctl('all', 1);
  await agent.start();
}, 120_000);

afterAll(async () => {
  await lab?.close();
});

async function sysctl(name: string, value: 0 | 1): Promise<void> {
  await runIn(lab.node, 'sysctl', ['-qw', `net.ipv6.conf.${name}.disable_ipv6=${value}`]);
}

async function enrolledPod(name: string): Promise<PlainPod> {
  const pod = await runPlainPod(lab, ptp, name);
  described.push(staticPod(pod));
  agent.writePods(described);
  return pod;
}

/** Rules and routes of ours. */
async function policy(family: 4 | 6): Promise<string[]> {
  const rules = (await runIn(lab.node, 'ip', [`-${family}`, 'rule'])).split('\n');
  const routes = (await runIn(lab.node, 'ip', [`-${family}`, 'route', 'show', 'table', 'all'])).split('\n');
  return [...rules.filter((line) => line.startsWith('90:')), ...routes.filter((line) => /7340/.test(line))];
}

async function attached({ netnsName }: PlainPod): Promise<boolean> {
  const veth = await hostLinkOf(lab, netnsName);
  return (await attachedOn(lab)).some((program) => program.interface === veth);
}

async function expectIntercepted(pod: PlainPod, family: 4 | 6): Promise<void> {
  const { localPort } = reply(await pod.app(['dial', REMOTE[family], '80'], 10_000));
  const [ip, destination] = family === 4 ? [pod.ips[4], REMOTE[4]] : [`[${pod.ips[6]}]`, `[${REMOTE[6]}]`];
  expect(await proxy.flowFrom(`${ip}:${localPort}`)).toMatchObject({ originalDst: `${destination}:80` });
}

describe('a node whose IPv6 is off', () => {
  let only4: Daemon;

  it('is ready, with the IPv4 half of everything, and says so', async () => {
    const { ready, blockers, familiesOff } = await agent.client.status();
    expect({ ready, blockers, familiesOff }).toEqual({
      ready: true,
      blockers: [],
      familiesOff: [{ family: 6, reason: 'net.ipv6.conf.all.disable_ipv6 is 1' }],
    });
    expect(await policy(4)).toHaveLength(2);
    expect(await policy(6)).toEqual([]);
    expect(await runIn(lab.node, 'nft', ['list', 'table', 'inet', 'nodesentry'])).toContain('before_routing');
    expect((await agent.cli('status')).stdout).toMatch(/IPv6: +off on this node \(net\.ipv6\.conf\.all/);
    const checks = JSON.parse((await agent.cli('doctor', '--json')).stdout) as CheckResult[];
    expect(checks.find(({ name }) => name === 'address families')?.found).toContain('IPv6 is off');
    expect(agent.log().match(/IPv6 is off on this node: it is not intercepted/g)).toHaveLength(1);
  });

  it('intercepts the IPv4 of a pod that has both, and says what becomes of its IPv6', async () => {
    only4 = lab.daemon(lab.node, 'proxy-4', new URL('../../bin/nodesentry', import.meta.url).pathname, [
      ...['--run-dir', agent.runDir, 'proxy', '--outbound', OUTBOUND[0]],
    ]);
    await only4.logged(/proxy running/);
    await agent.adopted(1);
    const { interception } = await agent.reaches('web', 'INTERCEPTED');
    expect(interception.reason).toContain('IPv6 is off on this node');
    const { localPort } = reply(await web.app(['dial', REMOTE[4], '80'], 10_000));
    await only4.logged(new RegExp(`"peer":"${web.ips[4]}:${localPort}"`));
    await expect(web.app(['dial', REMOTE[6], '80'], 1_500)).rejects.toThrow('took longer');
  });

  it('has the other half as soon as it is switched on', async () => {
    await only4.stop();
    const before = (await agent.client.status()).repairs;
    await sysctl('all', 0);
    await waitFor('rule and route', async () => (await policy(6)).length === 2, 3_000);
    await script(
      lab.node,
      `ip addr add fd00:199::1/64 dev uplink nodad
       ip route add ${REMOTE[6]}/128 via fd00:199::2`,
    );
    await waitFor('nothing to be off', async () => (await agent.client.status()).familiesOff.length === 0);
    expect((await agent.client.status()).repairs).toEqual(before);
    proxy = new TestProxy(lab, agent);
    await proxy.start();
    await agent.adopted(2);
    web = await enrolledPod('both');
    expect((await agent.reaches('both', 'INTERCEPTED')).interception.reason).toBe('');
    await expectIntercepted(web, 4);
    await expectIntercepted(web, 6);
  });

  it('that is off at lo alone is ready, tells the pods that have it, and lets none of it round the proxy', async () => {
    await sysctl('lo', 1);
    const { interception } = await agent.reaches('both', 'DEGRADED');
    expect(interception.reason).toContain('net.ipv6.conf.lo.disable_ipv6 is 1');
    expect((await agent.client.status()).ready).toBe(true);
    await expectIntercepted(web, 4);
    const { FLOW_STARTED: before = 0 } = await agent.packets('both');
    await expect(web.app(['dial', REMOTE[6], '80'], 1_500)).rejects.toThrow('took longer');
    expect((await agent.packets('both')).FLOW_STARTED).toBeGreaterThan(before);
    await sysctl('lo', 0);
    await agent.reaches('both', 'INTERCEPTED');
  });
});

describe('a node that lacks a part', () => {
  it('keeps what is attached, tells every pod, and attaches no other until the part is there', async () => {
    await runIn(lab.node, 'ip', ['route', 'add', 'default', 'via', '10.199.0.2', 'table', '9999']);
    await runIn(lab.node, 'ip', ['rule', 'add', 'pref', '80', 'fwmark', '0x40/0x40', 'lookup', '9999']);
    let fresh: PlainPod;
    try {
      await agent.reaches('both', 'DEGRADED');
      fresh = await enrolledPod('fresh');
      const pending = await waitFor('the datapath to have looked at it', async () => {
        const { interception } = await agent.reaches('fresh', 'PENDING');
        return interception.reason === '' ? undefined : interception;
      });
      expect(pending).toMatchObject({
        reason: expect.stringContaining('not delivered by table 7340'),
        programmed: false,
      });
      await agent.stop('SIGKILL');
      await agent.start({ ready: false });
      await agent.reaches('fresh', 'PENDING');
      expect((await agent.reaches('both', 'DEGRADED')).interception.reason).toContain('not delivered');
      expect([await attached(web), await attached(fresh)]).toEqual([true, false]);
    } finally {
      await runIn(lab.node, 'ip', ['rule', 'del', 'pref', '80']);
    }
    await agent.reaches('both', 'INTERCEPTED');
    await agent.reaches('fresh', 'INTERCEPTED');
    expect(await attached(fresh)).toBe(true);
    await expectIntercepted(fresh, 6);
  });
});

it('cleanup leaves nothing, with IPv6 off again', async () => {
  await sysctl('all', 1);
  await waitFor('the agent to notice', async () => (await agent.client.status()).familiesOff.length === 1);
  await agent.stop();
  expect(await agent.cli('cleanup')).toMatchObject({ code: 0 });
  expect([await policy(4), await policy(6)]).toEqual([[], []]);
  expect(await runIn(lab.node, 'nft', ['list', 'tables'])).not.toContain('nodesentry');
  expect(await runIn(lab.node, 'bpftool', ['net'])).not.toContain('pod_egress');
});
