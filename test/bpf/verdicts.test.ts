import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import type { EndpointTables } from '../../src/datapath/endpoints.js';
import { type Layouts, readLayouts } from '../../src/datapath/layouts.js';
import { PortSet } from '../../src/datapath/port-set.js';
import { u32 } from '../../src/kernel/struct.js';
import { BpfObject, openRingBuffer } from '../../src/native/bpf.js';
import { closeFd } from '../../src/native/descriptors.js';
import { interfaceIndex, openNamespace, withNetns } from '../../src/native/namespaces.js';
import { ipToBytes } from '../../src/net/ip.js';
import type { PodUid } from '../../src/pods/pod.js';
import { type FrameOptions, frame, HOST_MAC, POD_MAC, PROTOCOL, readTcp, TCP } from './packets.js';
import {
  addAddress,
  adopt,
  type Connection,
  connectInside,
  countedBy,
  DROP,
  FAR,
  flowKeyOf,
  NEXT,
  POD,
  REDIRECT,
  type Tuple,
  tablesOf,
  testRun,
} from './test-run.js';

const NETNS = `nsv${process.pid}`;
const NETNS_PATH = `/run/netns/${NETNS}`;
const OBJECT = join(process.cwd(), 'build/bpf/intercept.bpf.o');

let netns: number;
let ifindex: number;
let object: BpfObject;
let layouts: Layouts;
let tables: EndpointTables;

beforeAll(() => {
  expect(existsSync(OBJECT), 'run "make build" first').toBe(true);
  execFileSync('ip', ['netns', 'add', NETNS]);
  netns = openNamespace(`/run/netns/${NETNS}`);
  execFileSync('ip', ['-n', NETNS, 'link', 'add', 'pod', 'type', 'veth', 'peer', 'name', 'inside']);
  for (const name of ['lo', 'pod', 'inside']) {
    execFileSync('ip', ['-n', NETNS, 'link', 'set', name, 'up']);
  }
  // bpf_fib_lookup answers only where forwarding is on, as on every node.
  const forwarding = ['net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1'];
  execFileSync('nsenter', [`--net=/run/netns/${NETNS}`, 'sysctl', '-qw', ...forwarding]);
  ifindex = withNetns(netns, () => interfaceIndex('pod')) ?? 0;
});

afterAll(() => {
  object?.close();
  closeFd(netns);
  execFileSync('ip', ['netns', 'del', NETNS]);
});

beforeEach(() => {
  object?.close();
  object = BpfObject.open(OBJECT);
  object.load();
  layouts = readLayouts(object);
  tables = tablesOf(object, layouts);
});

function enrol(failureOpen = false) {
  const row = tables.enrol('pod-uid' as PodUid, ifindex, true);
  tables.write(row, {
    ifindex,
    instance: 0,
    failureOpen,
    dropOther: false,
    bridgeIndex: 0,
    ips: [POD[4], POD[6]],
  });
  return row;
}

/** Runs one frame through pod_egress and says which counter moved. */
async function send(bytes: Buffer, gsoSize = 0) {
  const result = testRun(object, 'pod_egress', netns, bytes, { ifindex, gso_size: gsoSize });
  const verdicts = [...(await countedBy(tables, 'EGRESS')), ...(await countedBy(tables, 'INGRESS'))];
  return { ...result, verdicts };
}

/** As `send`, without looking at the counters. */
function run(bytes: Buffer, repeat = 1): void {
  testRun(object, 'pod_egress', netns, bytes, { ifindex }, repeat);
}

function keyOf(tuple: Tuple): Buffer {
  return flowKeyOf(layouts, tuple);
}

function record(options: Tuple & { generation: number; id: number }) {
  object.map('flows').set(
    keyOf(options),
    layouts.flow.encode({
      started_ns: 1,
      endpoint: options.id,
      generation: options.generation,
      ifindex,
      instance: 0,
      direction: 0,
    }),
  );
}

describe.each([4, 6] as const)('a packet of IPv%i', (family) => {
  const base: FrameOptions = { src: POD[family], dst: FAR[family] };

  it('passes where the interface belongs to no endpoint', async () => {
    expect(await send(frame(base))).toMatchObject({ action: NEXT, verdicts: ['NO_ENDPOINT 1'], mark: 0 });
  });

  it('is dropped when its source is not the pod', async () => {
    enrol();
    const forged = family === 4 ? '10.66.0.4' : 'fd00:66::4';
    expect(await send(frame({ ...base, src: forged }))).toMatchObject({
      action: DROP,
      verdicts: ['SPOOFED_SOURCE 1'],
    });
  });

  it('is dropped when a forged source carries something other than TCP', async () => {
    enrol();
    const forged = family === 4 ? '10.66.0.4' : 'fd00:66::4';
    const udp = frame({ ...base, src: forged, protocol: PROTOCOL.UDP });
    expect(await send(udp)).toMatchObject({ action: DROP, verdicts: ['SPOOFED_SOURCE 1'] });
  });

  it('passes as UDP', async () => {
    enrol();
    expect(await send(frame({ ...base, protocol: PROTOCOL.UDP }))).toMatchObject({
      action: NEXT,
      verdicts: ['NOT_TCP 1'],
    });
  });

  it('passes from an unspecified or link-local source unless it is TCP', async () => {
    enrol();
    const nobody = family === 4 ? '0.0.0.0' : 'fe80::1';
    const udp = await send(frame({ ...base, src: nobody, protocol: PROTOCOL.UDP }));
    expect(udp).toMatchObject({ action: NEXT, verdicts: ['NOT_TCP 1'] });
    const tcp = await send(frame({ ...base, src: nobody }));
    expect(tcp).toMatchObject({ action: DROP, verdicts: ['NOT_TCP 1', 'SPOOFED_SOURCE 1'] });
  });

  it('is reset, with a right checksum, when it opens a connection and no listener is there', async () => {
    enrol();
    const result = await send(frame({ ...base, sequence: 7000, tcpOptions: Buffer.from('020405b4', 'hex') }));
    expect(result).toMatchObject({ action: REDIRECT, verdicts: ['NO_LISTENER_RESET 1'], mark: 0 });
    const reply = readTcp(result.data);
    expect(reply).toMatchObject({
      sport: 80,
      dport: 40000,
      sequence: 0,
      acknowledgement: 7001,
      flags: TCP.RST | TCP.ACK,
    });
    expect(ipToBytes(reply.src)).toEqual(ipToBytes(FAR[family]));
    expect(ipToBytes(reply.dst)).toEqual(ipToBytes(POD[family]));
    expect(reply.toMac.equals(POD_MAC)).toBe(true);
    expect(result.data.subarray(6, 12).equals(HOST_MAC)).toBe(true);
  });

  it('is reset beyond its data when it opens a connection with data in the SYN', async () => {
    enrol();
    const result = await send(frame({ ...base, sequence: 7000, payload: Buffer.from('hello') }));
    expect(readTcp(result.data)).toMatchObject({ acknowledgement: 7006, flags: TCP.RST | TCP.ACK });
  });

  it('is dropped on its way to a loopback address, which would be the node’s', async () => {
    enrol(true);
    const loopback = family === 4 ? ['127.0.0.1', '127.9.9.9'] : ['::1'];
    for (const dst of loopback) {
      expect((await send(frame({ ...base, dst }))).action).toBe(DROP);
    }
    const [row] = (await tables.counters()).filter(({ podUid }) => podUid === 'pod-uid');
    expect(row?.packets).toMatchObject({ LOOPBACK: loopback.length, NO_LISTENER_OPEN: 0 });
    expect((await send(frame(base))).action).toBe(NEXT);
  });

  it('passes without a listener under failure policy open, and forgets an older flow of its tuple', async () => {
    const row = enrol(true);
    record({ src: POD[family], dst: FAR[family], generation: row.generation, id: row.id });
    expect(await send(frame(base))).toMatchObject({
      action: NEXT,
      verdicts: ['NO_LISTENER_OPEN 1'],
      mark: 0,
    });
    expect(object.map('flows').entries()).toHaveLength(0);
  });

  it('passes as part of a connection older than the enrolment', async () => {
    enrol();
    const later = frame({ ...base, flags: TCP.ACK, payload: Buffer.from('data') });
    expect(await send(later)).toMatchObject({ action: NEXT, verdicts: ['OLDER_CONNECTION 1'], mark: 0 });
  });

  it.each([
    ['ACK with data', TCP.ACK],
    ['SYN+ACK', TCP.SYN | TCP.ACK],
    ['SYN+FIN', TCP.SYN | TCP.FIN],
    ['FIN', TCP.FIN],
    ['no flag at all', 0],
  ])(
    '%s is left to connection tracking where the pod has been enrolled since before its first process',
    async (_name, flags) => {
      tables.write(tables.enrol('pod-uid' as PodUid, ifindex, false, true), {
        ifindex,
        instance: 0,
        failureOpen: true,
        dropOther: false,
        bridgeIndex: 0,
        ips: [POD[family]],
      });
      const sent = await send(frame({ ...base, flags, payload: Buffer.from('data') }));
      expect(sent).toMatchObject({ action: NEXT, verdicts: ['LEFT_TO_CONNTRACK 1'], mark: 0 });
    },
  );

  it('passes as part of a connection that an earlier generation recorded', async () => {
    const row = enrol();
    record({ src: POD[family], dst: FAR[family], generation: row.generation + 1, id: row.id });
    expect((await send(frame({ ...base, flags: TCP.ACK }))).verdicts).toEqual(['OLDER_CONNECTION 1']);
  });

  it('is reset where it was ours and both its socket and the listener are gone', async () => {
    const row = enrol();
    record({ src: POD[family], dst: FAR[family], generation: row.generation, id: row.id });
    const result = await send(
      frame({
        ...base,
        flags: TCP.ACK | TCP.PSH,
        sequence: 50,
        acknowledgement: 9000,
        payload: Buffer.from('xyz'),
      }),
    );
    expect(result).toMatchObject({ action: REDIRECT, verdicts: ['NO_LISTENER_RESET 1'] });
    expect(readTcp(result.data)).toMatchObject({
      sequence: 9000,
      acknowledgement: 53,
      flags: TCP.RST | TCP.ACK,
    });
  });

  it('is never answered when it is a reset itself', async () => {
    const row = enrol();
    record({ src: POD[family], dst: FAR[family], generation: row.generation, id: row.id });
    expect(await send(frame({ ...base, flags: TCP.RST }))).toMatchObject({ action: DROP });
  });

  it('opens nothing as SYN with ACK, RST or FIN', async () => {
    enrol();
    for (const flags of [TCP.SYN | TCP.ACK, TCP.SYN | TCP.FIN]) {
      expect((await send(frame({ ...base, flags }))).action).toBe(NEXT);
    }
  });

  it('is dropped as TCP behind a VLAN tag, and passes as UDP', async () => {
    enrol();
    expect(await send(frame({ ...base, vlans: [7] }))).toMatchObject({ action: DROP, verdicts: ['VLAN 1'] });
    expect((await send(frame({ ...base, vlans: [7, 8] }))).verdicts).toEqual(['VLAN 2']);
    expect((await send(frame({ ...base, vlans: [7], protocol: PROTOCOL.UDP }))).action).toBe(NEXT);
  });

  it('is dropped when cut short anywhere in its headers', async () => {
    enrol();
    const whole = frame(base);
    // The kernel itself refuses to run a frame shorter than its IP header.
    for (let length = family === 4 ? 34 : 54; length < whole.length; length++) {
      const result = await send(Buffer.from(whole.subarray(0, length)));
      expect(result.action, `${length} bytes`).toBe(DROP);
    }
    expect((await send(whole)).action).toBe(REDIRECT);
  });

  describe('other than TCP, of a pod whose other protocols are closed,', () => {
    function closed(): void {
      const row = tables.enrol('pod-uid' as PodUid, ifindex, true);
      const plan = { ifindex, instance: 0, failureOpen: false, dropOther: true, bridgeIndex: 0 };
      tables.write(row, { ...plan, ips: [POD[4], POD[6]] });
      new PortSet(object.map('udp_ports'), () => [53], 'open UDP port').ensure();
    }
    const icmp6 = (type: number) =>
      frame({ ...base, protocol: PROTOCOL.ICMP6, patch: (bytes, { l4 }) => void bytes.writeUInt8(type, l4) });
    const udp = (dport: number) => frame({ ...base, protocol: PROTOCOL.UDP, dport });
    const passes = { action: NEXT };
    const dropped = { action: DROP, verdicts: ['OTHER_DROPPED 1'] };

    it('is dropped', async () => {
      closed();
      expect(await send(udp(5353))).toMatchObject(dropped);
    });

    it('is dropped whatever it is: ICMP, SCTP, tunnels, fragments, unknown frames', async () => {
      closed();
      const others = [1, 4, 41, 47, 50, 132].map((protocol) => frame({ ...base, protocol }));
      const fragment = frame({
        ...base,
        protocol: PROTOCOL.UDP,
        dport: 53,
        ...(family === 4
          ? { fragment: 0x2000 }
          : { extensions: [[PROTOCOL.FRAGMENT, Buffer.alloc(8)] as const] }),
      });
      const unknown = Buffer.from(udp(53));
      unknown.writeUInt16BE(0x8847, 12);
      for (const other of [...others, fragment, unknown]) {
        expect((await send(other)).action).toBe(DROP);
      }
    });

    it('passes where an address needs it, and to the UDP ports that are listed', async () => {
      closed();
      const dhcp = family === 4 ? 67 : 547;
      const arp = Buffer.from(udp(1));
      arp.writeUInt16BE(0x0806, 12);
      const needed = family === 4 ? [] : [131, 132, 133, 135, 136, 143].map(icmp6);
      for (const one of [udp(dhcp), udp(53), arp, ...needed]) {
        expect(await send(one)).toMatchObject(passes);
      }
      if (family === 6) {
        expect((await send(icmp6(128))).action).toBe(DROP);
        expect((await send(icmp6(134))).action).toBe(DROP); // a pod is no router
      }
    });

    it('a port that is not listed any more is closed again', async () => {
      closed();
      expect(new PortSet(object.map('udp_ports'), () => [123], 'open UDP port').ensure()).toEqual([
        'the open UDP port 123 was missing',
        'the open UDP port 53 did not belong there',
      ]);
      expect((await send(udp(53))).action).toBe(DROP);
      expect((await send(udp(123))).action).toBe(NEXT);
    });
  });

  it('is dropped with a TCP header shorter than 20 bytes', async () => {
    enrol();
    const short = frame({ ...base, patch: (bytes, { l4 }) => bytes.writeUInt8(0x40, l4 + 12) });
    expect(await send(short)).toMatchObject({ action: DROP, verdicts: ['MALFORMED 1'] });
  });

  it('is dropped with an IPv4-mapped address in an IPv6 header', async () => {
    enrol();
    for (const addresses of [
      { src: `::ffff:${POD[4]}`, dst: FAR[6] },
      { src: POD[6], dst: `::ffff:${FAR[4]}` },
    ]) {
      const mapped = frame({ ...base, ...addresses });
      expect(mapped.readUInt16BE(12)).toBe(0x86dd);
      expect((await send(mapped)).action).toBe(DROP);
    }
    const [row] = (await tables.counters()).filter(({ podUid }) => podUid === 'pod-uid');
    expect(row?.packets).toMatchObject({ MALFORMED: 2, SPOOFED_SOURCE: 0 });
  });

  it('is parsed when it stands for 64 KiB of segments', async () => {
    enrol();
    const big = frame({ ...base, flags: TCP.ACK, payload: Buffer.alloc(3000, 'x') });
    expect(await send(big, 1448)).toMatchObject({ action: NEXT, verdicts: ['OLDER_CONNECTION 1'] });
  });
});

describe('a packet of IPv4', () => {
  const base: FrameOptions = { src: POD[4], dst: FAR[4] };

  it('is parsed behind IP options', async () => {
    enrol();
    const options = await send(frame({ ...base, ipOptions: Buffer.from('94040000', 'hex') }));
    expect(options).toMatchObject({ action: REDIRECT, verdicts: ['NO_LISTENER_RESET 1'] });
  });

  it('is dropped as a TCP fragment, first or later, and passes as a UDP fragment', async () => {
    enrol();
    expect((await send(frame({ ...base, fragment: 0x2000 }))).verdicts).toEqual(['FRAGMENT 1']);
    expect((await send(frame({ ...base, fragment: 0x0010 }))).action).toBe(DROP);
    expect((await send(frame({ ...base, fragment: 0x2000, protocol: PROTOCOL.UDP }))).action).toBe(NEXT);
  });

  it('is dropped when its lengths do not fit', async () => {
    enrol();
    const tooLong = frame({ ...base, patch: (bytes, { l3 }) => bytes.writeUInt16BE(4000, l3 + 2) });
    const shortHeader = frame({ ...base, patch: (bytes, { l3 }) => bytes.writeUInt8(0x44, l3) });
    const wrongVersion = frame({ ...base, patch: (bytes, { l3 }) => bytes.writeUInt8(0x65, l3) });
    for (const bytes of [tooLong, shortHeader, wrongVersion]) {
      expect((await send(bytes)).action).toBe(DROP);
    }
    expect((await send(frame(base))).verdicts).toEqual(expect.arrayContaining(['MALFORMED 3']));
  });

  it('passes as ARP', async () => {
    enrol();
    const arp = Buffer.concat([HOST_MAC, POD_MAC, Buffer.from([0x08, 0x06]), Buffer.alloc(46)]);
    expect(await send(arp)).toMatchObject({ action: NEXT, verdicts: ['NOT_IP 1'] });
  });
});

describe('a packet of IPv6', () => {
  const base: FrameOptions = { src: POD[6], dst: FAR[6] };
  const padding = Buffer.from('0000010400000000', 'hex');

  it('is parsed behind extension headers', async () => {
    enrol();
    const chain = await send(
      frame({
        ...base,
        extensions: [
          [PROTOCOL.HOP_BY_HOP, padding],
          [PROTOCOL.DESTINATION, padding],
        ],
      }),
    );
    expect(chain).toMatchObject({ action: REDIRECT, verdicts: ['NO_LISTENER_RESET 1'] });
  });

  it('is dropped behind more extension headers than are parsed', async () => {
    enrol();
    const nine = Array.from({ length: 9 }, () => [PROTOCOL.DESTINATION, padding] as const);
    expect(await send(frame({ ...base, extensions: nine }))).toMatchObject({
      action: DROP,
      verdicts: ['EXTENSION_HEADERS 1'],
    });
  });

  it('is dropped when a routing header still has somewhere to go', async () => {
    enrol();
    const routing = Buffer.from('0002000100000000'.padEnd(48, '0'), 'hex');
    expect(await send(frame({ ...base, extensions: [[PROTOCOL.ROUTING, routing]] }))).toMatchObject({
      action: DROP,
      verdicts: ['EXTENSION_HEADERS 1'],
    });
  });

  it('is dropped as a fragment of TCP or of what may hide TCP, and passes as a fragment of UDP', async () => {
    enrol();
    const fragment = Buffer.from('0000000100000001', 'hex');
    expect((await send(frame({ ...base, extensions: [[PROTOCOL.FRAGMENT, fragment]] }))).verdicts).toEqual([
      'FRAGMENT 1',
    ]);
    const hidden = frame({
      ...base,
      extensions: [
        [PROTOCOL.FRAGMENT, fragment],
        [PROTOCOL.DESTINATION, padding],
      ],
    });
    expect((await send(hidden)).action).toBe(DROP);
    const udp = frame({ ...base, protocol: PROTOCOL.UDP, extensions: [[PROTOCOL.FRAGMENT, fragment]] });
    expect((await send(udp)).action).toBe(NEXT);
  });
});

describe.each([4, 6] as const)('with a listener, a packet of IPv%i', (family) => {
  let connection: Connection;

  beforeAll(async () => {
    for (const ip of [POD[family], FAR[family]]) {
      addAddress(NETNS_PATH, ip);
    }
    connection = await connectInside(NETNS_PATH, POD[family], FAR[family]);
  });

  afterAll(() => connection?.close());

  /** Enrols the pod and adopts the listener, as the agent does. */
  async function ready(bridged: boolean) {
    const row = tables.enrol('pod-uid' as PodUid, ifindex, true);
    const plan = {
      ifindex,
      instance: 0,
      failureOpen: false,
      dropOther: false,
      bridgeIndex: bridged ? ifindex : 0,
    };
    tables.write(row, { ...plan, ips: [POD[4], POD[6]] });
    await adopt(object, layouts, netns, connection.port, 'outbound');
    return row;
  }

  const base = { src: POD[family], dst: FAR[family] };

  it('starts a flow as SYN: marked, recorded, sent to the bridge', async () => {
    const row = await ready(true);
    expect(await send(frame({ ...base, sport: 40001 }))).toMatchObject({
      action: REDIRECT,
      verdicts: ['FLOW_STARTED 1'],
      mark: 0x40,
    });
    const [entry] = object.map('flows').entries();
    expect(layouts.flow.number(entry?.[1] ?? Buffer.alloc(0), 'endpoint')).toBe(row.id);
  });

  it('follows the socket of a flow that we started', async () => {
    const row = await ready(true);
    const { port, clientPort } = connection;
    record({ ...base, generation: row.generation, id: row.id, sport: clientPort, dport: port });
    const later = frame({ ...base, sport: clientPort, dport: port, flags: TCP.ACK });
    expect(await send(later)).toMatchObject({ action: REDIRECT, verdicts: ['FLOW_PACKET 1'], mark: 0x40 });
  });

  it('is known by its socket once a packet has found that, though the record of the flow has been pushed out', async () => {
    const row = await ready(true);
    const { port, clientPort } = connection;
    const flow = { ...base, generation: row.generation, id: row.id, sport: clientPort, dport: port };
    const later = frame({ ...base, sport: clientPort, dport: port, flags: TCP.ACK });
    record(flow);
    await send(later);
    for (const [key] of object.map('flows').entries()) {
      object.map('flows').delete(key);
    }
    expect(await send(later)).toMatchObject({ action: REDIRECT, verdicts: ['FLOW_PACKET 2'], mark: 0x40 });
    // Enrolled anew, the socket is of an earlier life.
    tables.remove(ifindex);
    tables.write(tables.enrol('pod-uid' as PodUid, ifindex, false), {
      ifindex,
      instance: 0,
      failureOpen: false,
      dropOther: false,
      bridgeIndex: ifindex,
      ips: [POD[4], POD[6]],
    });
    expect((await send(later)).action).toBe(NEXT);
  });

  it('that opens ever more connections pushes out its own records, the oldest first, and nobody else’s', async () => {
    const row = await ready(true);
    const share = layouts.limits.flowsOfEndpoint;
    const other = { src: '10.66.0.9', dst: FAR[4], generation: 1, id: 99 };
    record(other);
    const syn = (n: number) =>
      frame({ ...base, sport: 1024 + (n % 60_000), dport: 80 + Math.floor(n / 60_000) });
    for (let n = 0; n < share + 100; n++) {
      run(syn(n));
    }
    const ports = object
      .map('flows')
      .entries()
      .filter(([, value]) => layouts.flow.number(value, 'endpoint') === row.id)
      .map(([key]) => layouts.flowKey.number(key, 'sport'));
    expect(ports).toHaveLength(share);
    expect(Math.min(...ports)).toBe(1024 + 100);
    expect(object.map('flows').entries()).toHaveLength(share + 1);
  });

  it('keeps the records of its established connections while it opens others', async () => {
    const row = await ready(true);
    const { port, clientPort } = connection;
    const share = layouts.limits.flowsOfEndpoint;
    run(frame({ ...base, sport: clientPort, dport: 9 })); // of another connection: the first turn is not held by ours
    const flow = { src: base.src, dst: base.dst, sport: clientPort, dport: port };
    const key = keyOf(flow);
    record({ ...flow, generation: row.generation, id: row.id });
    object.map('turns').set(layouts.turn.encode({ endpoint: row.id, number: 1 }), key);
    object.map('shares').set(u32(row.id), layouts.share.encode({ recorded: share + 1 }));
    run(frame({ ...base, sport: 2000, dport: 81 }));
    expect(object.map('flows').get(key)).toBeDefined();
    expect(object.map('turns').get(layouts.turn.encode({ endpoint: row.id, number: 2 }))).toEqual(
      keyOf({ ...base, sport: 2000, dport: 81 }),
    );
  });

  it('of the same 4-tuple again takes no other turn', async () => {
    const row = await ready(true);
    for (let n = 0; n < 3; n++) {
      run(frame({ ...base, sport: 40001 }));
    }
    const value = object.map('shares').get(u32(row.id)) ?? Buffer.alloc(layouts.share.size);
    expect(layouts.share.number(value, 'recorded')).toBe(1);
  });

  it("is left alone when it belongs to a connection of the node's own", async () => {
    await ready(true);
    const { port, clientPort } = connection;
    const later = frame({ ...base, sport: clientPort, dport: port, flags: TCP.ACK });
    expect(await send(later)).toMatchObject({ action: NEXT, verdicts: ['OLDER_CONNECTION 1'], mark: 0 });
  });

  it('without a socket, of a flow that we started, is left to the listener', async () => {
    const row = await ready(true);
    record({ ...base, generation: row.generation, id: row.id });
    expect(await send(frame({ ...base, flags: TCP.ACK }))).toMatchObject({
      action: REDIRECT,
      verdicts: ['SYN_COOKIE 1'],
      mark: 0x40,
    });
  });

  it('of a pod whose rate is limited goes on to the limit, marked and recorded', async () => {
    const row = await ready(false);
    tables.write(row, {
      ...{ ifindex, instance: 0, failureOpen: false, dropOther: false, bridgeIndex: 0, shaped: true },
      ips: [POD[4], POD[6]],
    });
    expect(await send(frame({ ...base, sport: 40003 }))).toMatchObject({
      action: NEXT,
      verdicts: ['FLOW_STARTED 1'],
      mark: 0x40,
    });
    expect(object.map('flows').entries()).toHaveLength(1);
  });

  it('is dropped without a mark where the kernel refuses the socket', async () => {
    await ready(false); // a test run is not at tc ingress, which is what an assignment needs
    expect(await send(frame({ ...base, sport: 40002 }))).toMatchObject({
      action: DROP,
      verdicts: ['ASSIGN_FAILED 1'],
      mark: 0,
    });
    expect(object.map('flows').entries()).toHaveLength(0);
  });
});

describe.each([4, 6] as const)('at the bridge, a packet of IPv%i', (family) => {
  const base: FrameOptions = { src: POD[family], dst: '203.0.113.9' };
  const dst = family === 4 ? '203.0.113.9' : '2001:db8::9';

  async function steer(bytes: Buffer, mark: number) {
    const steering = BpfObject.open(join(process.cwd(), 'build/bpf/steer.bpf.o'));
    try {
      steering.reuseMap('counters', object.map('counters'));
      steering.load();
      const { action } = testRun(steering, 'bridge_steer', netns, bytes, { mark, ifindex });
      const [nobody] = (await tables.counters()).filter(({ endpointId }) => endpointId === 0);
      return { action, lost: nobody?.packets.STEER_LOST };
    } finally {
      steering.close();
    }
  }

  it('is not looked at without our mark', async () => {
    expect(await steer(frame({ ...base, dst }), 0)).toEqual({ action: NEXT, lost: 0 });
  });

  it('is dropped and counted when it bears our mark and has no socket', async () => {
    expect(await steer(frame({ ...base, dst, flags: TCP.ACK }), 0x40)).toEqual({ action: DROP, lost: 1 });
  });
});

it('sends no event unless somebody follows', async () => {
  enrol(true);
  const events: Buffer[] = [];
  const ring = openRingBuffer(object.map('events'), (records) => void events.push(...records), {
    periodMs: 5,
  });
  run(frame({ src: POD[4], dst: FAR[4] }), 2000);
  object.map('settings').set(u32(0), layouts.settings.encode({ followed: 1 }));
  run(frame({ src: POD[4], dst: FAR[4] }), 3);
  return vi.waitFor(() => expect(events).toHaveLength(3)).finally(() => ring.close());
});

it('counts events that found the ring full, and lets the packets go on', async () => {
  enrol(true);
  object.map('settings').set(u32(0), layouts.settings.encode({ followed: 1 }));
  run(frame({ src: POD[4], dst: FAR[4] }), 20_000);
  const [row] = (await tables.counters()).filter(({ podUid }) => podUid === 'pod-uid');
  expect(row?.packets.NO_LISTENER_OPEN).toBe(20_000);
  expect(row?.packets.EVENT_LOST).toBeGreaterThan(1_000);
});

it('forgets the counters of an endpoint that is forgotten', async () => {
  enrol();
  await send(frame({ src: POD[4], dst: FAR[4], protocol: PROTOCOL.UDP }));
  tables.forget('pod-uid' as PodUid);
  expect(object.map('counters').get(u32(1))).toBeUndefined();
});
