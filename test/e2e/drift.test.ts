/**
 * Everything that the agent owns in the kernel, taken away or changed behind its back while traffic flows: it has to be
 * back within two seconds, be reported, and no flow that has a socket may fail: what stands in the way of its packets
 * holds it up until then, all else it may not notice.
 */

import { readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { CLSACT } from '../../src/kernel/clsact.js';
import {
  attachClsact,
  BpfLink,
  BpfMap,
  BpfObject,
  detachClsact,
  tcxSupported,
} from '../../src/native/bpf.js';
import { closeFd } from '../../src/native/descriptors.js';
import { openNamespace, withNetns } from '../../src/native/namespaces.js';
import { attachedOn } from '../lab/attached.js';
import { run, runIn, waitFor } from '../lab/exec.js';
import type { Lab } from '../lab/lab.js';
import { Load, Pauses } from '../lab/load.js';
import { patient } from '../lab/patience.js';
import type { LabPod } from '../lab/pod.js';
import type { TestAgent } from './agent.js';
import { useScene } from './scene.js';

const REPAIR_MS = patient(2_000);
/** Packets that were lost until then come again 200, 600, 1,400 ms and 3 s after the first. */
const HELD_UP_MS = patient(3_000);

const scene = useScene({
  pods: [
    { name: 'routed', runtime: 'runc' },
    { name: 'bridged', runtime: 'runc', topology: 'bridge' },
  ],
  cri: { topology: 'ptp' },
  // As WireGuard and some clouds set it: the pods' interfaces then need a sysctl of ours.
  prepare: ({ lab }) => runIn(lab.node, 'sysctl', ['-qw', 'net.ipv4.conf.all.src_valid_mark=1']),
});

let lab: Lab;
let agent: TestAgent;
let routed: LabPod;
let bridged: LabPod;
/** Where packets of the pods enter the stack: a veth, and the bridge. */
let entrances: readonly [string, string];
let indexes: { readonly routed: number; readonly bridged: number };
let flowing: Load;
let pauses: Pauses;
/** What the kernel holds when everything is as it should be. */
let sound: string;

beforeAll(async () => {
  ({ lab, agent } = scene);
  [routed, bridged] = [scene.pod('routed'), scene.pod('bridged')];
  entrances = [
    (await agent.workload('routed'))?.interception.interface ?? '',
    scene.network('bridge').bridge,
  ];
  indexes = { routed: await interfaceOf(routed), bridged: await interfaceOf(bridged) };
  sound = await kernelState();
  flowing = await Load.start(
    lab,
    [routed, bridged].flatMap((pod) =>
      ([4, 6] as const).map((family) => ({ pod, kind: 'keepalive' as const, family, everyMs: 5 })),
    ),
  );
  pauses = await Pauses.undisturbed(flowing, async () => {
    for (let n = 0; n < 4; n++) {
      await agent.cli('status');
    }
  });
});

function inNode(...words: readonly string[]): Promise<string> {
  return runIn(lab.node, words[0] ?? '', words.slice(1));
}

function pinned(...names: readonly string[]): string {
  return join(agent.bpffs, 'v1', ...names);
}

/** Ids of links change when they are made anew; everything else has to come back as it was. */
async function kernelState(): Promise<string> {
  const hex = ([key, value]: [Buffer, Buffer]) => `${key.toString('hex')}=${value.toString('hex')}`;
  const maps = ['endpoints', 'sources', 'workloads'].map((name) => {
    const map = BpfMap.openPinned(pinned('maps', name));
    try {
      return map.entries().map(hex).sort();
    } finally {
      map.close();
    }
  });
  const slots = BpfMap.openPinned(pinned('maps', 'listeners'));
  const listening = slots.entries().map(([key]) => key.toString('hex'));
  slots.close();
  const programs = readdirSync(pinned('links')).map((name) => {
    const link = BpfLink.openPinned(pinned('links', name));
    try {
      return `${name} runs ${link.programId}`;
    } finally {
      link.close();
    }
  });
  const net = (await attachedOn(lab)).map(({ linkId, ...rest }) => rest);
  return JSON.stringify(
    {
      maps,
      listening: listening.sort(),
      programs: programs.sort(),
      pins: [...readdirSync(pinned('maps')), ...readdirSync(pinned('programs'))].sort(),
      net,
      rules: [await inNode('ip', 'rule'), await inNode('ip', '-6', 'rule')],
      routes: [
        await inNode('ip', 'route', 'show', 'table', '7340'),
        await inNode('ip', '-6', 'route', 'show', 'table', '7340'),
      ],
      sysctls: await Promise.all(
        entrances.map((name) => inNode('sysctl', `net.ipv4.conf.${name}.accept_local`)),
      ),
      nft: await inNode('nft', '-s', 'list', 'table', 'inet', 'nodesentry'),
    },
    null,
    1,
  );
}

async function stateOrWhyNot(): Promise<string> {
  return kernelState().catch((error: unknown) => String(error));
}

async function repairs(): Promise<number> {
  const counts = Object.values((await agent.client.status()).repairs);
  return counts.reduce((sum, count) => sum + count, 0);
}

async function interfaceOf({ name }: LabPod): Promise<number> {
  return (await agent.workload(name))?.interception.interfaces[0]?.ifindex ?? 0;
}

function editMap(name: string, edit: (map: BpfMap) => void): void {
  const map = BpfMap.openPinned(pinned('maps', name));
  try {
    edit(map);
  } finally {
    map.close();
  }
}

function everyKey(name: string): void {
  editMap(name, (map) => {
    const entries = map.entries();
    expect(entries).not.toEqual([]);
    for (const [key] of entries) {
      map.delete(key);
    }
  });
}

/** Before Linux 6.6 our programs are filters, at a place of their own. */
const HAS_TCX = tcxSupported();

function inNodeNetns<T>(body: () => T): T {
  const netns = openNamespace(`/run/netns/${lab.node}`);
  try {
    return withNetns(netns, body);
  } finally {
    closeFd(netns);
  }
}

/** A program off an interface. */
function takeOff(role: 'egress' | 'steer', ifindex: number): void {
  if (HAS_TCX) {
    detach(`${role}-${ifindex}`);
  } else {
    expect(inNodeNetns(() => detachClsact(ifindex, 'ingress', CLSACT))).toBe(true);
  }
}

function detach(name: string): void {
  const link = BpfLink.openPinned(pinned('links', name));
  link.detach();
  link.close();
}

/** Another program in the place of ours, as `bpftool link update` or `tc filter replace` would put it. */
function exchange(ifindex: number): void {
  const object = BpfObject.open(join(process.cwd(), 'build/bpf-test/probe.bpf.o'));
  object.load();
  const other = object.program('stamp');
  if (HAS_TCX) {
    const link = BpfLink.openPinned(pinned('links', `egress-${ifindex}`));
    link.update(other);
    link.close();
  } else {
    inNodeNetns(() => attachClsact(other, ifindex, 'ingress', CLSACT));
  }
  for (const handle of [other, object]) {
    handle.close();
  }
}

async function bridgeIndex(): Promise<number> {
  const [link] = JSON.parse(await inNode('ip', '-j', 'link', 'show', 'type', 'bridge')) as {
    ifindex: number;
  }[];
  return link?.ifindex ?? 0;
}

interface Damage {
  readonly what: string;
  /** The kind that it is counted under; undefined where the listener's own look puts it right. */
  readonly kind: string | undefined;
  /** It stands in the way of every packet: they wait until it is repaired, and TCP for its next attempt after that. */
  readonly holdsUp?: boolean;
  readonly does: () => Promise<unknown> | unknown;
}

const DAMAGES: readonly Damage[] = [
  {
    what: 'the IPv4 rule deleted',
    kind: 'policy-route',
    holdsUp: true,
    does: () => inNode('ip', 'rule', 'del', 'pref', '90'),
  },
  {
    what: 'the IPv6 rule deleted',
    kind: 'policy-route',
    holdsUp: true,
    does: () => inNode('ip', '-6', 'rule', 'del', 'pref', '90'),
  },
  {
    what: 'the IPv4 route deleted',
    kind: 'policy-route',
    holdsUp: true,
    does: () => inNode('ip', 'route', 'flush', 'table', '7340'),
  },
  {
    what: 'the IPv6 route deleted',
    kind: 'policy-route',
    holdsUp: true,
    does: () => inNode('ip', '-6', 'route', 'flush', 'table', '7340'),
  },
  {
    what: 'a wrong route put into our table',
    kind: 'policy-route',
    holdsUp: true,
    does: () => inNode('ip', 'route', 'add', '10.200.0.0/16', 'via', '10.199.0.2', 'table', '7340'),
  },
  {
    what: 'a blackhole put into our table',
    kind: 'policy-route',
    holdsUp: true,
    does: () => inNode('ip', '-6', 'route', 'add', 'blackhole', 'fd00:200::/32', 'table', '7340'),
  },
  {
    what: 'a second rule under our protocol',
    kind: 'policy-route',
    does: () =>
      inNode('ip', 'rule', 'add', 'pref', '95', 'fwmark', '0x80/0x80', 'lookup', '7340', 'protocol', '73'),
  },
  {
    what: 'the nftables table deleted',
    kind: 'nftables',
    does: () => inNode('nft', 'delete', 'table', 'inet', 'nodesentry'),
  },
  {
    what: 'the addresses of pods flushed',
    kind: 'nftables',
    holdsUp: true,
    does: () => inNode('nft', 'flush', 'set', 'inet', 'nodesentry', 'pods4'),
  },
  {
    what: 'a foreign address among the pods',
    kind: 'nftables',
    does: () => inNode('nft', 'add', 'element', 'inet', 'nodesentry', 'pods6', '{ fd00:dead::1 }'),
  },
  {
    what: 'a rule added to our chain',
    kind: 'nftables',
    does: () =>
      inNode('nft', 'insert', 'rule', 'inet', 'nodesentry', 'prerouting', 'tcp', 'dport', '9', 'drop'),
  },
  {
    what: 'a rule replaced under its own comment',
    kind: 'nftables',
    does: async () => {
      const listing = await inNode('nft', '-a', 'list', 'table', 'inet', 'nodesentry');
      const [, comment = '', handle = ''] =
        /comment ("output replies IPv6[^"]*") # handle (\d+)/.exec(listing) ?? [];
      await inNode(
        'sh',
        '-c',
        `nft 'replace rule inet nodesentry output handle ${handle} counter comment ${comment}'`,
      );
    },
  },
  {
    what: 'the program of a routed pod detached',
    kind: 'attachment',
    does: () => takeOff('egress', indexes.routed),
  },
  ...(HAS_TCX
    ? [
        {
          what: 'the pin of the program of a bridged pod removed',
          kind: 'attachment',
          does: () => rmSync(pinned('links', `egress-${indexes.bridged}`)),
        },
      ]
    : []),
  {
    what: 'another program in the place of ours',
    kind: 'attachment',
    does: () => exchange(indexes.routed),
  },
  {
    what: 'the steering of the bridge detached',
    kind: 'attachment',
    does: async () => takeOff('steer', await bridgeIndex()),
  },
  { what: 'the socket lookup detached', kind: 'socket-lookup', does: () => detach('socket-lookup') },
  { what: 'every endpoint deleted', kind: 'map', does: () => everyKey('endpoints') },
  {
    what: 'an endpoint made another pod’s',
    kind: 'map',
    does: () =>
      editMap('endpoints', (map) => {
        const [entry] = map.entries();
        if (entry !== undefined) {
          const [key, value] = entry;
          value.writeUInt32LE(4711, 0);
          map.set(key, value);
        }
      }),
  },
  { what: 'every source address deleted', kind: 'map', holdsUp: true, does: () => everyKey('sources') },
  {
    what: 'a source address added to a pod',
    kind: 'map',
    does: () =>
      editMap('sources', (map) => {
        const key = Buffer.from(map.entries()[0]?.[0] ?? []);
        key.writeUInt8(99, key.length - 1);
        map.set(key, Buffer.from([1]));
      }),
  },
  {
    what: 'a sysctl of a pod’s interface put back',
    kind: 'sysctl',
    holdsUp: true,
    does: async () => inNode('sysctl', '-qw', `net.ipv4.conf.${entrances[0]}.accept_local=0`),
  },
  { what: 'every workload row deleted', kind: 'map', does: () => everyKey('workloads') },
  { what: 'every listener taken out of the map', kind: undefined, does: () => everyKey('listeners') },
  { what: 'the pin of a map removed', kind: 'pin', does: () => rmSync(pinned('maps/flows')) },
  {
    what: 'the pins of the programs removed',
    kind: 'pin',
    does: () => {
      for (const name of readdirSync(pinned('programs'))) {
        rmSync(pinned('programs', name));
      }
    },
  },
  {
    what: 'another map under the pin of ours',
    kind: 'pin',
    does: () => {
      const object = BpfObject.open(join(process.cwd(), 'build/bpf/intercept.bpf.o'));
      object.load();
      const map = object.map('endpoints');
      // With nothing in between: loading takes its time, and the agent would pin its own again.
      rmSync(pinned('maps/endpoints'));
      map.pin(pinned('maps/endpoints'));
      map.close();
      object.close();
    },
  },
];

/** Of the traffic that goes on all through this file, since the last look: no request failed, none waited longer. */
async function expectUnharmed(what: string, limitMs?: number): Promise<void> {
  pauses.check(what, await flowing.told(), limitMs);
}

/** Does it while the agent is stopped, sees that it shows, and lets the agent go on. Returns when that was. */
async function damage(does: () => unknown): Promise<number> {
  process.kill(agent.pid, 'SIGSTOP');
  try {
    await does();
    expect(await stateOrWhyNot()).not.toBe(sound);
  } finally {
    process.kill(agent.pid, 'SIGCONT');
  }
  return performance.now();
}

async function expectRepaired(sinceMs: number): Promise<void> {
  await waitFor('the repair', async () => (await stateOrWhyNot()) === sound);
  expect(performance.now() - sinceMs).toBeLessThan(REPAIR_MS);
}

async function expectIntercepted(): Promise<void> {
  for (const pod of [routed, bridged]) {
    await agent.reaches(pod.name, 'INTERCEPTED');
    await scene.expectAtProxy(pod);
  }
}

describe('taken away or changed, one at a time', () => {
  it.each(DAMAGES)(
    '$what: back within two seconds, told, no open flow fails',
    async ({ kind, does, what, holdsUp }) => {
      const logged = agent.log().length;
      await does();
      await expectRepaired(performance.now());
      await expectIntercepted();
      await expectUnharmed(what, holdsUp ? HELD_UP_MS : undefined);
      if (kind !== undefined) {
        await waitFor('it to be told', () =>
          new RegExp(`"kind":"${kind}".*"msg":"repaired"`).test(agent.log().slice(logged)),
        );
      }
    },
  );
});

it('all of it at once, under traffic', async () => {
  const before = await repairs();
  const failed: string[] = [];
  const sinceMs = await damage(async () => {
    for (const { does, what } of DAMAGES) {
      await (async () => does())().catch(() => failed.push(what));
    }
  });
  // Each of them needs what was taken away before it; a filter is attached to an interface, whether ours is there or not.
  expect(failed).toEqual([
    'the addresses of pods flushed',
    'a foreign address among the pods',
    'a rule added to our chain',
    'a rule replaced under its own comment',
    ...(HAS_TCX ? ['another program in the place of ours'] : []),
    'a source address added to a pod',
  ]);
  await expectRepaired(sinceMs);
  expect(await repairs()).toBeGreaterThan(before + 10);
  await expectIntercepted();
  await expectUnharmed('all at once', HELD_UP_MS);
});

/** istio/istio 61182: labels and status say "in the mesh", the redirection is gone, and nothing notices for weeks. */
it('a pod that lost its redirection while nobody looked is intercepted again, and that is told', async () => {
  const before = (await agent.client.status()).repairs;
  const sinceMs = await damage(() => {
    takeOff('egress', indexes.routed);
    everyKey('endpoints');
  });
  await expectRepaired(sinceMs);
  await expectIntercepted();
  const { attachment, map } = (await agent.client.status()).repairs;
  expect(attachment).toBeGreaterThan(before.attachment);
  expect(map).toBeGreaterThan(before.map);
});

it('a rule of somebody else that takes our packets away is told, for every pod, until it goes', async () => {
  await inNode('ip', 'route', 'add', 'default', 'via', '10.199.0.2', 'table', '9999');
  await inNode('ip', 'rule', 'add', 'pref', '80', 'fwmark', '0x40/0x40', 'lookup', '9999');
  try {
    const workload = await agent.reaches('routed', 'DEGRADED');
    expect(workload.interception.reason).toMatch(/not delivered by table 7340.*before priority 90/);
    expect(workload.interception).toMatchObject({ desired: true, programmed: true, verified: false });
    expect((await agent.client.status()).blockers.join()).toContain('not delivered');
  } finally {
    await inNode('ip', 'rule', 'del', 'pref', '80');
    await inNode('ip', 'route', 'flush', 'table', '9999');
  }
  await agent.reaches('routed', 'INTERCEPTED');
});

/** As a reboot leaves it: nothing of ours in the kernel, nothing in /run, and the pods there before the agent. */
async function forgetEverything(): Promise<void> {
  await run('sh', ['-c', `find ${agent.bpffs} -type f -delete; rm -rf ${agent.runDir}/*`]);
  await inNode('nft', 'delete', 'table', 'inet', 'nodesentry');
  for (const family of ['-4', '-6']) {
    await inNode('ip', family, 'rule', 'del', 'pref', '90');
    await inNode('ip', family, 'route', 'flush', 'table', '7340');
  }
  if (!HAS_TCX) {
    for (const name of new Set((await attachedOn(lab)).map((program) => program.interface))) {
      await inNode('tc', 'qdisc', 'del', 'dev', name, 'clsact');
    }
  }
  await waitFor('the programs to be gone', async () => (await attachedOn(lab)).length === 0);
}

/** Ids and generations are new ones. */
async function expectAsSound(): Promise<void> {
  type State = Record<'rules' | 'routes' | 'nft' | 'pins' | 'sysctls' | 'listening', unknown>;
  const [now, then] = [await kernelState(), sound].map((text) => JSON.parse(text) as State);
  for (const part of ['rules', 'routes', 'nft', 'pins', 'sysctls', 'listening'] as const) {
    expect(now?.[part]).toEqual(then?.[part]);
  }
}

/** istio/istio 60882: after a reboot the pods are there before the agent, and stay outside the mesh. */
it('pods that were there before the agent are intercepted, and nothing of an earlier life misleads it', async () => {
  await agent.stop('SIGKILL');
  await forgetEverything();
  // Left behind by an agent of before the reboot: numbers that mean something else by now.
  writeFileSync(
    join(agent.runDir, 'sysctls.json'),
    '[{"interface":"uplink","ifindex":99999,"name":"accept_local","before":"0"}]',
  );
  await agent.start();
  await agent.adopted(2);
  await expectIntercepted();
  await expectAsSound();
});

it('an agent that is up before the runtime ends in the same state', async () => {
  await agent.stop('SIGKILL');
  const containerd = await scene.containerd('ptp');
  await containerd.down();
  await forgetEverything();
  await agent.start({ ready: false });
  expect((await agent.client.status()).blockers).toContain('source cri has not synced');
  await containerd.up();
  await agent.adopted(2);
  await expectIntercepted();
  await expectAsSound();
});
