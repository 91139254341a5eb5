/** What becomes of a packet that a pod is sent: pod_ingress at the pod's interface, inbound_steer at the agent's own. */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import type { EndpointRow, EndpointTables } from '../../src/datapath/endpoints.js';
import { Generations } from '../../src/datapath/generations.js';
import { type Layouts, readLayouts } from '../../src/datapath/layouts.js';
import { slotIndex } from '../../src/datapath/listener-slots.js';
import { u32 } from '../../src/kernel/struct.js';
import { BpfObject, openRingBuffer } from '../../src/native/bpf.js';
import { AF, type Family } from '../../src/net/family.js';
import { ipToBytes } from '../../src/net/ip.js';
import type { PodUid } from '../../src/pods/pod.js';
import { Cleanup, Netns } from '../unit/native-lab.js';
import { type FrameOptions, frame, HOST_MAC, POD_MAC, PROTOCOL, readTcp, TCP } from './packets.js';
import {
  addAddress,
  adopt,
  type Connection,
  connectInside,
  countedBy,
  DROP,
  endedConnection,
  FAR,
  flowKeyOf,
  NEXT,
  POD,
  REDIRECT,
  type Tuple,
  tablesOf,
  testRun,
} from './test-run.js';

const INGRESS = join(process.cwd(), 'build/bpf/ingress.bpf.o');
const STEER = join(process.cwd(), 'build/bpf/inbound-steer.bpf.o');
const MARK = 0x40;
/** An interface that has received the packet. */
const ELSEWHERE = 1;
const UID = 'pod-uid' as PodUid;
const OTHER_ADDRESS = { 4: '10.66.0.4', 6: 'fd00:66::4' } as const;
const LOOPBACK = { 4: '127.0.0.1', 6: '::1' } as const;
const NONCE = 0x12345678;
const LIFECYCLE_PORT = 15021;
const EOPNOTSUPP = 95;

const namespaces = new Cleanup();
const cleanup = new Cleanup();
let node: Netns;
/** The pod's interface, and the one that packets for the proxy go to. */
let ifindex: number;
let steerIndex: number;
let object: BpfObject;
let layouts: Layouts;
let tables: EndpointTables;
const connections = new Map<Family, Connection>();

beforeAll(async () => {
  expect(existsSync(INGRESS) && existsSync(STEER), 'run "make build" first').toBe(true);
  node = namespaces.owned(new Netns());
  ifindex = node.addVeth('pod');
  steerIndex = node.addVeth('steer');
  for (const family of [4, 6] as const) {
    addAddress(node.path, POD[family]);
    addAddress(node.path, FAR[family]);
    connections.set(family, namespaces.owned(await connectInside(node.path, FAR[family], POD[family])));
  }
});

afterAll(() => namespaces.run());

beforeEach(() => {
  object = cleanup.owned(BpfObject.open(INGRESS));
  object.load();
  layouts = readLayouts(object);
  tables = tablesOf(object, layouts);
  pointTo(steerIndex);
});

afterEach(() => cleanup.run());

function pointTo(to: number): void {
  object.map('steering').set(u32(0), layouts.steering.encode({ ifindex: to }));
}

function enrol(
  options: { failureOpen?: boolean; inbound?: boolean; instance?: number; closing?: boolean } = {},
): EndpointRow {
  const row = tables.enrol(UID, ifindex, true);
  tables.write(row, {
    ifindex,
    instance: 0,
    failureOpen: false,
    inbound: true,
    ...options,
    dropOther: false,
    bridgeIndex: 0,
    ips: [POD[4], POD[6]],
  });
  return row;
}

function connectionOf(family: Family): Connection {
  const connection = connections.get(family);
  if (connection === undefined) {
    throw new Error(`there is no connection of IPv${family}`);
  }
  return connection;
}

/** Enrols the pod and adopts an inbound listener for its instance, as the agent does. */
async function ready(options: Parameters<typeof enrol>[0] = {}): Promise<EndpointRow> {
  const row = enrol(options);
  const { port } = connectionOf(6);
  await adopt(object, layouts, node.fd, port, 'inbound', options.instance ?? 0);
  return row;
}

/** As it is sent to the pod: from the host's end to the pod's. */
function toPod(options: FrameOptions): Buffer {
  const bytes = frame(options);
  bytes.set(POD_MAC, 0);
  bytes.set(HOST_MAC, 6);
  return bytes;
}

interface From {
  readonly from?: number;
  readonly mark?: number;
}

/** Runs one frame through pod_ingress and says which counters of what the pod is sent have moved. */
async function send(bytes: Buffer, { from = ELSEWHERE, mark = 0 }: From = {}) {
  const result = testRun(object, 'pod_ingress', node.fd, bytes, { ifindex, ingress_ifindex: from, mark });
  expect(await countedBy(tables, 'EGRESS')).toEqual([]);
  return { ...result, verdicts: await countedBy(tables, 'INGRESS') };
}

function record(tuple: Tuple, { id, generation }: { id: number; generation: number }): void {
  const flow = { started_ns: 1, endpoint: id, generation, ifindex, instance: 0, direction: 1 };
  object.map('flows').set(flowKeyOf(layouts, tuple), layouts.flow.encode(flow));
}

/** What is recorded, but for the time. */
function recorded(): object[] {
  const { flowKey, flow } = layouts;
  const fields = ['endpoint', 'generation', 'ifindex', 'instance', 'direction'] as const;
  return object
    .map('flows')
    .entries()
    .map(([key, value]) => ({
      src: flowKey.bytes(key, 'src').toString('hex'),
      dst: flowKey.bytes(key, 'dst').toString('hex'),
      sport: flowKey.number(key, 'sport'),
      dport: flowKey.number(key, 'dport'),
      ...Object.fromEntries(fields.map((field) => [field, flow.number(value, field)])),
    }));
}

function hexOf(ip: string): string {
  return Buffer.from(ipToBytes(ip)).toString('hex');
}

function canaryKey(family: Family): Buffer {
  return layouts.canaryKey.encode({ ifindex, family: AF[family] });
}

function awaitCanary(family: Family): void {
  object.map('ingress_canaries').set(canaryKey(family), layouts.canary.encode({ nonce: NONCE }));
}

function canaryRow(family: Family): Record<string, number> {
  const value = object.map('ingress_canaries').get(canaryKey(family)) ?? Buffer.alloc(layouts.canary.size);
  const fields = ['answered', 'endpoint', 'generation', 'instance', 'listening'] as const;
  return Object.fromEntries(fields.map((field) => [field, layouts.canary.number(value, field)]));
}

const UNANSWERED = { answered: 0, endpoint: 0, generation: 0, instance: 0, listening: 0 };

describe.each([4, 6] as const)('to a pod, a packet of IPv%i', (family) => {
  const base: FrameOptions = { src: FAR[family], dst: POD[family] };
  const udp: FrameOptions = { ...base, protocol: PROTOCOL.UDP };

  it('passes uncounted where the interface belongs to no endpoint', async () => {
    const sent = await send(toPod(base));
    expect(sent).toMatchObject({ action: NEXT, verdicts: [], mark: 0 });
  });

  it('passes uncounted where the pod is intercepted outbound only', async () => {
    await ready({ inbound: false });
    expect(await send(toPod(base))).toMatchObject({ action: NEXT, verdicts: [], mark: 0 });
    expect(await send(toPod(base), { from: 0 })).toMatchObject({ action: NEXT, verdicts: [] });
    expect(recorded()).toEqual([]);
  });

  it('passes where the node itself has made it, be it a first packet, a later one or a broken one', async () => {
    await ready();
    const { port, clientPort } = connectionOf(family);
    const ofConnection = { ...base, sport: clientPort, dport: port, flags: TCP.ACK };
    const broken = toPod({ ...base, patch: (bytes, { l4 }) => bytes.writeUInt8(0x40, l4 + 12) });
    for (const bytes of [toPod(base), toPod(ofConnection), broken]) {
      expect(await send(bytes, { from: 0 })).toMatchObject({ action: NEXT, mark: 0 });
    }
    expect(await countedBy(tables, 'INGRESS')).toEqual(['FROM_NODE 3']);
    expect(recorded()).toEqual([]);
  });

  it('passes where it is for another address, as a bridge floods it: whole, a fragment, behind a VLAN tag', async () => {
    await ready();
    const flooded = { ...base, dst: OTHER_ADDRESS[family] };
    const fragment: FrameOptions =
      family === 4
        ? { ...flooded, fragment: 0x2000 }
        : { ...flooded, extensions: [[PROTOCOL.FRAGMENT, Buffer.from('0000000100000001', 'hex')]] };
    const later = { ...flooded, flags: TCP.ACK };
    for (const options of [flooded, later, fragment, { ...flooded, vlans: [7] }]) {
      expect(await send(toPod(options))).toMatchObject({ action: NEXT, mark: 0 });
    }
    expect(await countedBy(tables, 'INGRESS')).toEqual(['NOT_OURS 4']);
    expect(recorded()).toEqual([]);
  });

  it('is not the pod’s where only another interface’s pod has the address', async () => {
    await ready();
    const other = tables.enrol('other' as PodUid, steerIndex, true);
    const plan = { ifindex: steerIndex, instance: 0, failureOpen: false, dropOther: false, bridgeIndex: 0 };
    tables.write(other, { ...plan, inbound: true, ips: [OTHER_ADDRESS[family]] });
    const sent = await send(toPod({ ...base, dst: OTHER_ADDRESS[family] }));
    expect(sent).toMatchObject({ action: NEXT, verdicts: ['NOT_OURS 1'] });
  });

  it('passes as UDP, also as a fragment and behind a VLAN tag', async () => {
    await ready();
    const fragment: FrameOptions =
      family === 4
        ? { ...udp, fragment: 0x2000 }
        : { ...udp, extensions: [[PROTOCOL.FRAGMENT, Buffer.from('0000000100000001', 'hex')]] };
    for (const options of [udp, fragment, { ...udp, vlans: [7] }]) {
      expect((await send(toPod(options))).action).toBe(NEXT);
    }
    expect(await countedBy(tables, 'INGRESS')).toEqual(['NOT_TCP 3']);
  });

  it('passes as ARP', async () => {
    await ready();
    const arp = toPod(base);
    arp.writeUInt16BE(0x0806, 12);
    expect(await send(arp)).toMatchObject({ action: NEXT, verdicts: ['NOT_IP 1'] });
  });

  it('is dropped when cut short anywhere in its headers, and with a TCP header shorter than 20 bytes', async () => {
    await ready();
    const whole = toPod(base);
    const shortest = family === 4 ? 34 : 54; // the kernel refuses to run a frame shorter than its IP header
    for (let length = shortest; length < whole.length; length++) {
      expect((await send(Buffer.from(whole.subarray(0, length)))).action, `${length} bytes`).toBe(DROP);
    }
    const short = toPod({ ...base, patch: (bytes, { l4 }) => bytes.writeUInt8(0x40, l4 + 12) });
    expect((await send(short)).action).toBe(DROP);
    expect(await countedBy(tables, 'INGRESS')).toEqual([`MALFORMED ${whole.length - shortest + 1}`]);
  });

  it('is dropped as a fragment of TCP', async () => {
    await ready();
    const fragments: FrameOptions[] =
      family === 4
        ? [0x2000, 0x0010].map((fragment) => ({ ...base, fragment }))
        : ['0000000100000001', '0000001000000001'].map((header) => ({
            ...base,
            extensions: [[PROTOCOL.FRAGMENT, Buffer.from(header, 'hex')]],
          }));
    for (const options of fragments) {
      expect((await send(toPod(options))).action).toBe(DROP);
    }
    expect(await countedBy(tables, 'INGRESS')).toEqual(['FRAGMENT 2']);
  });

  it('is dropped as TCP behind one VLAN tag, two, or more than are looked behind', async () => {
    await ready();
    for (const vlans of [[7], [7, 8], [7, 8, 9]]) {
      expect((await send(toPod({ ...base, vlans }))).action).toBe(DROP);
    }
    expect(await countedBy(tables, 'INGRESS')).toEqual(['VLAN 3']);
  });

  it('is reset in the pod’s name, with a right checksum, when it opens a connection and no listener is there', async () => {
    enrol();
    const options = { tcpOptions: Buffer.from('020405b4', 'hex'), payload: Buffer.from('hello') };
    const result = await send(toPod({ ...base, sequence: 7000, ...options }));
    expect(result).toMatchObject({ action: REDIRECT, verdicts: ['NO_LISTENER_RESET 1'], mark: 0 });
    const reply = readTcp(result.data);
    expect(reply).toMatchObject({
      sport: 80,
      dport: 40000,
      sequence: 0,
      acknowledgement: 7006,
      flags: TCP.RST | TCP.ACK,
    });
    expect(ipToBytes(reply.src)).toEqual(ipToBytes(POD[family]));
    expect(ipToBytes(reply.dst)).toEqual(ipToBytes(FAR[family]));
    expect(reply.toMac.equals(HOST_MAC)).toBe(true);
    expect(result.data.subarray(6, 12).equals(POD_MAC)).toBe(true);
    expect(recorded()).toEqual([]);
  });

  it('passes without a listener under failure policy open, and an older flow of its tuple is forgotten', async () => {
    const row = enrol({ failureOpen: true });
    record({ src: FAR[family], dst: POD[family] }, row);
    expect(await send(toPod(base))).toMatchObject({
      action: NEXT,
      verdicts: ['NO_LISTENER_OPEN 1'],
      mark: 0,
    });
    expect(recorded()).toEqual([]);
  });

  it.each([
    'outbound listener only',
    'listener of another instance only',
    'listener of the other family only',
  ])('is reset where the instance has an %s', async (which) => {
    const { port } = connectionOf(6);
    enrol();
    const [direction, number] = which.includes('outbound')
      ? (['outbound', 0] as const)
      : (['inbound', which.includes('instance') ? 1 : 0] as const);
    await adopt(object, layouts, node.fd, port, direction, number);
    if (which.includes('family')) {
      expect(object.map('listeners').delete(u32(slotIndex(layouts.slots, 0, 'inbound', family)))).toBe(true);
    }
    expect((await send(toPod(base))).verdicts).toEqual(['NO_LISTENER_RESET 1']);
  });

  it('to a pod that is about to end is reset when it opens a connection, and goes on where one is open', async () => {
    const row = await ready({ closing: true });
    expect(await send(toPod(base))).toMatchObject({ action: REDIRECT, verdicts: ['CLOSING 1'], mark: 0 });
    expect(recorded()).toEqual([]);
    const { port, clientPort } = connectionOf(family);
    record({ src: FAR[family], dst: POD[family], sport: clientPort, dport: port }, row);
    const open = toPod({ ...base, sport: clientPort, dport: port, flags: TCP.ACK });
    expect(await send(open)).toMatchObject({ action: REDIRECT, mark: MARK });
    expect(await countedBy(tables, 'INGRESS')).toEqual(['FLOW_PACKET 1', 'CLOSING 1']);
  });

  it('from the node to the port of the agent’s own comes to the agent, and is the pod’s', async () => {
    await ready();
    const ask = toPod({ ...base, dport: LIFECYCLE_PORT });
    expect(await send(ask, { from: 0 })).toMatchObject({ action: NEXT, mark: 0 });
    object.map('lifecycle').set(u32(0), layouts.lifecycle.encode({ instance: 7, port: LIFECYCLE_PORT }));
    expect(await send(ask, { from: 0 })).toMatchObject({ action: NEXT, mark: 0 });
    await adopt(object, layouts, node.fd, connectionOf(6).port, 'inbound', 7);
    expect(await send(ask, { from: 0 })).toMatchObject({ action: REDIRECT, mark: MARK });
    expect(recorded()).toMatchObject([{ instance: 7, dport: LIFECYCLE_PORT, direction: 1, ifindex }]);
    for (const options of [base, { ...base, dst: OTHER_ADDRESS[family], dport: LIFECYCLE_PORT }]) {
      expect(await send(toPod(options), { from: 0 })).toMatchObject({ action: NEXT, mark: 0 });
    }
    expect(await countedBy(tables, 'INGRESS')).toEqual(['FROM_NODE 4', 'LIFECYCLE 1']);
    // Nobody else is to ask, not by way of a proxy either.
    object
      .map('flows')
      .delete(flowKeyOf(layouts, { src: FAR[family], dst: POD[family], dport: LIFECYCLE_PORT }));
    expect(await send(ask)).toMatchObject({ action: REDIRECT, mark: 0 });
    expect(await countedBy(tables, 'INGRESS')).toContain('PROXY_PORT 1');
    expect(recorded()).toEqual([]);
  });

  describe('of an instance with a second generation', () => {
    const SECOND = 9;
    let generations: Generations;

    beforeEach(() => {
      const [rows, counts] = [object.map('generations'), object.map('instance_counts')];
      generations = new Generations({ generations: rows, instance_counts: counts, layouts });
    });

    /** Which instance takes each of so many new flows. */
    async function taken(count: number): Promise<number[]> {
      const instances: number[] = [];
      for (let sport = 1; sport <= count; sport++) {
        await send(toPod({ ...base, sport }));
        const key = flowKeyOf(layouts, { src: FAR[family], dst: POD[family], sport });
        const value = object.map('flows').get(key);
        instances.push(value === undefined ? -1 : layouts.flow.number(value, 'instance'));
      }
      return instances;
    }

    it('goes to the one that serves, by one row, and is counted as its', async () => {
      await ready();
      await adopt(object, layouts, node.fd, connectionOf(6).port, 'inbound', SECOND);
      generations.set(0, { serving: SECOND, resting: false });
      expect(await taken(3)).toEqual([SECOND, SECOND, SECOND]);
      expect(generations.counts(SECOND)).toEqual({ started: 3, reset: 0 });
      generations.set(0, { serving: 0, resting: false });
      expect(await taken(1)).toEqual([0]);
      expect(object.map('generations').entries()).toEqual([]);
    });

    it('goes to a canary in its share, and not where that has no listener', async () => {
      await ready();
      generations.set(0, { serving: 0, canary: { number: SECOND, share: 0.5 }, resting: false });
      expect(new Set(await taken(20))).toEqual(new Set([0]));
      await adopt(object, layouts, node.fd, connectionOf(6).port, 'inbound', SECOND);
      const half = (await taken(400)).filter((instance) => instance === SECOND).length;
      expect(half).toBeGreaterThan(120);
      expect(half).toBeLessThan(280);
      generations.set(0, { serving: 0, canary: { number: SECOND, share: 1 }, resting: true });
      expect(await taken(2)).toEqual([SECOND, SECOND]);
    });

    it('meets the failure policy while it rests, and rows that somebody changed are written again', async () => {
      await ready();
      generations.set(0, { serving: 0, resting: true });
      expect(await send(toPod(base))).toMatchObject({ verdicts: ['NO_LISTENER_RESET 1'] });
      expect(generations.ensure()).toEqual([]);
      object.map('generations').delete(u32(0));
      object.map('generations').set(u32(5), Buffer.alloc(layouts.generation.size));
      expect(generations.ensure()).toEqual(['who serves instance number 0', 'who serves instance number 5']);
      expect(generations.ensure()).toEqual([]);
      expect(await taken(1)).toEqual([-1]);
    });
  });

  it('starts a flow as SYN: marked, recorded as the pod’s inbound one, sent to the agent’s own interface', async () => {
    const row = await ready({ instance: 3 });
    const sent = await send(toPod({ ...base, sport: 40001, dport: 8080 }), { mark: 0x1000 });
    expect(sent).toMatchObject({ action: REDIRECT, verdicts: ['FLOW_STARTED 1'], mark: 0x1000 | MARK });
    expect(recorded()).toEqual([
      {
        src: hexOf(FAR[family]),
        dst: hexOf(POD[family]),
        sport: 40001,
        dport: 8080,
        endpoint: row.id,
        generation: row.generation,
        ifindex,
        instance: 3,
        direction: 1,
      },
    ]);
    expect(await countedBy(tables, 'INGRESS', row.id)).toEqual(['FLOW_STARTED 1']);
  });

  it('starts a flow to the very port that the listener has', async () => {
    await ready();
    const sent = await send(toPod({ ...base, dport: connectionOf(6).port }));
    expect(sent).toMatchObject({ action: REDIRECT, verdicts: ['FLOW_STARTED 1'], mark: MARK });
  });

  it('is told to who follows, and to nobody before: a start, a reset, one that is let through', async () => {
    const row = await ready();
    const events: Buffer[] = [];
    cleanup.owned(openRingBuffer(object.map('events'), (some) => void events.push(...some), { periodMs: 5 }));
    await send(toPod({ ...base, sport: 1 }));
    object.map('settings').set(u32(0), layouts.settings.encode({ followed: 1 }));
    await send(toPod({ ...base, sport: 2 }));
    await send(toPod({ ...base, sport: 2, flags: TCP.ACK })); // no start
    object.map('listeners').delete(u32(slotIndex(layouts.slots, 0, 'inbound', family)));
    await send(toPod({ ...base, sport: 3 }));
    enrol({ failureOpen: true });
    await send(toPod({ ...base, sport: 4 }));
    await vi.waitFor(() => expect(events.length).toBeGreaterThanOrEqual(3));
    const { event, flowKey, verdicts } = layouts;
    const common = { direction: 1, endpoint: row.id, generation: row.generation, ifindex };
    const told = events.map((bytes) => ({
      sport: flowKey.number(event.bytes(bytes, 'key'), 'sport'),
      verdict: verdicts[event.number(bytes, 'verdict')],
      direction: event.number(bytes, 'direction'),
      endpoint: event.number(bytes, 'endpoint'),
      generation: event.number(bytes, 'generation'),
      ifindex: event.number(bytes, 'ifindex'),
    }));
    expect(told).toEqual([
      { sport: 2, verdict: 'FLOW_STARTED', ...common },
      { sport: 3, verdict: 'NO_LISTENER_RESET', ...common },
      { sport: 4, verdict: 'NO_LISTENER_OPEN', ...common },
    ]);
  });

  it('is dropped without a mark where the agent’s own interface is gone: a first packet, a later one, a canary', async () => {
    await ready();
    pointTo(0);
    awaitCanary(family);
    const { port, clientPort } = connectionOf(family);
    const later = { ...base, sport: clientPort, dport: port, flags: TCP.ACK };
    const canary = { ...base, dst: LOOPBACK[family], dport: 0, sequence: NONCE };
    for (const options of [base, later, canary]) {
      expect(await send(toPod(options))).toMatchObject({ action: DROP, mark: 0 });
    }
    expect(await countedBy(tables, 'INGRESS')).toEqual(['STEER_LOST 3']);
    expect(recorded()).toEqual([]);
  });

  it('passes as part of a connection that nobody has recorded, or that an earlier generation or another pod has', async () => {
    const row = await ready();
    const later = toPod({ ...base, flags: TCP.ACK, payload: Buffer.from('data') });
    const tuple = { src: FAR[family], dst: POD[family] };
    const older = { action: NEXT, mark: 0 };
    expect(await send(later)).toMatchObject({ ...older, verdicts: ['OLDER_CONNECTION 1'] });
    record(tuple, { ...row, generation: row.generation + 1 });
    expect(await send(later)).toMatchObject({ ...older, verdicts: ['OLDER_CONNECTION 2'] });
    record(tuple, { ...row, id: row.id + 1 });
    expect(await send(later)).toMatchObject({ ...older, verdicts: ['OLDER_CONNECTION 3'] });
  });

  it('of a recorded flow without a socket is left to the listener', async () => {
    const row = await ready();
    record({ src: FAR[family], dst: POD[family] }, row);
    const sent = await send(toPod({ ...base, flags: TCP.ACK }));
    expect(sent).toMatchObject({ action: REDIRECT, verdicts: ['SYN_COOKIE 1'], mark: MARK });
  });

  it('of a recorded flow is reset where both its socket and the listener are gone, and never answers a reset', async () => {
    const row = enrol({ failureOpen: true });
    record({ src: FAR[family], dst: POD[family] }, row);
    const flags = TCP.ACK | TCP.PSH;
    const data = { sequence: 50, acknowledgement: 9000, payload: Buffer.from('xyz') };
    const result = await send(toPod({ ...base, flags, ...data }));
    expect(result).toMatchObject({ action: REDIRECT, verdicts: ['NO_LISTENER_RESET 1'], mark: 0 });
    const reply = { sequence: 9000, acknowledgement: 53, flags: TCP.RST | TCP.ACK };
    expect(readTcp(result.data)).toMatchObject(reply);
    expect((await send(toPod({ ...base, flags: TCP.RST }))).action).toBe(DROP);
  });

  it('goes to the socket that the proxy has for it, recorded or not', async () => {
    const row = await ready();
    const { port, clientPort } = connectionOf(family);
    const later = toPod({ ...base, sport: clientPort, dport: port, flags: TCP.ACK });
    const sent = { action: REDIRECT, mark: MARK };
    expect(await send(later)).toMatchObject({ ...sent, verdicts: ['FLOW_PACKET 1'] });
    record({ src: FAR[family], dst: POD[family], sport: clientPort, dport: port }, row);
    expect(await send(later)).toMatchObject({ ...sent, verdicts: ['FLOW_PACKET 2'] });
  });

  it('is a new connection as SYN on the tuple of one that has ended, and part of the old one as anything else', async () => {
    await ready();
    const { port } = connectionOf(family);
    const sport = endedConnection(node.path, FAR[family], POD[family], port);
    await vi.waitFor(() =>
      expect(node.exec('ss', '-Htn', 'state', 'time-wait')).toMatch(new RegExp(`:${port} .*:${sport}\\s`)),
    );
    const again = { ...base, sport, dport: port };
    const ack = await send(toPod({ ...again, flags: TCP.ACK }));
    expect(ack).toMatchObject({ action: REDIRECT, verdicts: ['FLOW_PACKET 1'], mark: MARK });
    expect(recorded()).toEqual([]);
    const syn = await send(toPod(again));
    expect(syn).toMatchObject({
      action: REDIRECT,
      verdicts: ['FLOW_STARTED 1', 'FLOW_PACKET 1'],
      mark: MARK,
    });
    expect(recorded()).toEqual([expect.objectContaining({ sport, dport: port, direction: 1 })]);
  });

  it.each([
    ['SYN+ACK', TCP.SYN | TCP.ACK],
    ['SYN+RST', TCP.SYN | TCP.RST],
    ['SYN+FIN', TCP.SYN | TCP.FIN],
    ['RST', TCP.RST],
    ['FIN', TCP.FIN],
    ['no flag at all', 0],
  ])('starts nothing as %s', async (_name, flags) => {
    await ready();
    const sent = await send(toPod({ ...base, flags }));
    expect(sent).toMatchObject({ action: NEXT, verdicts: ['OLDER_CONNECTION 1'], mark: 0 });
    expect(recorded()).toEqual([]);
  });

  it('to a pod that has been taken out passes, unless a proxy has a socket for it', async () => {
    const row = await ready();
    tables.leave(ifindex);
    record({ src: FAR[family], dst: POD[family] }, row);
    for (const flags of [TCP.SYN, TCP.ACK]) {
      expect(await send(toPod({ ...base, flags }))).toMatchObject({ action: NEXT, mark: 0 });
    }
    for (const options of [
      { ...base, vlans: [7] },
      { ...base, protocol: PROTOCOL.UDP },
    ]) {
      expect(await send(toPod(options))).toMatchObject({ action: NEXT, mark: 0 });
    }
    expect(await countedBy(tables, 'INGRESS')).toEqual(['LEAVING 4']);
    expect(recorded()).toHaveLength(1);
    const { port, clientPort } = connectionOf(family);
    const later = toPod({ ...base, sport: clientPort, dport: port, flags: TCP.ACK });
    expect(await send(later)).toMatchObject({ action: REDIRECT, mark: MARK });
    expect(await countedBy(tables, 'INGRESS')).toEqual(['FLOW_PACKET 1', 'LEAVING 4']);
  });

  describe('that is a canary', () => {
    const canary: FrameOptions = { ...base, dst: LOOPBACK[family], sport: 1, dport: 0, sequence: NONCE };

    it('is sent to the agent’s own interface, and the row says where it came out', async () => {
      const before = enrol();
      tables.remove(ifindex);
      const row = tables.enrol(UID, ifindex, false);
      expect(row.generation).toBe(before.generation + 1);
      enrol({ instance: 3 });
      awaitCanary(family);
      expect(await send(toPod(canary))).toMatchObject({
        action: REDIRECT,
        verdicts: ['CANARY 1'],
        mark: MARK,
      });
      const { id, generation } = row;
      expect(canaryRow(family)).toEqual({ ...UNANSWERED, endpoint: id, generation, instance: 3 });
      expect(recorded()).toEqual([]);
    });

    it('is like any other packet with the wrong nonce, or where none is awaited', async () => {
      await ready();
      expect(await send(toPod(canary))).toMatchObject({ action: NEXT, verdicts: ['NOT_OURS 1'], mark: 0 });
      awaitCanary(family);
      const forged = { ...canary, sequence: NONCE + 1 };
      expect(await send(toPod(forged))).toMatchObject({ action: NEXT, verdicts: ['NOT_OURS 2'], mark: 0 });
      const started = await send(toPod({ ...forged, dst: POD[family] }));
      expect(started).toMatchObject({ action: REDIRECT, verdicts: ['FLOW_STARTED 1', 'NOT_OURS 2'] });
      expect(canaryRow(family)).toEqual(UNANSWERED);
    });

    it('is none with another port, with ACK, of the other family or from the node itself', async () => {
      await ready();
      awaitCanary(family === 4 ? 6 : 4);
      await send(toPod(canary));
      expect(await countedBy(tables, 'INGRESS')).toEqual(['NOT_OURS 1']);
      awaitCanary(family);
      await send(toPod({ ...canary, dport: 1 }));
      await send(toPod({ ...canary, flags: TCP.SYN | TCP.ACK }));
      expect(await countedBy(tables, 'INGRESS')).toEqual(['NOT_OURS 3']);
      await send(toPod(canary), { from: 0 });
      expect(await countedBy(tables, 'INGRESS')).toEqual(['FROM_NODE 1', 'NOT_OURS 3']);
      expect(canaryRow(family)).toEqual(UNANSWERED);
    });
  });
});

describe('to a pod, a packet of IPv4', () => {
  it('is parsed behind IP options', async () => {
    enrol();
    const options = { src: FAR[4], dst: POD[4], ipOptions: Buffer.from('94040000', 'hex') };
    const result = await send(toPod(options));
    expect(result).toMatchObject({ action: REDIRECT, verdicts: ['NO_LISTENER_RESET 1'] });
    expect(readTcp(result.data)).toMatchObject({ dport: 40000, flags: TCP.RST | TCP.ACK });
  });
});

describe('to a pod, a packet of IPv6', () => {
  const base: FrameOptions = { src: FAR[6], dst: POD[6] };
  const padding = [PROTOCOL.DESTINATION, Buffer.from('0000010400000000', 'hex')] as const;

  it('starts a flow behind as many extension headers as are parsed, and is dropped behind more', async () => {
    await ready();
    const started = await send(toPod({ ...base, extensions: Array.from({ length: 8 }, () => padding) }));
    expect(started).toMatchObject({ action: REDIRECT, verdicts: ['FLOW_STARTED 1'] });
    const dropped = await send(toPod({ ...base, extensions: Array.from({ length: 9 }, () => padding) }));
    expect(dropped).toMatchObject({ action: DROP, mark: 0 });
    expect(await countedBy(tables, 'INGRESS')).toEqual(['FLOW_STARTED 1', 'EXTENSION_HEADERS 1']);
  });

  it('is dropped when a routing header still has somewhere to go, whatever address it bears', async () => {
    await ready();
    const routing = Buffer.from('0002000100000000'.padEnd(48, '0'), 'hex');
    for (const dst of [POD[6], OTHER_ADDRESS[6]]) {
      const extensions = [[PROTOCOL.ROUTING, routing] as const];
      expect((await send(toPod({ ...base, dst, extensions }))).action).toBe(DROP);
    }
    expect(await countedBy(tables, 'INGRESS')).toEqual(['EXTENSION_HEADERS 2']);
  });

  it('is dropped with an IPv4-mapped address', async () => {
    await ready();
    const mapped = toPod({ ...base, dst: `::ffff:${POD[4]}` });
    expect(await send(mapped)).toMatchObject({ action: DROP, verdicts: ['MALFORMED 1'] });
  });
});

describe.each([4, 6] as const)('at the agent’s own interface, a packet of IPv%i', (family) => {
  const base: FrameOptions = { src: FAR[family], dst: POD[family] };
  const canary = (options: Partial<FrameOptions> = {}): Buffer =>
    toPod({
      ...{ src: FAR[family], dst: LOOPBACK[family], sport: 1, dport: 0 },
      ...{ sequence: NONCE, acknowledgement: ifindex, ...options },
    });

  /** Runs one frame through inbound_steer, which shares its maps with pod_ingress. */
  async function steer(bytes: Buffer, mark: number) {
    const steering = BpfObject.open(STEER);
    try {
      for (const name of [
        'endpoints',
        'listeners',
        'flows',
        'connections',
        'counters',
        'ingress_counters',
        'ingress_canaries',
        'ingress_deliveries',
      ]) {
        steering.reuseMap(name, object.map(name));
      }
      steering.load();
      const result = testRun(steering, 'inbound_steer', node.fd, bytes, { ifindex: steerIndex, mark });
      expect(await countedBy(tables, 'EGRESS')).toEqual([]);
      return { ...result, verdicts: await countedBy(tables, 'INGRESS') };
    } finally {
      steering.close();
    }
  }

  function trials(): object[] {
    const { canaryKey: key, deliveryTrial } = layouts;
    return object
      .map('ingress_deliveries')
      .entries()
      .map(([at, trial]) => ({
        ifindex: key.number(at, 'ifindex'),
        family: key.number(at, 'family'),
        nonce: deliveryTrial.number(trial, 'nonce'),
        outcome: deliveryTrial.number(trial, 'outcome'),
        error: deliveryTrial.number(trial, 'error'),
      }));
  }

  it('is dropped uncounted without our mark, recorded or not', async () => {
    const row = await ready();
    record({ src: FAR[family], dst: POD[family] }, row);
    for (const mark of [0, 0x80]) {
      expect(await steer(toPod(base), mark)).toMatchObject({ action: DROP, verdicts: [] });
    }
    expect((await steer(toPod({ ...base, protocol: PROTOCOL.UDP }), 0)).verdicts).toEqual([]);
  });

  it('is dropped and counted for nobody where it bears our mark and has neither record nor socket', async () => {
    await ready();
    expect(await steer(toPod(base), MARK)).toMatchObject({ action: DROP });
    expect(await steer(toPod({ ...base, protocol: PROTOCOL.UDP }), MARK)).toMatchObject({ action: DROP });
    expect(await countedBy(tables, 'INGRESS', 0)).toEqual(['STEER_LOST 2']);
    expect(await countedBy(tables, 'INGRESS')).toEqual(['STEER_LOST 2']);
  });

  it('is dropped and counted for its pod where it is recorded and the listener is gone', async () => {
    const row = enrol();
    record({ src: FAR[family], dst: POD[family] }, row);
    await adopt(object, layouts, node.fd, connectionOf(6).port, 'outbound');
    expect(await steer(toPod(base), MARK)).toMatchObject({ action: DROP, verdicts: ['STEER_LOST 1'] });
    expect(await countedBy(tables, 'INGRESS', row.id)).toEqual(['STEER_LOST 1']);
  });

  // A test run is not at tc ingress, which is what an assignment needs: that one is tried is what it can show.
  it('is given to the inbound listener where it is recorded, and dropped where the kernel refuses', async () => {
    const row = await ready();
    record({ src: FAR[family], dst: POD[family] }, row);
    expect(await steer(toPod(base), MARK)).toMatchObject({ action: DROP, verdicts: ['ASSIGN_FAILED 1'] });
    expect(await countedBy(tables, 'INGRESS', row.id)).toEqual(['ASSIGN_FAILED 1']);
  });

  it('is given to its socket without a record, and dropped where the kernel refuses', async () => {
    enrol();
    const { port, clientPort } = connectionOf(family);
    const later = toPod({ ...base, sport: clientPort, dport: port, flags: TCP.ACK });
    expect(await steer(later, MARK)).toMatchObject({ action: DROP, verdicts: ['ASSIGN_FAILED 1'] });
    expect(await countedBy(tables, 'INGRESS', 0)).toEqual(['ASSIGN_FAILED 1']);
  });

  it('goes to the pod’s interface as a canary that is awaited, and answers nothing yet', async () => {
    await ready();
    awaitCanary(family);
    expect(await steer(canary(), 0)).toMatchObject({ action: REDIRECT, verdicts: [], mark: 0 });
    expect(canaryRow(family)).toEqual(UNANSWERED);
    expect(trials()).toEqual([]);
  });

  it('is tried at the listener as a canary that has come back, and dropped', async () => {
    await ready({ instance: 3 });
    awaitCanary(family);
    expect(await steer(canary(), MARK)).toMatchObject({ action: DROP, verdicts: [] });
    expect(canaryRow(family)).toMatchObject({ answered: NONCE, listening: 1 });
    const { refused: outcome } = layouts.deliveries;
    const trial = { ifindex, family: AF[family], nonce: NONCE, outcome, error: EOPNOTSUPP };
    expect(trials()).toEqual([trial]);
    expect(recorded()).toEqual([]);
  });

  it('is answered as a canary that has come back to an instance without a listener', async () => {
    enrol();
    await adopt(object, layouts, node.fd, connectionOf(6).port, 'outbound');
    awaitCanary(family);
    expect(await steer(canary(), MARK)).toMatchObject({ action: DROP, verdicts: [] });
    expect(canaryRow(family)).toMatchObject({ answered: NONCE, listening: 0 });
    const { noListener: outcome } = layouts.deliveries;
    expect(trials()).toEqual([{ ifindex, family: AF[family], nonce: NONCE, outcome, error: 0 }]);
  });

  it.each([0, MARK])(
    'with mark %i is dropped and answers nothing as a canary with the wrong nonce, or for another interface',
    async (mark) => {
      await ready();
      awaitCanary(family);
      for (const wrong of [{ sequence: NONCE + 1 }, { acknowledgement: steerIndex }]) {
        // Marked, it is somebody's own packet to port 0, of no flow that is known.
        expect(await steer(canary(wrong), mark)).toMatchObject({ action: DROP });
      }
      expect(await countedBy(tables, 'INGRESS')).toEqual(mark === 0 ? [] : ['STEER_LOST 2']);
      expect(canaryRow(family)).toEqual(UNANSWERED);
      expect(trials()).toEqual([]);
    },
  );

  it('is dropped and answers nothing as a canary whose pod has gone meanwhile', async () => {
    await ready();
    awaitCanary(family);
    tables.remove(ifindex);
    expect(await steer(canary(), MARK)).toMatchObject({ action: DROP, verdicts: [] });
    expect(canaryRow(family)).toEqual(UNANSWERED);
    expect(trials()).toEqual([]);
  });
});
