import { execFileSync, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { EndpointTables } from '../../src/datapath/endpoints.js';
import { type Layouts, readLayouts } from '../../src/datapath/layouts.js';
import { Listeners } from '../../src/datapath/listeners.js';
import { u32 } from '../../src/kernel/struct.js';
import { BpfObject } from '../../src/native/bpf.js';
import { closeFd } from '../../src/native/descriptors.js';
import { interfaceIndex, openNamespace, withNetns } from '../../src/native/namespaces.js';
import { ipToBytes } from '../../src/net/ip.js';
import type { PodUid } from '../../src/pods/pod.js';
import { type FrameOptions, frame, HOST_MAC, POD_MAC, PROTOCOL, readTcp, TCP } from './packets.js';

const NETNS = `nsv${process.pid}`;
const OBJECT = join(process.cwd(), 'build/bpf/intercept.bpf.o');
const NEXT = 0xffffffff; // TC_ACT_UNSPEC: the next program decides
const DROP = 2;
const REDIRECT = 7;
const POD = { 4: '10.66.0.3', 6: 'fd00:66::3' } as const;
const FAR = { 4: '10.200.1.1', 6: 'fd00:200::1' } as const;

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
  const map = (name: string) => object.map(name);
  tables = new EndpointTables(
    {
      endpoints: map('endpoints'),
      sources: map('sources'),
      workloads: map('workloads'),
      counters: map('counters'),
    },
    layouts,
  );
});

function enrol(failureOpen = false) {
  const row = tables.enrol('pod-uid' as PodUid, ifindex, true);
  tables.write(row, { ifindex, instance: 0, failureOpen, bridgeIndex: 0, ips: [POD[4], POD[6]] });
  return row;
}

/** Runs one frame through pod_egress and says which counter moved. */
function send(bytes: Buffer, gsoSize = 0) {
  const context = Buffer.alloc(192);
  context.writeUInt32LE(ifindex, 40);
  context.writeUInt32LE(gsoSize, 176);
  const program = object.program('pod_egress');
  const result = withNetns(netns, () => program.testRun({ data: bytes, context }));
  program.close();
  const moved = tables
    .counters()
    .flatMap(({ packets }) => Object.entries(packets))
    .filter(([, count]) => count > 0)
    .map(([name, count]) => `${name} ${count}`);
  return {
    action: result.retval >>> 0,
    verdicts: moved,
    data: result.data,
    mark: result.context.readUInt32LE(8),
  };
}

function record(options: {
  src: string;
  dst: string;
  generation: number;
  id: number;
  sport?: number;
  dport?: number;
}) {
  object.map('flows').set(
    layouts.flowKey.encode({
      src: ipToBytes(options.src),
      dst: ipToBytes(options.dst),
      sport: options.sport ?? 40000,
      dport: options.dport ?? 80,
      protocol: 6,
    }),
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

  it('passes where the interface belongs to no endpoint', () => {
    expect(send(frame(base))).toMatchObject({ action: NEXT, verdicts: ['NO_ENDPOINT 1'], mark: 0 });
  });

  it('is dropped when its source is not the pod', () => {
    enrol();
    const forged = family === 4 ? '10.66.0.4' : 'fd00:66::4';
    expect(send(frame({ ...base, src: forged }))).toMatchObject({
      action: DROP,
      verdicts: ['SPOOFED_SOURCE 1'],
    });
  });

  it('is dropped when a forged source carries something other than TCP', () => {
    enrol();
    const forged = family === 4 ? '10.66.0.4' : 'fd00:66::4';
    const udp = frame({ ...base, src: forged, protocol: PROTOCOL.UDP });
    expect(send(udp)).toMatchObject({ action: DROP, verdicts: ['SPOOFED_SOURCE 1'] });
  });

  it('passes as UDP', () => {
    enrol();
    expect(send(frame({ ...base, protocol: PROTOCOL.UDP }))).toMatchObject({
      action: NEXT,
      verdicts: ['NOT_TCP 1'],
    });
  });

  it('passes from an unspecified or link-local source unless it is TCP', () => {
    enrol();
    const nobody = family === 4 ? '0.0.0.0' : 'fe80::1';
    const udp = send(frame({ ...base, src: nobody, protocol: PROTOCOL.UDP }));
    expect(udp).toMatchObject({ action: NEXT, verdicts: ['NOT_TCP 1'] });
    const tcp = send(frame({ ...base, src: nobody }));
    expect(tcp).toMatchObject({ action: DROP, verdicts: ['NOT_TCP 1', 'SPOOFED_SOURCE 1'] });
  });

  it('is reset, with a right checksum, when it opens a connection and no listener is there', () => {
    enrol();
    const result = send(frame({ ...base, sequence: 7000, tcpOptions: Buffer.from('020405b4', 'hex') }));
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

  it('is reset beyond its data when it opens a connection with data in the SYN', () => {
    enrol();
    const result = send(frame({ ...base, sequence: 7000, payload: Buffer.from('hello') }));
    expect(readTcp(result.data)).toMatchObject({ acknowledgement: 7006, flags: TCP.RST | TCP.ACK });
  });

  it('passes without a listener under failure policy open, and forgets an older flow of its tuple', () => {
    const row = enrol(true);
    record({ src: POD[family], dst: FAR[family], generation: row.generation, id: row.id });
    expect(send(frame(base))).toMatchObject({ action: NEXT, verdicts: ['NO_LISTENER_OPEN 1'], mark: 0 });
    expect(object.map('flows').entries()).toHaveLength(0);
  });

  it('passes as part of a connection older than the enrolment', () => {
    enrol();
    const later = frame({ ...base, flags: TCP.ACK, payload: Buffer.from('data') });
    expect(send(later)).toMatchObject({ action: NEXT, verdicts: ['OLDER_CONNECTION 1'], mark: 0 });
  });

  it('passes as part of a connection that an earlier generation recorded', () => {
    const row = enrol();
    record({ src: POD[family], dst: FAR[family], generation: row.generation + 1, id: row.id });
    expect(send(frame({ ...base, flags: TCP.ACK })).verdicts).toEqual(['OLDER_CONNECTION 1']);
  });

  it('is reset where it was ours and both its socket and the listener are gone', () => {
    const row = enrol();
    record({ src: POD[family], dst: FAR[family], generation: row.generation, id: row.id });
    const result = send(
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

  it('is never answered when it is a reset itself', () => {
    const row = enrol();
    record({ src: POD[family], dst: FAR[family], generation: row.generation, id: row.id });
    expect(send(frame({ ...base, flags: TCP.RST }))).toMatchObject({ action: DROP });
  });

  it('opens nothing as SYN with ACK, RST or FIN', () => {
    enrol();
    for (const flags of [TCP.SYN | TCP.ACK, TCP.SYN | TCP.FIN]) {
      expect(send(frame({ ...base, flags })).action).toBe(NEXT);
    }
  });

  it('is dropped as TCP behind a VLAN tag, and passes as UDP', () => {
    enrol();
    expect(send(frame({ ...base, vlans: [7] }))).toMatchObject({ action: DROP, verdicts: ['VLAN 1'] });
    expect(send(frame({ ...base, vlans: [7, 8] })).verdicts).toEqual(['VLAN 2']);
    expect(send(frame({ ...base, vlans: [7], protocol: PROTOCOL.UDP })).action).toBe(NEXT);
  });

  it('is dropped when cut short anywhere in its headers', () => {
    enrol();
    const whole = frame(base);
    // The kernel itself refuses to run a frame shorter than its IP header.
    for (let length = family === 4 ? 34 : 54; length < whole.length; length++) {
      const result = send(Buffer.from(whole.subarray(0, length)));
      expect(result.action, `${length} bytes`).toBe(DROP);
    }
    expect(send(whole).action).toBe(REDIRECT);
  });

  it('is dropped with a TCP header shorter than 20 bytes', () => {
    enrol();
    const short = frame({ ...base, patch: (bytes, { l4 }) => bytes.writeUInt8(0x40, l4 + 12) });
    expect(send(short)).toMatchObject({ action: DROP, verdicts: ['MALFORMED 1'] });
  });

  it('is parsed when it stands for 64 KiB of segments', () => {
    enrol();
    const big = frame({ ...base, flags: TCP.ACK, payload: Buffer.alloc(3000, 'x') });
    expect(send(big, 1448)).toMatchObject({ action: NEXT, verdicts: ['OLDER_CONNECTION 1'] });
  });
});

describe('a packet of IPv4', () => {
  const base: FrameOptions = { src: POD[4], dst: FAR[4] };

  it('is parsed behind IP options', () => {
    enrol();
    const options = send(frame({ ...base, ipOptions: Buffer.from('94040000', 'hex') }));
    expect(options).toMatchObject({ action: REDIRECT, verdicts: ['NO_LISTENER_RESET 1'] });
  });

  it('is dropped as a TCP fragment, first or later, and passes as a UDP fragment', () => {
    enrol();
    expect(send(frame({ ...base, fragment: 0x2000 })).verdicts).toEqual(['FRAGMENT 1']);
    expect(send(frame({ ...base, fragment: 0x0010 })).action).toBe(DROP);
    expect(send(frame({ ...base, fragment: 0x2000, protocol: PROTOCOL.UDP })).action).toBe(NEXT);
  });

  it('is dropped when its lengths do not fit', () => {
    enrol();
    const tooLong = frame({ ...base, patch: (bytes, { l3 }) => bytes.writeUInt16BE(4000, l3 + 2) });
    const shortHeader = frame({ ...base, patch: (bytes, { l3 }) => bytes.writeUInt8(0x44, l3) });
    const wrongVersion = frame({ ...base, patch: (bytes, { l3 }) => bytes.writeUInt8(0x65, l3) });
    for (const bytes of [tooLong, shortHeader, wrongVersion]) {
      expect(send(bytes).action).toBe(DROP);
    }
    expect(send(frame(base)).verdicts).toEqual(expect.arrayContaining(['MALFORMED 3']));
  });

  it('passes as ARP', () => {
    enrol();
    const arp = Buffer.concat([HOST_MAC, POD_MAC, Buffer.from([0x08, 0x06]), Buffer.alloc(46)]);
    expect(send(arp)).toMatchObject({ action: NEXT, verdicts: ['NOT_IP 1'] });
  });
});

describe('a packet of IPv6', () => {
  const base: FrameOptions = { src: POD[6], dst: FAR[6] };
  const padding = Buffer.from('0000010400000000', 'hex');

  it('is parsed behind extension headers', () => {
    enrol();
    const chain = send(
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

  it('is dropped behind more extension headers than are parsed', () => {
    enrol();
    const nine = Array.from({ length: 9 }, () => [PROTOCOL.DESTINATION, padding] as const);
    expect(send(frame({ ...base, extensions: nine }))).toMatchObject({
      action: DROP,
      verdicts: ['EXTENSION_HEADERS 1'],
    });
  });

  it('is dropped when a routing header still has somewhere to go', () => {
    enrol();
    const routing = Buffer.from('0002000100000000'.padEnd(48, '0'), 'hex');
    expect(send(frame({ ...base, extensions: [[PROTOCOL.ROUTING, routing]] }))).toMatchObject({
      action: DROP,
      verdicts: ['EXTENSION_HEADERS 1'],
    });
  });

  it('is dropped as a fragment of TCP or of what may hide TCP, and passes as a fragment of UDP', () => {
    enrol();
    const fragment = Buffer.from('0000000100000001', 'hex');
    expect(send(frame({ ...base, extensions: [[PROTOCOL.FRAGMENT, fragment]] })).verdicts).toEqual([
      'FRAGMENT 1',
    ]);
    const hidden = frame({
      ...base,
      extensions: [
        [PROTOCOL.FRAGMENT, fragment],
        [PROTOCOL.DESTINATION, padding],
      ],
    });
    expect(send(hidden).action).toBe(DROP);
    const udp = frame({ ...base, protocol: PROTOCOL.UDP, extensions: [[PROTOCOL.FRAGMENT, fragment]] });
    expect(send(udp).action).toBe(NEXT);
  });
});

/** A real connection from the pod's address to the far one, both of which the namespace has on its loopback. */
interface Connection {
  readonly port: number;
  readonly clientPort: number;
  close(): void;
}

async function connectInside(family: 4 | 6): Promise<Connection> {
  const code = `
    const net = require('net');
    const server = net.createServer(() => {}).listen({ port: 0, host: '::' }, () => {
      const { port } = server.address();
      const client = net.connect({ port, host: '${FAR[family]}', localAddress: '${POD[family]}' }, () =>
        console.log(JSON.stringify({ port, clientPort: client.localPort })));
    });`;
  const child = spawn('nsenter', [`--net=/run/netns/${NETNS}`, process.execPath, '-e', code]);
  const line = await new Promise<string>((resolve, reject) => {
    child.stdout.once('data', (data: Buffer) => resolve(data.toString()));
    child.stderr.once('data', (data: Buffer) => reject(new Error(data.toString())));
  });
  const ports = JSON.parse(line) as { port: number; clientPort: number };
  return { ...ports, close: () => void child.kill('SIGKILL') };
}

describe.each([4, 6] as const)('with a listener, a packet of IPv%i', (family) => {
  let connection: Connection;

  beforeAll(async () => {
    for (const ip of [POD[family], FAR[family]]) {
      const prefix = `${ip}/${family === 4 ? 32 : 128}`;
      execFileSync('ip', [
        '-n',
        NETNS,
        'addr',
        'add',
        prefix,
        'dev',
        'lo',
        ...(family === 6 ? ['nodad'] : []),
      ]);
    }
    connection = await connectInside(family);
  });

  afterAll(() => connection?.close());

  /** Enrols the pod and adopts the listener, as the agent does. */
  function ready(bridged: boolean) {
    const row = tables.enrol('pod-uid' as PodUid, ifindex, true);
    const plan = { ifindex, instance: 0, failureOpen: false, bridgeIndex: bridged ? ifindex : 0 };
    tables.write(row, { ...plan, ips: [POD[4], POD[6]] });
    const wanted = { host: '::', port: connection.port, family: 6 } as const;
    const instances = [{ name: 'default', number: 0, outbound: [wanted], inbound: [], owner: { uid: 0 } }];
    const log = { info: () => undefined, warn: () => undefined };
    const { slots } = layouts;
    withNetns(netns, () =>
      new Listeners({
        map: object.map('listeners'),
        slots,
        instances,
        log,
        referred: () => new Set(),
      }).refresh(),
    );
    return row;
  }

  const base = { src: POD[family], dst: FAR[family] };

  it('starts a flow as SYN: marked, recorded, sent to the bridge', () => {
    const row = ready(true);
    expect(send(frame({ ...base, sport: 40001 }))).toMatchObject({
      action: REDIRECT,
      verdicts: ['FLOW_STARTED 1'],
      mark: 0x40,
    });
    const [entry] = object.map('flows').entries();
    expect(layouts.flow.number(entry?.[1] ?? Buffer.alloc(0), 'endpoint')).toBe(row.id);
  });

  it('follows the socket of a flow that we started', () => {
    const row = ready(true);
    const { port, clientPort } = connection;
    record({ ...base, generation: row.generation, id: row.id, sport: clientPort, dport: port });
    const later = frame({ ...base, sport: clientPort, dport: port, flags: TCP.ACK });
    expect(send(later)).toMatchObject({ action: REDIRECT, verdicts: ['FLOW_PACKET 1'], mark: 0x40 });
  });

  it("is left alone when it belongs to a connection of the node's own", () => {
    ready(true);
    const { port, clientPort } = connection;
    const later = frame({ ...base, sport: clientPort, dport: port, flags: TCP.ACK });
    expect(send(later)).toMatchObject({ action: NEXT, verdicts: ['OLDER_CONNECTION 1'], mark: 0 });
  });

  it('without a socket, of a flow that we started, is left to the listener', () => {
    const row = ready(true);
    record({ ...base, generation: row.generation, id: row.id });
    expect(send(frame({ ...base, flags: TCP.ACK }))).toMatchObject({
      action: REDIRECT,
      verdicts: ['SYN_COOKIE 1'],
      mark: 0x40,
    });
  });

  it('is dropped without a mark where the kernel refuses the socket', () => {
    ready(false); // a test run is not at tc ingress, which is what an assignment needs
    expect(send(frame({ ...base, sport: 40002 }))).toMatchObject({
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

  function steer(bytes: Buffer, mark: number) {
    const steering = BpfObject.open(join(process.cwd(), 'build/bpf/steer.bpf.o'));
    try {
      steering.reuseMap('counters', object.map('counters'));
      steering.load();
      const context = Buffer.alloc(192);
      context.writeUInt32LE(mark, 8);
      context.writeUInt32LE(ifindex, 40);
      const program = steering.program('bridge_steer');
      const { retval } = withNetns(netns, () => program.testRun({ data: bytes, context }));
      program.close();
      const [nobody] = tables.counters().filter(({ endpointId }) => endpointId === 0);
      return { action: retval >>> 0, lost: nobody?.packets.STEER_LOST };
    } finally {
      steering.close();
    }
  }

  it('is not looked at without our mark', () => {
    expect(steer(frame({ ...base, dst }), 0)).toEqual({ action: NEXT, lost: 0 });
  });

  it('is dropped and counted when it bears our mark and has no socket', () => {
    expect(steer(frame({ ...base, dst, flags: TCP.ACK }), 0x40)).toEqual({ action: DROP, lost: 1 });
  });
});

it('counts events that found the ring full, and lets the packets go on', () => {
  enrol(true);
  const context = Buffer.alloc(192);
  context.writeUInt32LE(ifindex, 40);
  const program = object.program('pod_egress');
  const data = frame({ src: POD[4], dst: FAR[4] });
  withNetns(netns, () => program.testRun({ data, context, repeat: 20_000 }));
  program.close();
  const [row] = tables.counters().filter(({ podUid }) => podUid === 'pod-uid');
  expect(row?.packets.NO_LISTENER_OPEN).toBe(20_000);
  expect(row?.packets.EVENT_LOST).toBeGreaterThan(1_000);
});

it('forgets the counters of an endpoint that is forgotten', () => {
  enrol();
  send(frame({ src: POD[4], dst: FAR[4], protocol: PROTOCOL.UDP }));
  tables.forget('pod-uid' as PodUid);
  expect(object.map('counters').get(u32(1))).toBeUndefined();
});
