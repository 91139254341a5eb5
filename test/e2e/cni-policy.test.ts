/**
 * Beside a routed CNI that writes NetworkPolicy as Calico does, by pod interface: which of its rules still see
 * intercepted traffic, and which do not. And beside programs of others at our hook.
 */

import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { CheckResult } from '../../src/doctor/check.js';
import {
  attachTcx,
  type BpfLink,
  BpfObject,
  programInfo,
  queryTcx,
  type TcxEntry,
} from '../../src/native/bpf.js';
import { closeFd } from '../../src/native/descriptors.js';
import { openNamespace, withNetns } from '../../src/native/namespaces.js';
import { createNetwork, type Network } from '../lab/cni.js';
import { Cleanup, runIn, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { hostIndexOf, hostLinkOf, type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { staticPod, TestAgent, TestProxy } from './agent.js';

const FIXTURE = join(import.meta.dirname, '../../build/bpf-test/neighbour.bpf.o');

let lab: Lab;
let ptp: Network;
let agent: TestAgent;
let proxy: TestProxy;
let web: PlainPod;
let webLink: string;
let plain: PlainPod;
let plainLink: string;
const described = new Map<string, object>();

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve(8080);
  ptp = createNetwork(lab, 'ptp');
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  agent.writePods([]);
  await agent.start();
  proxy = new TestProxy(lab, agent);
  await proxy.start();
  await agent.adopted(2);
  web = await intercepted('web');
  webLink = await hostLinkOf(lab, web.netnsName);
  plain = await runPlainPod(lab, ptp, 'plain');
  plainLink = await hostLinkOf(lab, plain.netnsName);
}, 120_000);

afterAll(async () => {
  await lab?.close();
});

/** Enrolled, not yet looked at. */
async function enrolledPod(name: string, before?: (pod: PlainPod) => Promise<void>): Promise<PlainPod> {
  const pod = await runPlainPod(lab, ptp, name);
  await before?.(pod);
  described.set(name, staticPod(pod));
  agent.writePods([...described.values()]);
  return pod;
}

async function intercepted(name: string, before?: (pod: PlainPod) => Promise<void>): Promise<PlainPod> {
  const pod = await enrolledPod(name, before);
  await agent.reaches(name, 'INTERCEPTED');
  return pod;
}

/** No source knows the pod any more. */
function withdraw(pod: PlainPod): void {
  described.delete(pod.name);
  agent.writePods([...described.values()]);
}

async function dials(pod: PlainPod, to: string = REMOTE[4], port = 80): Promise<boolean> {
  return reply(await pod.app(['dial', to, String(port)])).ok;
}

/** What both flavours of iptables hold, counters left out. */
async function iptables(): Promise<string> {
  const saved = [
    await runIn(lab.node, 'iptables-nft-save', []),
    await runIn(lab.node, 'ip6tables-nft-save', []),
  ];
  return saved
    .join('')
    .split('\n')
    .filter((line) => !line.startsWith('#'))
    .map((line) => line.replace(/ \[\d+:\d+\]$/, ''))
    .join('\n');
}

async function flushIptables(): Promise<void> {
  for (const command of ['iptables-nft', 'ip6tables-nft']) {
    for (const table of ['filter', 'raw']) {
      await runIn(lab.node, command, ['-t', table, '-F']);
      await runIn(lab.node, command, ['-t', table, '-X']);
    }
  }
}

describe('iptables rules by pod interface, as Calico writes them', () => {
  afterEach(flushIptables);

  /** Rules of the filter table, as iptables-save writes them. */
  async function restore(rules: string): Promise<void> {
    const lines = rules
      .split('\n')
      .map((line) => line.trim())
      .filter((line) => line !== '');
    const input = ['*filter', ...lines, 'COMMIT', ''].join('\n');
    await runIn(lab.node, 'iptables-nft-restore', ['--noflush'], { input });
  }

  /** How many packets met the rule with this comment. */
  async function met(comment: string, command = 'iptables-nft', table = 'filter'): Promise<number> {
    const listed = await runIn(lab.node, `${command}-save`, ['-c', '-t', table]);
    const line = listed.split('\n').find((candidate) => candidate.includes(`--comment ${comment} `));
    return Number(/^\[(\d+):/.exec(line ?? '')?.[1] ?? Number.NaN);
  }

  /** A dial whose packets are dropped; it would wait for long. */
  async function isDropped(pod: PlainPod, comment: string): Promise<void> {
    const dialling = lab.daemon(pod.netnsName, `dropped-${comment}`, await buildApp(), [
      'dial',
      REMOTE[4],
      '80',
    ]);
    await waitFor('a drop', async () => (await met(comment)) > 0);
    await dialling.stop();
    expect(dialling.log()).not.toContain('"ok":true');
  }

  const DISPATCH = `
    :cali-FORWARD - [0:0]
    :cali-INPUT - [0:0]
    :cali-OUTPUT - [0:0]
    :cali-wl-to-host - [0:0]
    :cali-from-wl-dispatch - [0:0]
    :cali-to-wl-dispatch - [0:0]`;

  /** The chain of an endpoint: accepts by a mark of Calico's own what the policy allows, drops the rest. */
  function endpointChain(link: string, chain: string, allowed: string): string {
    return `
      :${chain} - [0:0]
      -A ${chain} -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment established-${link} -j ACCEPT
      -A ${chain} -m conntrack --ctstate INVALID -m comment --comment invalid-${link} -j DROP
      -A ${chain} -j MARK --set-xmark 0x0/0x10000
      ${allowed === '' ? '' : `-A ${chain} ${allowed} -j MARK --set-xmark 0x10000/0x10000`}
      -A ${chain} -m mark --mark 0x10000/0x10000 -m comment --comment allowed-${link} -j RETURN
      -A ${chain} -m comment --comment denied-${link} -j DROP`;
  }

  it('FORWARD: an egress rule stops a pod that is not intercepted, and never sees one that is', async () => {
    await restore(
      `${DISPATCH}
      ${endpointChain(webLink, 'cali-fw-web', '')}
      ${endpointChain(plainLink, 'cali-fw-plain', '')}
      -A FORWARD -j cali-FORWARD
      -A cali-FORWARD -i veth+ -j cali-from-wl-dispatch
      -A cali-from-wl-dispatch -i ${webLink} -g cali-fw-web
      -A cali-from-wl-dispatch -i ${plainLink} -g cali-fw-plain`,
    );
    await isDropped(plain, `denied-${plainLink}`);
    expect(await dials(web)).toBe(true);
    expect(await met(`denied-${webLink}`)).toBe(0);
  });

  it('FORWARD: what is not intercepted of an intercepted pod (UDP) is still stopped there', async () => {
    await restore(
      `${DISPATCH}
      ${endpointChain(webLink, 'cali-fw-web', '')}
      -A FORWARD -j cali-FORWARD
      -A cali-FORWARD -i veth+ -j cali-from-wl-dispatch
      -A cali-from-wl-dispatch -i ${webLink} -g cali-fw-web`,
    );
    await runIn(web.netnsName, 'bash', ['-c', `echo datagram >/dev/udp/${REMOTE[4]}/53`]);
    expect(await met(`denied-${webLink}`)).toBe(1);
  });

  it("FORWARD: a local pod's ingress rule does not see an intercepted client; OUTPUT sees the proxy", async () => {
    const server = await runPlainPod(lab, ptp, 'server');
    const serving = lab.daemon(server.netnsName, 'local-server', await buildApp(), ['serve', '80']);
    await serving.logged(/"serving":true/);
    const link = await hostLinkOf(lab, server.netnsName);
    await restore(
      `${DISPATCH}
      ${endpointChain(link, 'cali-tw-server', '')}
      -A FORWARD -j cali-FORWARD
      -A cali-FORWARD -o veth+ -j cali-to-wl-dispatch
      -A cali-to-wl-dispatch -o ${link} -g cali-tw-server
      -A OUTPUT -j cali-OUTPUT
      -A cali-OUTPUT -o ${link} -p tcp --dport 80 -m comment --comment upstream -j RETURN`,
    );
    expect(await dials(web, server.ips[4])).toBe(true);
    expect(await met(`denied-${link}`)).toBe(0);
    expect(await met('upstream')).toBeGreaterThan(0);
  });

  it("OUTPUT: the proxy's own connection to where the pod dialled can be stopped there", async () => {
    await restore(
      `${DISPATCH}
      -A OUTPUT -j cali-OUTPUT
      -A cali-OUTPUT -p tcp -d ${REMOTE[4]} --dport 8080 -m comment --comment host-egress -j REJECT`,
    );
    expect(await dials(web, REMOTE[4], 8080)).toBe(false);
    expect(await met('host-egress')).toBeGreaterThan(0);
  });

  /** `action`: the configured DefaultEndpointToHostAction. */
  function toHost(allowed: string, action: string): string {
    return `${DISPATCH}
      ${endpointChain(webLink, 'cali-fw-web', allowed)}
      -A INPUT -j cali-INPUT
      -A cali-INPUT -i veth+ -g cali-wl-to-host
      -A cali-wl-to-host -j cali-from-wl-dispatch
      -A cali-wl-to-host -m comment --comment to-host -j ${action}
      -A cali-from-wl-dispatch -i ${webLink} -g cali-fw-web`;
  }

  it('INPUT: doctor finds nothing wrong where the host action is not Drop', async () => {
    await restore(toHost('', 'ACCEPT'));
    const found = JSON.parse((await agent.cli('doctor', '--json')).stdout) as CheckResult[];
    expect(found.find(({ name }) => name === 'host firewall')).toMatchObject({ status: 'ok' });
  });

  it("INPUT: the pod's own egress policy is asked there, with the destination that the pod dialled", async () => {
    await restore(toHost(`-p tcp -d ${REMOTE[4]} --dport 80`, 'RETURN'));
    expect(await dials(web)).toBe(true);
    expect(await met(`allowed-${webLink}`)).toBeGreaterThan(0);
    expect(await met(`invalid-${webLink}`)).toBe(0); // untracked is neither
    expect(await met(`established-${webLink}`)).toBe(0);
    expect(await met(`denied-${webLink}`)).toBe(0);
  });

  it('INPUT: what that policy does not allow is dropped', async () => {
    await restore(toHost(`-p tcp -d ${REMOTE[4]} --dport 443`, 'RETURN'));
    await isDropped(web, `denied-${webLink}`);
  });

  it('INPUT: with DefaultEndpointToHostAction=Drop nothing intercepted arrives, and doctor says so', async () => {
    await restore(toHost(`-p tcp -d ${REMOTE[4]} --dport 80`, 'DROP'));
    await isDropped(web, 'to-host');
    const found = JSON.parse((await agent.cli('doctor', '--json')).stdout) as CheckResult[];
    expect(found.find(({ name }) => name === 'host firewall')).toMatchObject({
      status: 'fail',
      found: expect.stringContaining('iptables filter cali-wl-to-host'),
      advice: expect.stringContaining('DefaultEndpointToHostAction'),
    });
  });

  it.each([
    { family: 4, command: 'iptables-nft' },
    { family: 6, command: 'ip6tables-nft' },
  ] as const)(
    'raw PREROUTING: the reverse-path check by mark lets intercepted IPv$family packets through, for our table alone',
    async ({ family, command }) => {
      const rules = `*raw
:cali-PREROUTING - [0:0]
-A PREROUTING -j cali-PREROUTING
-A cali-PREROUTING -i veth+ -j MARK --set-xmark 0x40000/0x40000
-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -m rpfilter --validmark --invert -m comment --comment rpf -j DROP
-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -m comment --comment valid -j RETURN
COMMIT
`;
      await runIn(lab.node, `${command}-restore`, ['--noflush'], { input: rules });
      const dialling = async (name: string) =>
        lab.daemon(web.netnsName, `${name}-${family}`, await buildApp(), ['dial', REMOTE[family], '80']);
      const passing = await dialling('rpf');
      await waitFor('the pod to get through', () => passing.log().includes('"ok":true')).finally(() =>
        passing.stop(),
      );
      const from = family === 4 ? `${web.ips[4]}:` : `[${web.ips[6]}]:`;
      const { localPort } = reply({ stdout: passing.log(), stderr: '', code: 0 });
      expect(await proxy.flowFrom(`${from}${localPort}`)).toMatchObject({ workload: 'default/web' });
      expect(await met('valid', command, 'raw')).toBeGreaterThan(0);
      expect(await met('rpf', command, 'raw')).toBe(0);

      // The mark leads back to the node itself: without the table that takes it off meanwhile, the check fails.
      await agent.stop('SIGKILL');
      await runIn(lab.node, 'nft', ['delete', 'table', 'inet', 'nodesentry']);
      const failing = await dialling('rpf-without');
      await waitFor('a drop', async () => (await met('rpf', command, 'raw')) > 0).finally(() =>
        failing.stop(),
      );
      expect(failing.log()).not.toContain('"ok":true');
      await agent.start();
      await agent.reaches('web', 'INTERCEPTED');
      await agent.adopted(2);
    },
  );
});

describe('programs of others at our hook', () => {
  const cleanup = new Cleanup();
  afterEach(() => cleanup.run());

  function onNode<T>(body: () => T): T {
    const fd = openNamespace(`/run/netns/${lab.node}`);
    try {
      return withNetns(fd, body);
    } finally {
      closeFd(fd);
    }
  }

  function fixture(): BpfObject {
    const object = BpfObject.open(FIXTURE);
    cleanup.add('object', () => object.close());
    object.load();
    return object;
  }

  function load(name: string, index: number): { link: BpfLink; seen: () => number; id: number } {
    const object = fixture();
    const [program, map] = [object.program(name), object.map('seen')];
    cleanup.add('program', () => program.close());
    cleanup.add('map', () => map.close());
    const link = onNode(() => attachTcx(program, index, 'ingress'));
    cleanup.add('link', () => link.close());
    const seen = () => Number(map.get(Buffer.alloc(4))?.readBigUInt64LE() ?? 0n);
    return { link, seen, id: program.id };
  }

  function namesAt(index: number): string[] {
    const entries: TcxEntry[] = onNode(() => queryTcx(index, 'ingress'));
    return entries.map(({ programId }) => programInfo(programId)?.name ?? '');
  }

  it('one before ours that passes: both run, in their order, and taking ours off leaves theirs', async () => {
    let theirs: ReturnType<typeof load> | undefined;
    const pod = await intercepted('looked-on', async (starting) => {
      theirs = load('look_on', await hostIndexOf(starting.netnsName));
    });
    const index = await hostIndexOf(pod.netnsName);
    expect(namesAt(index)).toEqual(['look_on', 'pod_egress']);
    const before = theirs?.seen() ?? 0;
    expect(await dials(pod)).toBe(true);
    expect(theirs?.seen()).toBeGreaterThan(before);
    expect((await agent.packets(pod.name)).FLOW_STARTED).toBe(1);

    withdraw(pod);
    await waitFor('ours to be taken off', () => !namesAt(index).includes('pod_egress'));
    expect(namesAt(index)).toEqual(['look_on']);
  });

  it.each(['swallow', 'divert'])(
    'one before ours that takes packets away (%s): DEGRADED, until it is gone',
    async (program) => {
      let theirs: ReturnType<typeof load> | undefined;
      const name = `behind-${program}`;
      const pod = await enrolledPod(name, async (starting) => {
        theirs = load('look_on', await hostIndexOf(starting.netnsName));
      });
      await agent.reaches(name, 'INTERCEPTED');
      const bad = fixture().program(program);
      cleanup.add('program', () => bad.close());
      theirs?.link.update(bad); // in its place, before ours
      const startedMs = performance.now();
      const { interception } = await agent.reaches(name, 'DEGRADED');
      expect(performance.now() - startedMs).toBeLessThan(15_000);
      expect(interception.reason).toContain('do not reach our program');
      expect(namesAt(await hostIndexOf(pod.netnsName))).toEqual([program, 'pod_egress']);

      theirs?.link.detach();
      await agent.reaches(name, 'INTERCEPTED');
      expect(await dials(pod)).toBe(true);
    },
  );

  it("a clsact filter of theirs: each survives the other's removal", async () => {
    const pod = await intercepted('filtered');
    const link = await hostLinkOf(lab, pod.netnsName);
    const tc = (...words: readonly string[]) => runIn(lab.node, 'tc', words);
    await tc('qdisc', 'add', 'dev', link, 'clsact');
    await tc('filter', 'add', 'dev', link, 'ingress', 'pref', '1', 'bpf', 'da', 'obj', FIXTURE, 'sec', 'tc');
    expect(await dials(pod)).toBe(true);
    await tc('filter', 'del', 'dev', link, 'ingress', 'pref', '1');
    expect(namesAt(await hostIndexOf(pod.netnsName))).toEqual(['pod_egress']);
    expect(await dials(pod)).toBe(true);

    await tc('filter', 'add', 'dev', link, 'ingress', 'pref', '1', 'bpf', 'da', 'obj', FIXTURE, 'sec', 'tc');
    withdraw(pod);
    await waitFor('ours to be taken off', async () => namesAt(await hostIndexOf(pod.netnsName)).length === 0);
    expect(await tc('filter', 'show', 'dev', link, 'ingress')).toContain('pref 1');
  });

  it('cleanup leaves their iptables rules, their program and their filter, and takes only ours', async () => {
    let theirs: ReturnType<typeof load> | undefined;
    const pod = await intercepted('cleaned-up', async (starting) => {
      theirs = load('look_on', await hostIndexOf(starting.netnsName));
    });
    const [index, link] = [await hostIndexOf(pod.netnsName), await hostLinkOf(lab, pod.netnsName)];
    const tc = (...words: readonly string[]) => runIn(lab.node, 'tc', words);
    await tc('qdisc', 'add', 'dev', link, 'clsact');
    await tc('filter', 'add', 'dev', link, 'ingress', 'pref', '1', 'bpf', 'da', 'obj', FIXTURE, 'sec', 'tc');
    for (const command of ['iptables-nft', 'ip6tables-nft']) {
      for (const table of ['filter', 'raw']) {
        const input = `*${table}\n:cali-theirs - [0:0]\n-A OUTPUT -j cali-theirs\n-A cali-theirs -m mark --mark 0x40/0x40 -j RETURN\nCOMMIT\n`;
        await runIn(lab.node, `${command}-restore`, ['--noflush'], { input });
      }
    }
    const state = async () => ({
      iptables: await iptables(),
      filters: await tc('filter', 'show', 'dev', link, 'ingress'),
    });
    const before = await state();
    expect(before.iptables.match(/-A cali-theirs /g)).toHaveLength(4);
    expect(before.filters).toContain('pref 1');
    expect(namesAt(index)).toEqual(['look_on', 'pod_egress']);

    await agent.stop();
    expect(await agent.cli('cleanup')).toMatchObject({ code: 0, stderr: '' });
    expect(await state()).toEqual(before);
    expect(namesAt(index)).toEqual(['look_on']);
    expect(await runIn(lab.node, 'nft', ['list', 'tables'])).not.toContain('nodesentry');
    const seen = theirs?.seen() ?? 0;
    // Straight through: the server sees the pod itself.
    const dialled = reply(await pod.app(['dial', REMOTE[4], '80']));
    expect(dialled).toMatchObject({ ok: true, server: { peer: `${pod.ips[4]}:${dialled.localPort}` } });
    expect(theirs?.seen()).toBeGreaterThan(seen);
    await flushIptables();
  });
});
