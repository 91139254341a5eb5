/** What tests of one program at a time share: a frame run through it, what it counted, and sockets for it to find. */

import { execFileSync, spawn } from 'node:child_process';
import { join } from 'node:path';
import { EndpointTables } from '../../src/datapath/endpoints.js';
import type { FlowDirection } from '../../src/datapath/flows.js';
import { type Layouts, readLayouts } from '../../src/datapath/layouts.js';
import { Listeners } from '../../src/datapath/listeners.js';
import { u32 } from '../../src/kernel/struct.js';
import { type BpfMap, BpfObject } from '../../src/native/bpf.js';
import { withNetns } from '../../src/native/namespaces.js';
import { ipToBytes } from '../../src/net/ip.js';
import type { PodUid } from '../../src/pods/pod.js';

export const NEXT = 0xffffffff; // TC_ACT_UNSPEC: the next program decides
export const DROP = 2;
export const REDIRECT = 7;
export const ELSEWHERE = 1;
export const UID = 'pod-uid' as PodUid;
/** The pod's own instance, and those that take ports: of `randomSelection`. */
export const OWN = 1;
export const NUMBERS = [OWN, 3, 4, 5];
export const PROGRAMS = {
  outbound: { object: 'intercept', program: 'pod_egress' },
  inbound: { object: 'ingress', program: 'pod_ingress' },
} as const;
export const POD = { 4: '10.66.0.3', 6: 'fd00:66::3' } as const;
export const FAR = { 4: '10.200.1.1', 6: 'fd00:200::1' } as const;

/** `struct __sk_buff`, and fields in it: linux/bpf.h. */
const CONTEXT_BYTES = 192;
const CONTEXT = { mark: 8, ingress_ifindex: 36, ifindex: 40, gso_size: 176 } as const;

/** BPF_PROG_TEST_RUN in a network namespace. Such a packet has a socket, and is not at tc ingress. */
export function testRun(
  object: BpfObject,
  name: string,
  netns: number,
  data: Buffer,
  fields: Partial<Record<keyof typeof CONTEXT, number>>,
  repeat = 1,
): { action: number; data: Buffer; mark: number } {
  const context = Buffer.alloc(CONTEXT_BYTES);
  for (const [field, offset] of Object.entries(CONTEXT)) {
    context.writeUInt32LE(fields[field as keyof typeof CONTEXT] ?? 0, offset);
  }
  const program = object.program(name);
  try {
    const result = withNetns(netns, () => program.testRun({ data, context, repeat }));
    return {
      action: result.retval >>> 0,
      data: result.data,
      mark: result.context.readUInt32LE(CONTEXT.mark),
    };
  } finally {
    program.close();
  }
}

export function tablesOf(object: BpfObject, layouts: Layouts): EndpointTables {
  const map = (name: string) => object.map(name);
  return new EndpointTables(
    {
      endpoints: map('endpoints'),
      sources: map('sources'),
      workloads: map('workloads'),
      counters: map('counters'),
      ingress_counters: map('ingress_counters'),
      inbound: map('inbound'),
      selected: map('selected'),
      udp_selected: map('udp_selected'),
      selections: map('selections'),
      port_pages: map('port_pages'),
      cidrs: map('cidrs'),
      shares: map('shares'),
      turns: map('turns'),
      identities: map('identities'),
      addresses: map('addresses'),
    },
    layouts,
  );
}

/** The counters that are not 0, of one endpoint or of all. */
export async function countedBy(
  tables: EndpointTables,
  direction: FlowDirection,
  endpointId?: number,
): Promise<string[]> {
  return (await tables.counters())
    .filter((row) => row.direction === direction)
    .filter((row) => endpointId === undefined || row.endpointId === endpointId)
    .flatMap(({ packets }) => Object.entries(packets))
    .filter(([, count]) => count > 0)
    .map(([name, count]) => `${name} ${count}`);
}

/** One program of the datapath with its maps. The caller closes what it has opened. */
export class OneProgram {
  readonly object: BpfObject;
  readonly layouts: Layouts;
  readonly tables: EndpointTables;
  /** Held: each asking for it would take a descriptor. */
  readonly flows: BpfMap;

  /** `steerIndex`: the interface that stands for the agent's own. */
  constructor(object: string, steerIndex: number, owned: <T extends { close(): void }>(resource: T) => T) {
    this.object = owned(BpfObject.open(join(process.cwd(), `build/bpf/${object}.bpf.o`)));
    this.object.load();
    this.layouts = readLayouts(this.object);
    this.tables = tablesOf(this.object, this.layouts);
    this.flows = owned(this.object.map('flows'));
    this.object.map('steering').set(u32(0), this.layouts.steering.encode({ ifindex: steerIndex }));
  }
}

export interface Tuple {
  readonly src: string;
  readonly dst: string;
  readonly sport?: number;
  readonly dport?: number;
}

export function flowKeyOf({ flowKey }: Layouts, tuple: Tuple, protocol = 6): Buffer {
  return flowKey.encode({
    src: ipToBytes(tuple.src),
    dst: ipToBytes(tuple.dst),
    sport: tuple.sport ?? 40000,
    dport: tuple.dport ?? 80,
    protocol,
  });
}

/** A real connection between two addresses that the namespace has on its loopback. */
export interface Connection {
  readonly port: number;
  readonly clientPort: number;
  close(): void;
}

export function addAddress(netnsPath: string, ip: string): void {
  const flags = ip.includes(':') ? ['nodad'] : [];
  const args = ['addr', 'replace', ip, 'dev', 'lo', ...flags];
  execFileSync('nsenter', [`--net=${netnsPath}`, 'ip', ...args]);
}

/** `from` connects to a listener at the wildcard address, which ends every connection that sends something. */
export async function connectInside(netnsPath: string, from: string, to: string): Promise<Connection> {
  const code = `
    const net = require('net');
    const server = net.createServer((socket) => socket.once('data', () => socket.end()));
    server.listen({ port: 0, host: '::' }, () => {
      const { port } = server.address();
      const client = net.connect({ port, host: '${to}', localAddress: '${from}' }, () =>
        console.log(JSON.stringify({ port, clientPort: client.localPort })));
    });`;
  const child = spawn('nsenter', [`--net=${netnsPath}`, process.execPath, '-e', code]);
  const line = await new Promise<string>((resolve, reject) => {
    child.stdout.once('data', (data: Buffer) => resolve(data.toString()));
    child.stderr.once('data', (data: Buffer) => reject(new Error(data.toString())));
  });
  const ports = JSON.parse(line) as { port: number; clientPort: number };
  return { ...ports, close: () => void child.kill('SIGKILL') };
}

/** The port of a connection that the listener of `connectInside` has ended: its end of it is in TIME_WAIT. */
export function endedConnection(netnsPath: string, from: string, to: string, port: number): number {
  const code = `
    const net = require('net');
    const client = net.connect({ port: ${port}, host: '${to}', localAddress: '${from}' }, () => {
      const { localPort } = client;
      client.once('close', () => console.log(localPort)).resume().write('x');
    });`;
  return Number(
    execFileSync('nsenter', [`--net=${netnsPath}`, process.execPath, '-e', code], { encoding: 'utf8' }),
  );
}

/** Adopts the listener at the wildcard address, as the agent does, for the instance of that number. */
export async function adopt(
  object: BpfObject,
  { slots }: Layouts,
  netns: number,
  port: number,
  direction: 'outbound' | 'inbound',
  number = 0,
): Promise<void> {
  const wanted = { host: '::', port, family: 6 } as const;
  const none = { outbound: [], inbound: [] };
  const listeners = new Listeners({
    map: object.map('listeners'),
    slots,
    instances: [{ name: 'default', number, ...none, [direction]: [wanted], owner: { uid: 0 } }],
    log: { info: () => undefined, warn: () => undefined },
    referred: () => new Set(Array.from({ length: 256 }, (_, index) => index)), // what others adopted stays
  });
  await withNetns(netns, () => ({ look: listeners.refresh() })).look;
}
