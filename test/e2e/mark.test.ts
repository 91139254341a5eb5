/** Packets of others that bear our bit, and others' rules that handle marks: each keeps its own. */

import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { createNetwork } from '../lab/cni.js';
import { runIn, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { hostLinkOf, type PlainPod, runPlainPod } from '../lab/plain.js';
import { type LabPod, reply } from '../lab/pod.js';
import { staticPod, TestAgent, TestProxy } from './agent.js';

/** With our bit, as Cilium's cluster IDs 64 to 127 and the default mark of wg-quick have it. */
const FOREIGN = '0x47';

let lab: Lab;
let agent: TestAgent;
let proxy: TestProxy;
let web: PlainPod;
let plain: PlainPod;
let plainLink: string;
let webLink: string;

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  const ptp = createNetwork(lab, 'ptp');
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  web = await runPlainPod(lab, ptp, 'web');
  agent.writePods([staticPod(web)]);
  await agent.start();
  proxy = new TestProxy(lab, agent);
  await proxy.start();
  await agent.adopted(2);
  await agent.reaches('web', 'INTERCEPTED');
  plain = await runPlainPod(lab, ptp, 'plain');
  webLink = await hostLinkOf(lab, web.netnsName);
  plainLink = await hostLinkOf(lab, plain.netnsName);
}, 120_000);

afterAll(async () => {
  await lab?.close();
});

afterEach(() =>
  runIn(lab.node, 'nft', ['-f', '-'], { input: 'add table inet others\ndelete table inet others\n' }),
);

/** Chains of somebody else's table. */
async function others(chains: string): Promise<void> {
  await runIn(lab.node, 'nft', ['-f', '-'], { input: `table inet others {\n${chains}\n}\n` });
}

/** Packets that met the rule of that table with this comment. */
async function met(comment: string): Promise<number> {
  const listed = await runIn(lab.node, 'nft', ['list', 'table', 'inet', 'others']);
  const line = listed.split('\n').find((candidate) => candidate.includes(`comment "${comment}"`));
  return Number(/packets (\d+)/.exec(line ?? '')?.[1] ?? Number.NaN);
}

async function expectIntercepted(pod: LabPod, family: 4 | 6): Promise<void> {
  const { localPort } = reply(await pod.app(['dial', REMOTE[family], '80'], 10_000));
  const ip = family === 4 ? pod.ips[4] : `[${pod.ips[6]}]`;
  const destination = family === 4 ? REMOTE[4] : `[${REMOTE[6]}]`;
  expect(await proxy.flowFrom(`${ip}:${localPort}`)).toMatchObject({ originalDst: `${destination}:80` });
}

describe("a packet of somebody else's that bears our bit", () => {
  it.each([4, 6] as const)('keeps it and its connection until it is routed (IPv%i)', async (family) => {
    await others(
      `chain early {
         type filter hook prerouting priority -320;
         iifname { "${plainLink}", "uplink" } meta mark set ${FOREIGN}
       }
       chain mangle {
         type filter hook prerouting priority mangle;
         iifname "${plainLink}" meta l4proto tcp meta mark ${FOREIGN} counter comment "kept"
         iifname "uplink" meta mark ${FOREIGN} counter comment "answers kept"
         meta l4proto tcp ct state untracked counter comment "untracked"
       }
       chain forward {
         type filter hook forward priority filter;
         ct state established counter comment "established"
         iifname "${plainLink}" meta l4proto tcp meta mark 0x7 counter comment "the rest of the mark"
       }`,
    );
    const outcome = reply(await plain.app(['dial', REMOTE[family], '80'], 10_000));
    expect(outcome).toMatchObject({ ok: true });
    const forwarded = await met('the rest of the mark');
    expect(forwarded).toBeGreaterThan(2);
    expect(await met('kept')).toBe(forwarded);
    expect(await met('answers kept')).toBeGreaterThan(2);
    expect(await met('established')).toBeGreaterThan(forwarded);
    expect(await met('untracked')).toBe(0);
  });

  it('is delivered where it is addressed also when it came from an enrolled pod', async () => {
    await others(
      `chain early {
         type filter hook prerouting priority -320;
         ip protocol udp meta mark set ${FOREIGN}
       }
       chain forward {
         type filter hook forward priority filter;
         ip protocol udp meta mark 0x7 ct state new counter comment "forwarded"
       }`,
    );
    await runIn(web.netnsName, 'bash', ['-c', `echo datagram >/dev/udp/${REMOTE[4]}/53`]);
    expect(await met('forwarded')).toBe(1);
  });
});

/** Our table as somebody else could leave it, while the agent that would repair it is stopped. */
async function withOurTable(change: (text: string) => string, body: () => Promise<void>): Promise<void> {
  process.kill(agent.pid, 'SIGSTOP');
  try {
    const ours = await runIn(lab.node, 'nft', ['list', 'table', 'inet', 'nodesentry']);
    const changed = change(ours);
    expect(changed).not.toBe(ours);
    await runIn(lab.node, 'nft', ['-f', '-'], { input: `delete table inet nodesentry\n${changed}` });
    await body();
  } finally {
    process.kill(agent.pid, 'SIGCONT');
  }
  await waitFor('our table to be repaired', async () => {
    const now = await runIn(lab.node, 'nft', ['list', 'table', 'inet', 'nodesentry']);
    return change(now) !== now;
  });
}

/** The pod dials until `isLost`: its packets are dropped, and it would wait long for an answer. */
async function isLostBy(isLost: () => Promise<boolean>): Promise<void> {
  const before = proxy.flows().length;
  const words = ['dial', REMOTE[4], '80'];
  const dialling = lab.daemon(web.netnsName, 'lost', await buildApp(), words);
  await waitFor('the packet to be lost', isLost);
  await dialling.stop('SIGKILL');
  expect(dialling.log()).not.toContain('"ok":true');
  expect(proxy.flows()).toHaveLength(before);
}

describe('beside rules of others an enrolled pod is intercepted', () => {
  it.each([
    [
      'that give every packet a mark with our bit',
      `type filter hook prerouting priority -320; meta mark set ${FOREIGN}`,
    ],
    ['that overwrite every mark', 'type filter hook prerouting priority mangle; meta mark set 0x100'],
    [
      'that check the reverse path by mark, as firewalld does',
      'type filter hook prerouting priority mangle + 10; fib saddr . mark . iif oif missing drop',
    ],
  ])('%s', async (_what, chain) => {
    await others(`chain theirs {\n${chain}\n}`);
    await expectIntercepted(web, 4);
    await expectIntercepted(web, 6);
  });

  // What the two above would not tell if the rules of others did no harm in the first place.
  it('which a reverse-path check by mark would undo, if our mark stayed on its packets', async () => {
    await others(
      `chain theirs {
         type filter hook prerouting priority mangle + 10;
         fib saddr . mark . iif oif missing counter drop comment "reverse path"
       }`,
    );
    const keptMark = (text: string) =>
      text.replaceAll(/(notrack) meta mark set meta mark & 0xffffffbf/g, '$1');
    await withOurTable(keptMark, () => isLostBy(async () => (await met('reverse path')) > 0));
    await expectIntercepted(web, 4);
  });

  it('which a rule that overwrites marks would undo, if its packets did not get ours back', async () => {
    await others(
      `chain theirs {
         type filter hook prerouting priority mangle;
         iifname "${webLink}" tcp dport 80 meta mark set 0x100 counter comment "overwritten"
       }`,
    );
    const notGivenBack = (text: string) => text.replaceAll(/^\s*ct state untracked .*$/gm, '');
    await withOurTable(notGivenBack, () => isLostBy(async () => (await met('overwritten')) > 1));
    await expectIntercepted(web, 4);
  });

  it('and its packets are untracked in every chain of theirs', async () => {
    await others(
      `chain mangle {
         type filter hook prerouting priority mangle;
         ip saddr ${web.ips[4]} ct state untracked counter comment "untracked"
         ip saddr ${web.ips[4]} ct state != untracked counter comment "tracked"
       }`,
    );
    await expectIntercepted(web, 4);
    expect(await met('untracked')).toBeGreaterThan(2);
    expect(await met('tracked')).toBe(0);
  });
});
