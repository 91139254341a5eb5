/**
 * A pod that does all it can to get a TCP byte past its proxy: root inside, with CAP_NET_ADMIN and CAP_NET_RAW. The judge
 * is a capture at the other end of the node's uplink. What is not TCP passes by design: a datagram at the end of each
 * attack shows that the way is open, and that the capture has seen all that came before it.
 */

import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { ipToNetworkBytes } from '../../src/net/ip.js';
import { type FrameOptions, frame, PROTOCOL, TCP } from '../bpf/packets.js';
import { Capture } from '../lab/capture.js';
import { createNetwork } from '../lab/cni.js';
import { runIn, script, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { type Lab, REMOTE } from '../lab/lab.js';
import { hostLinkOf, type PlainPod, runPlainPod } from '../lab/plain.js';
import { type LabPod, reply } from '../lab/pod.js';
import type { TestAgent, TestProxy } from './agent.js';
import { useScene } from './scene.js';

const FAMILIES = [4, 6] as const;
type Family = (typeof FAMILIES)[number];
const TOPOLOGIES = ['ptp', 'bridge'] as const;
type Topology = (typeof TOPOLOGIES)[number];
/** Of the colluding server, where datagrams go. */
const DATAGRAM_PORT = 9;
/** Where the pods are servers themselves. */
const SERVED = 8080;
const DEFAULT_INSTANCE = { name: 'default', outbound: ['127.0.0.1:15001', '[::1]:15001'] };

const scene = useScene({
  agent: { sources: { cni: {} }, interception: { enrol: 'all' } },
  proxy: ['--allow-unidentified'],
});

let lab: Lab;
let agent: TestAgent;
let proxy: TestProxy;
let uplink: Capture;
let serial = 0;
const attackers = {} as Record<Topology, PlainPod>;
const macs = new Map<PlainPod, { pod: Buffer; node: Buffer }>();
/** Enrolled when it was running already. */
let late: PlainPod;
/** The same, in a gVisor sandbox. */
let sandboxed: LabPod;
let remoteMac: Buffer;

beforeAll(async () => {
  ({ lab, agent, proxy } = scene);
  uplink = await Capture.start(lab, lab.remote, 'eth0');
  remoteMac = await macOf(lab.remote, 'eth0');
  for (const topology of TOPOLOGIES) {
    attackers[topology] = await attacker(topology, `on-${topology}`);
    macs.set(attackers[topology], await macsOf(topology, attackers[topology]));
  }
  late = await attacker('ptp', 'late', false);
  scene.describe(late);
  sandboxed = await scene.add({ name: 'sandboxed', runtime: 'runsc' });
  await agent.reaches('late', 'INTERCEPTED');
  await agent.reaches('sandboxed', 'INTERCEPTED');
  macs.set(late, await macsOf('ptp', late));
});

const networks = new Map<string, ReturnType<typeof createNetwork>>();

/** `chained`: enrolled by the CNI plugin, before anything runs in it. */
async function attacker(topology: Topology, name: string, chained = true): Promise<PlainPod> {
  const key = `${topology} ${chained}`;
  const socket = join(agent.runDir, 'cni.sock');
  const network =
    networks.get(key) ??
    createNetwork(lab, topology, chained ? { socket } : undefined, chained ? '-chained' : '-plain');
  networks.set(key, network);
  const pod = await runPlainPod(lab, network, name);
  if (chained) {
    await agent.reaches(name, 'INTERCEPTED');
  }
  return pod;
}

async function macOf(netns: string, link: string): Promise<Buffer> {
  const [found] = JSON.parse(await runIn(netns, 'ip', ['-j', 'link', 'show', 'dev', link])) as {
    address: string;
  }[];
  return Buffer.from((found?.address ?? '').replaceAll(':', ''), 'hex');
}

async function macsOf(topology: Topology, pod: PlainPod): Promise<{ pod: Buffer; node: Buffer }> {
  const link =
    topology === 'ptp' ? await hostLinkOf(lab, pod.netnsName) : networks.get('bridge true')?.bridge;
  return { pod: await macOf(pod.netnsName, 'eth0'), node: await macOf(lab.node, link ?? '') };
}

/** Eight bytes that no other attack has, and no other traffic. */
function newMarker(): Buffer {
  serial += 1;
  return Buffer.from(`ESC${String(serial).padStart(5, '0')}`);
}

/** Frames with the marker in them that reached the other end of the uplink. */
function seen(marker: Buffer): Buffer[] {
  return uplink.frames().filter((captured) => captured.includes(marker));
}

/** Sends these from the pod, then a datagram; resolves once that has been captured. */
async function send(pod: PlainPod, frames: readonly Buffer[]): Promise<void> {
  const barrier = newMarker();
  const last = addressed(pod, {
    src: pod.ips[4],
    dst: REMOTE[4],
    protocol: PROTOCOL.UDP,
    dport: DATAGRAM_PORT,
    payload: barrier,
  });
  const input = [...frames, last].map((bytes) => bytes.toString('hex')).join('\n');
  const { stdout } = await tryRun(
    'nsenter',
    [`--net=${pod.netns}`, '--', await buildApp(), 'frames', 'eth0'],
    { input: `${input}\n` },
  );
  expect(JSON.parse(stdout)).toMatchObject({ ok: true, sent: frames.length + 1 });
  await uplink.sees(barrier);
}

/** From the pod's MAC to the node's. `who`: the attacker on such a network, or any pod. */
function addressed(who: Topology | PlainPod, options: FrameOptions): Buffer {
  const bytes = frame(options);
  const from = macs.get(typeof who === 'string' ? attackers[who] : who);
  from?.node.copy(bytes, 0);
  from?.pod.copy(bytes, 6);
  return bytes;
}

const payloadOf = (marker: Buffer) => Buffer.concat([marker, marker, marker, marker]);

interface Attack {
  readonly name: string;
  readonly families?: readonly Family[];
  readonly frames: (base: FrameOptions, family: Family, topology: Topology) => Buffer[];
}

const extension = (length: number) => {
  const bytes = Buffer.alloc(length);
  bytes[1] = length / 8 - 1;
  return bytes;
};
const routing = (type: number, left: number) => {
  const bytes = extension(24);
  bytes[2] = type;
  bytes[3] = left;
  return bytes;
};
/** Offset in bytes, and whether more follow; of IPv6 as the extension header. */
const fragmentHeader = (offset: number, more: boolean) => {
  const bytes = Buffer.alloc(8);
  bytes.writeUInt16BE(offset | (more ? 1 : 0), 2);
  bytes.writeUInt32BE(0x1234, 4);
  return bytes;
};
/** The TCP segment of a frame, cut. */
const cut = (whole: Buffer, family: Family, from: number, to?: number) => {
  const l4 = 14 + (family === 4 ? 20 : 40);
  return whole.subarray(l4 + from, to === undefined ? undefined : l4 + to);
};

function fragments(
  base: FrameOptions,
  family: Family,
  topology: Topology,
  sizes: readonly number[],
): Buffer[] {
  const whole = addressed(topology, { ...base, flags: TCP.ACK });
  const total = cut(whole, family, 0).length;
  let offset = 0;
  return sizes.map((size, index) => {
    const end = index === sizes.length - 1 ? total : offset + size;
    const body = cut(whole, family, offset, end);
    const more = end < total;
    const made = rawIp(base, family, topology, body, { offset, more });
    offset += size;
    return made;
  });
}

/** An IP packet of protocol 6 around any bytes, as a fragment. */
function rawIp(
  base: FrameOptions,
  family: Family,
  topology: Topology,
  body: Buffer,
  { offset, more }: { offset: number; more: boolean },
): Buffer {
  // The frame of an unknown protocol has 8 bytes of header before its payload: they are taken out again.
  const shell = addressed(topology, {
    src: base.src,
    dst: base.dst,
    protocol: 200,
    payload: body,
    ...(family === 4
      ? { fragment: (offset / 8) | (more ? 0x2000 : 0) }
      : { extensions: [[PROTOCOL.FRAGMENT, fragmentHeader(offset, more)] as const] }),
  });
  const l4 = 14 + (family === 4 ? 20 : 48);
  const bytes = Buffer.concat([shell.subarray(0, l4), shell.subarray(l4 + 8)]);
  if (family === 4) {
    bytes.writeUInt16BE(bytes.length - 14, 16);
    bytes[14 + 9] = 6;
    fixChecksum(bytes);
  } else {
    bytes.writeUInt16BE(bytes.length - 54, 18);
    bytes[54] = 6;
  }
  return bytes;
}

/** Of an IPv4 header at 14. */
function fixChecksum(bytes: Buffer): void {
  const length = (bytes.readUInt8(14) & 15) * 4;
  bytes.writeUInt16BE(0, 24);
  let sum = 0;
  for (let at = 14; at < 14 + length; at += 2) {
    sum += bytes.readUInt16BE(at);
  }
  while (sum > 0xffff) {
    sum = (sum & 0xffff) + (sum >>> 16);
  }
  bytes.writeUInt16BE(~sum & 0xffff, 24);
}

const IPV4_OPTIONS: Record<string, Buffer> = {
  nothing: Buffer.from('01010101', 'hex'),
  'loose source routing': Buffer.from('0183070408080808', 'hex'),
  'strict source routing': Buffer.from('0189070408080808', 'hex'),
  'record route': Buffer.from('0107070400000000', 'hex'),
  'router alert': Buffer.from('94040000', 'hex'),
};

const ATTACKS: readonly Attack[] = [
  {
    name: 'every combination of flags, without a SYN before it',
    frames: (base, _family, topology) =>
      Array.from({ length: 256 }, (_, flags) =>
        addressed(topology, { ...base, flags, sport: 2000 + flags, sequence: 1, acknowledgement: 1 }),
      ),
  },
  {
    name: 'data in the SYN, as TCP Fast Open has it',
    frames: (base, _family, topology) => [
      addressed(topology, { ...base, flags: TCP.SYN }),
      addressed(topology, {
        ...base,
        flags: TCP.SYN,
        sport: 41000,
        tcpOptions: Buffer.from('220a0102030405060708'.padEnd(24, '01'), 'hex'),
      }),
    ],
  },
  {
    name: 'fragments: whole, tiny, in the middle, overlapping, the last one first',
    frames: (base, family, topology) => {
      const plain = fragments(base, family, topology, [24, 16]);
      const tiny = fragments({ ...base, sport: 42000 }, family, topology, [8, 8, 8, 8]);
      const body = cut(addressed(topology, { ...base, flags: TCP.ACK, sport: 43000 }), family, 0);
      const overlapping = [
        rawIp(base, family, topology, body.subarray(0, 24), { offset: 0, more: true }),
        rawIp(base, family, topology, body.subarray(8), { offset: 8, more: false }),
        rawIp(base, family, topology, body, { offset: 0, more: false }),
        rawIp(base, family, topology, body, { offset: 65_000 - (65_000 % 8), more: false }),
      ];
      return [...plain, ...[...plain].reverse(), ...tiny, ...overlapping];
    },
  },
  {
    name: 'IPv4 options',
    families: [4],
    frames: (base, _family, topology) =>
      Object.values(IPV4_OPTIONS).map((ipOptions, n) =>
        addressed(topology, { ...base, flags: TCP.ACK, sport: 44000 + n, ipOptions }),
      ),
  },
  {
    name: 'chains of IPv6 extension headers, source routing, authentication',
    families: [6],
    frames: (base, _family, topology) => {
      const hop = [PROTOCOL.HOP_BY_HOP, extension(8)] as const;
      const destination = [PROTOCOL.DESTINATION, extension(16)] as const;
      const chains: (readonly (readonly [number, Buffer])[])[] = [
        [hop],
        [hop, destination],
        [[PROTOCOL.DESTINATION, extension(1024)]],
        [hop, ...Array(7).fill(destination)],
        [hop, ...Array(8).fill(destination)],
        [hop, ...Array(20).fill(destination)],
        ...[0, 1].flatMap((left) =>
          [0, 2, 3, 4].map((type) => [[PROTOCOL.ROUTING, routing(type, left)] as const]),
        ),
        [[PROTOCOL.AH, Buffer.from('000400000000000100000001000000000000000000000000', 'hex')]],
      ];
      return chains.flatMap((extensions, n) =>
        [TCP.SYN, TCP.ACK].map((flags) =>
          addressed(topology, { ...base, flags, sport: 45000 + n, extensions }),
        ),
      );
    },
  },
  {
    name: 'lengths that do not fit, and a jumbogram',
    frames: (base, family, topology) => {
      const length = family === 4 ? 16 : 18;
      const wrong = [0, 1, 19, 20, 39, 41, 60, 1500, 65_535].map((value, n) => {
        const bytes = addressed(topology, { ...base, flags: TCP.ACK, sport: 46000 + n });
        bytes.writeUInt16BE(value, length);
        if (family === 4) {
          fixChecksum(bytes);
        }
        return bytes;
      });
      const headers = [0x44, 0x40, 0x4f, 0x55, 0x65, 0x05].map((first) => {
        const bytes = addressed(topology, { ...base, flags: TCP.ACK });
        bytes[14] = first;
        return bytes;
      });
      const offsets = [0x00, 0x40, 0xf0].map((value) =>
        addressed(topology, {
          ...base,
          flags: TCP.ACK,
          patch: (bytes, { l4 }) => void bytes.writeUInt8(value, l4 + 12),
        }),
      );
      const jumbo = Buffer.from('0000c20400010000', 'hex');
      return [
        ...wrong,
        ...headers,
        ...offsets,
        ...(family === 6
          ? [addressed(topology, { ...base, flags: TCP.ACK, extensions: [[PROTOCOL.HOP_BY_HOP, jumbo]] })]
          : []),
      ];
    },
  },
  {
    name: 'VLAN tags, one in the other too',
    frames: (base, _family, topology) =>
      [[0], [1], [5], [0, 0], [1, 5], [5, 0], [0, 7, 9]].flatMap((vlans) =>
        [TCP.SYN, TCP.ACK].map((flags) => addressed(topology, { ...base, flags, vlans })),
      ),
  },
  {
    name: 'frames that are called something else than they are',
    frames: (base, family, topology) => {
      const inner = addressed(topology, { ...base, flags: TCP.ACK }).subarray(14);
      const macsOnly = addressed(topology, base).subarray(0, 12);
      const swapped = Buffer.from(family === 4 ? '86dd' : '0800', 'hex');
      // IEEE 802.3 with a SNAP header, as IP over other networks once had it.
      const snap = Buffer.concat([
        Buffer.from([(inner.length + 8) >> 8, (inner.length + 8) & 0xff]),
        Buffer.from(`aaaa03000000${family === 4 ? '0800' : '86dd'}`, 'hex'),
      ]);
      return [swapped, snap].map((type) => Buffer.concat([macsOnly, type, inner]));
    },
  },
  {
    name: "somebody else's address: a neighbour's, the node's, the server's, none",
    frames: (base, family, topology) => {
      const gateway = attackers[topology].gateway[family];
      const others =
        family === 4 ? ['0.0.0.0', '127.0.0.1', '10.199.0.1'] : ['::', '::1', 'fd00:199::1', 'fe80::1'];
      const all = [
        late.ips[family],
        attackers[topology === 'ptp' ? 'bridge' : 'ptp'].ips[family],
        REMOTE[family],
      ];
      return [gateway, ...others, ...all].flatMap((src) =>
        [TCP.SYN, TCP.ACK, TCP.SYN | TCP.ACK].map((flags) => addressed(topology, { ...base, src, flags })),
      );
    },
  },
  {
    name: 'other MAC addresses: a second one of its own, everybody’s, the server’s itself',
    frames: (base, _family, topology) =>
      ['020000000077', 'ffffffffffff', '333300000001', remoteMac.toString('hex')].flatMap((mac) =>
        [TCP.SYN, TCP.ACK].flatMap((flags) => {
          const to = addressed(topology, { ...base, flags, sport: 47000 });
          Buffer.from(mac, 'hex').copy(to, 0);
          const from = addressed(topology, { ...base, flags, sport: 47001 });
          Buffer.from(mac, 'hex').copy(from, 6);
          return [to, from];
        }),
      ),
  },
];

describe.each(TOPOLOGIES)('a pod on a %s network, by frames of its own making', (topology) => {
  const cases = ATTACKS.flatMap(({ name, families = FAMILIES, frames }) =>
    families.map((family) => ({ name, family, frames })),
  );

  it.each(cases)('IPv$family: $name', async ({ family, frames }) => {
    const pod = attackers[topology];
    const marker = newMarker();
    const base = { src: pod.ips[family], dst: REMOTE[family], payload: payloadOf(marker), dport: 80 };
    await send(pod, frames(base, family, topology));
    expect(seen(marker)).toEqual([]);
  });

  it("the node's own listeners do not hear of its loopback addresses", async () => {
    const pod = attackers[topology];
    await script(lab.node, 'sysctl -qw net.ipv4.conf.all.route_localnet=1');
    const before = (await agent.packets(pod.name)).LOOPBACK ?? 0;
    const listening = lab.daemon(lab.node, `secret-${topology}`, 'socat', [
      'TCP-LISTEN:10250,bind=127.0.0.1,fork,reuseaddr',
      'SYSTEM:echo heard',
    ]);
    await waitFor('the listener', async () =>
      (await runIn(lab.node, 'ss', ['-Hltn', 'sport = :10250'])).includes('10250'),
    );
    await send(pod, [
      addressed(topology, { src: pod.ips[4], dst: '127.0.0.1', dport: 10250, flags: TCP.SYN }),
      addressed(topology, { src: pod.ips[6], dst: '::1', dport: 10250, flags: TCP.SYN }),
    ]);
    expect((await agent.packets(pod.name)).LOOPBACK).toBe(before + 2);
    await listening.stop();
    await script(lab.node, 'sysctl -qw net.ipv4.conf.all.route_localnet=0');
  });
});

describe.each(TOPOLOGIES)('a pod on a %s network, by sockets', (topology) => {
  it('answers whoever dials it: that is not its own connection', async () => {
    const pod = attackers[topology];
    const words = [`TCP-LISTEN:${SERVED},fork,reuseaddr`, 'SYSTEM:echo hello'];
    lab.daemon(pod.netnsName, `server-${topology}`, 'socat', words);
    const dialled = async () =>
      (
        await tryRun('nsenter', [
          `--net=/run/netns/${lab.remote}`,
          'socat',
          '-u',
          '-T2',
          `TCP:${pod.ips[4]}:${SERVED}`,
          '-',
        ])
      ).stdout;
    await waitFor('an answer', async () => (await dialled()) === 'hello\n');
    expect((await agent.packets(pod.name)).LEFT_TO_CONNTRACK).toBeGreaterThan(2);
  });

  /** Whoever the server took it for: the node's own address where it came by the proxy. */
  async function dial(pod: PlainPod, family: Family): Promise<string | undefined> {
    const words = ['--kill-after=1', '3', await buildApp(), 'dial', REMOTE[family], '80'];
    const output = await tryRun('nsenter', [`--net=${pod.netns}`, 'timeout', ...words]);
    const dialled = output.stdout === '' ? { ok: false } : reply(output);
    return dialled.ok === true ? String((dialled.server as { peer: string }).peer) : undefined;
  }

  /** It came by the proxy, or nowhere. */
  function expectCaught(peer: string | undefined): void {
    expect(peer === undefined || peer.startsWith('10.199.0.1:'), peer).toBe(true);
  }

  it('eth0 made a port of a bridge of its own, the address moved', async () => {
    const pod = await attacker(topology, `bridging-${topology}`);
    const marker = pod.ips[4];
    await script(
      pod.netnsName,
      `ip link add br0 type bridge
       ip link set br0 address ${(await macOf(pod.netnsName, 'eth0')).toString('hex').replace(/(..)(?=.)/g, '$1:')}
       ip link set eth0 master br0
       ip addr flush dev eth0
       ip link set br0 up
       ip addr add ${pod.ips[4]}/32 dev br0
       ip route add ${pod.gateway[4]} dev br0
       ip route add default via ${pod.gateway[4]}`,
    );
    expectCaught(await dial(pod, 4));
    expect(tcpOf(marker)).toEqual([]);
  });

  it('a macvlan on eth0, with the address of the pod and with another', async () => {
    const pod = await attacker(topology, `macvlan-${topology}`);
    await script(
      pod.netnsName,
      `ip link add sub0 link eth0 type macvlan mode bridge
       ip addr del ${pod.ips[4]}/20 dev eth0
       ip link set sub0 up
       ip addr add ${pod.ips[4]}/32 dev sub0
       ip addr add 10.66.99.99/32 dev sub0
       ip route add ${pod.gateway[4]} dev sub0
       ip route add default via ${pod.gateway[4]} dev sub0 src ${pod.ips[4]}`,
    );
    expectCaught(await dial(pod, 4));
    await script(pod.netnsName, `ip route replace default via ${pod.gateway[4]} dev sub0 src 10.66.99.99`);
    expect(await dial(pod, 4)).toBeUndefined();
    expect([...tcpOf(pod.ips[4]), ...tcpOf('10.66.99.99')]).toEqual([]);
  });

  it("addresses that it gives itself: a free one, a neighbour's", async () => {
    const pod = await attacker(topology, `naming-${topology}`);
    for (const own of ['10.66.88.88', attackers[topology].ips[4]]) {
      await script(
        pod.netnsName,
        `ip addr add ${own}/32 dev eth0
         ip route replace ${REMOTE[4]}/32 via ${pod.gateway[4]} dev eth0 src ${own}`,
      );
      expect(await dial(pod, 4)).toBeUndefined();
      expect(tcpOf(own, SERVED)).toEqual([]);
      await script(pod.netnsName, `ip addr del ${own}/32 dev eth0`);
    }
  });

  it('a route and a neighbour entry straight to the server', async () => {
    const pod = await attacker(topology, `straight-${topology}`);
    const mac = remoteMac.toString('hex').replace(/(..)(?=.)/g, '$1:');
    await script(
      pod.netnsName,
      `ip route replace ${REMOTE[4]}/32 dev eth0 src ${pod.ips[4]}
       ip neigh replace ${REMOTE[4]} lladdr ${mac} dev eth0`,
    );
    expectCaught(await dial(pod, 4));
    expect(tcpOf(pod.ips[4], SERVED)).toEqual([]);
  });

  it('dialling again and again from one port, whose last connection is in TIME_WAIT', async () => {
    const pod = attackers[topology];
    const again = reply(await pod.app(['reuse', REMOTE[4], '80', '45678', '5'], 30_000));
    expect(again.ok).toBe(true);
    expect(tcpOf(pod.ips[4], SERVED)).toEqual([]);
  });
});

describe('a pod in a gVisor sandbox', () => {
  it.each(FAMILIES)("IPv%i: SYNs from a neighbour's address, made by hand and by sockets", async (family) => {
    const neighbour = attackers.ptp.ips[family];
    const before = tcpOf(neighbour, SERVED).length;
    await sandboxed.app(['spoof', neighbour, REMOTE[family], '80', '20'], 60_000);
    await waitFor(
      'them to be counted',
      async () => ((await agent.packets('sandboxed')).SPOOFED_SOURCE ?? 0) > 0,
    );
    expect(tcpOf(neighbour, SERVED)).toHaveLength(before);
  });

  it('dialling again and again from one port', async () => {
    expect(reply(await sandboxed.app(['reuse', REMOTE[4], '80', '45678', '5'], 60_000)).ok).toBe(true);
    expect(tcpOf(sandboxed.ips[4])).toEqual([]);
  });
});

describe('while everything changes around it', () => {
  /** A segment of a connection that the pod had by the proxy, which has none any more. */
  function orphan(pod: PlainPod, sport: number, marker: Buffer): Buffer {
    const tuple = { src: pod.ips[4], dst: REMOTE[4], sport, dport: 80, payload: payloadOf(marker) };
    return addressed(pod, { ...tuple, flags: TCP.ACK | TCP.PSH, sequence: 1, acknowledgement: 1 });
  }

  it('300,000 SYNs take nothing from a neighbour: its connection stays known when the proxy has died', async () => {
    const held = lab.daemon(late.netnsName, 'held', await buildApp(), [
      'hold',
      REMOTE[4],
      '80',
      join(lab.directory, 'go'),
    ]);
    await held.logged(/localPort/);
    const sport = Number(/"localPort":(\d+)/.exec(held.log())?.[1]);
    const flooding = attackers.ptp;
    const syn = addressed('ptp', { src: flooding.ips[4], dst: REMOTE[4], flags: TCP.SYN });
    const { stdout } = await tryRun(
      'nsenter',
      [`--net=${flooding.netns}`, await buildApp(), 'flood', 'eth0', '300000'],
      { input: `${syn.toString('hex')}\n`, timeoutMs: 120_000 },
    );
    expect(JSON.parse(stdout)).toMatchObject({ sent: 300_000 });
    await proxy.stop('SIGKILL');
    const marker = newMarker();
    await send(late, [orphan(late, sport, marker)]);
    expect(seen(marker)).toEqual([]);
    await held.stop();
    await proxy.start('--allow-unidentified');
    await agent.adopted(2);
  });

  const events: Record<string, () => Promise<void>> = {
    'the agent is killed and starts again': async () => {
      await agent.stop('SIGKILL');
      await agent.start();
    },
    'the agent is exchanged for another build, and for one of another layout': async () => {
      for (const build of ['bpf-v1b', 'bpf-v2']) {
        await agent.stop();
        agent.objects = join(import.meta.dirname, '../../build', build);
        await agent.start();
      }
    },
    'the proxy is killed and starts again': async () => {
      await proxy.stop('SIGKILL');
      await delay(300);
      await proxy.start('--allow-unidentified');
      await agent.adopted(2);
    },
    'the configuration changes, and no source delivers': async () => {
      await agent.stop();
      agent.writeConfig({
        sources: { cri: { endpoint: 'unix:///run/nobody-listens-here.sock' } },
        instances: [{ name: 'other', apps: ['other'], outbound: '127.0.0.1:16001' }, DEFAULT_INSTANCE],
      });
      await agent.start({ ready: false });
      await delay(2_500);
    },
  };

  it.each(Object.entries(events))('%s: nothing gets out', async (_name, event) => {
    const marker = newMarker();
    let over = false;
    const attack = async (pod: PlainPod) => {
      while (!over) {
        const connects = ['connects', REMOTE[4], '80', '20', '1000'];
        await tryRun('nsenter', [`--net=${pod.netns}`, 'timeout', '2', await buildApp(), ...connects]);
        await send(pod, [orphan(pod, 50_000 + Math.floor(Math.random() * 10_000), marker)]);
      }
    };
    const before = new Set(uplink.frames().map(String));
    const inSandbox = async () => {
      while (!over) {
        await sandboxed.app(['connects', REMOTE[4], '80', '3', '1000'], 120_000);
      }
    };
    const attacking = [...TOPOLOGIES.map((topology) => attack(attackers[topology])), inSandbox()];
    await event();
    await delay(500);
    over = true;
    await Promise.all(attacking);
    expect(seen(marker)).toEqual([]);
    for (const ip of [...TOPOLOGIES.map((topology) => attackers[topology].ips[4]), sandboxed.ips[4]]) {
      expect(tcpOf(ip, SERVED).filter((out) => !before.has(String(out)))).toEqual([]);
    }
  });
});

/** Frames on the uplink that are TCP from this address, but those from a port on which the pod was dialled. */
function tcpOf(ip: string, dialledAt = 0): Buffer[] {
  const address = Buffer.from(ipToNetworkBytes(ip));
  return uplink.frames().filter((captured) => {
    const isIpv4 = captured.readUInt16BE(12) === 0x0800 && captured.readUInt8(23) === 6;
    const from = captured.subarray(26, 30);
    const port = captured.length < 36 ? 0 : captured.readUInt16BE(34);
    return isIpv4 && from.equals(address) && (dialledAt === 0 || port !== dialledAt);
  });
}
