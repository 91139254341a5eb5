/**
 * What a packet costs in pod_egress, in nanoseconds: BPF_PROG_TEST_RUN with 1,000,000 repeats, median of 5 rounds in
 * which the builds take turns. The pod is behind a bridge port, for elsewhere a test run may not assign sockets.
 *
 *   make bench-run-times [BEFORE=folder with the objects of another build]
 */

import { execFileSync, spawn } from 'node:child_process';
import { join } from 'node:path';
import { Struct, u32 } from '../../src/kernel/struct.js';
import { BpfObject, openRingBuffer } from '../../src/native/bpf.js';
import { closeFd } from '../../src/native/descriptors.js';
import { interfaceIndex, openNamespace, withNetns } from '../../src/native/namespaces.js';
import { pidfdGetfd, pidfdOpen } from '../../src/native/sockets.js';
import { ipToBytes } from '../../src/net/ip.js';
import { frame, TCP } from '../bpf/packets.js';

const NETNS = `nsb${process.pid}`;
const POD = '10.66.0.3';
const FAR = '10.200.1.1';
const REPEATS = 1_000_000;
const ROUNDS = 5;
const ENDPOINT = 7;
/** Each from a port of its own: what a pod's new connections are. */
const CONNECTIONS = 40_000;

interface Connection {
  readonly pid: number;
  /** The listener's descriptor in that process. */
  readonly fd: number;
  readonly port: number;
  readonly clientPort: number;
}

/** A connection inside the namespace with the pod's tuple, and the listener that it came to. */
async function connectInside(): Promise<Connection & { close(): void }> {
  const code = `
    const net = require('net');
    const server = net.createServer(() => {}).listen({ port: 0, host: '0.0.0.0' }, () => {
      const { port } = server.address();
      const client = net.connect({ port, host: '${FAR}', localAddress: '${POD}' }, () => console.log(
        JSON.stringify({ pid: process.pid, fd: server._handle.fd, port, clientPort: client.localPort })));
    });`;
  const child = spawn('nsenter', [`--net=/run/netns/${NETNS}`, process.execPath, '-e', code]);
  const line = await new Promise<string>((resolve) =>
    child.stdout.once('data', (data: Buffer) => resolve(data.toString())),
  );
  return { ...(JSON.parse(line) as Connection), close: () => void child.kill('SIGKILL') };
}

class Build {
  readonly #object: BpfObject;
  readonly #context = Buffer.alloc(192);

  constructor(
    readonly name: string,
    folder: string,
    ifindex: number,
    readonly connection: Connection,
    followed: boolean,
  ) {
    this.#object = BpfObject.open(join(folder, 'intercept.bpf.o'));
    this.#object.load();
    this.#context.writeUInt32LE(ifindex, 40);
    const struct = (of: string, fields: string[]) => new Struct(this.#object.layout(of), fields);
    const endpoint = struct('endpoint', ['id', 'generation', 'flags', 'bridge_ifindex']);
    this.#set(
      'endpoints',
      u32(ifindex),
      endpoint.encode({ id: ENDPOINT, generation: 1, flags: 2, bridge_ifindex: ifindex }),
    );
    const source = struct('source_key', ['ifindex', 'address']);
    this.#set('sources', source.encode({ ifindex, address: ipToBytes(POD) }), Buffer.from([1]));
    const counters = this.#object.map('counters');
    counters.set(u32(ENDPOINT), Buffer.alloc(counters.valueSize));
    this.#adopt();
    const flowKey = struct('flow_key', ['src', 'dst', 'sport', 'dport', 'protocol']);
    const { clientPort: sport, port: dport } = connection;
    this.#set(
      'flows',
      flowKey.encode({ src: ipToBytes(POD), dst: ipToBytes(FAR), sport, dport, protocol: 6 }),
      struct('flow', ['endpoint', 'generation', 'ifindex']).encode({
        endpoint: ENDPOINT,
        generation: 1,
        ifindex,
      }),
    );
    if (followed) {
      this.#follow();
    }
  }

  /** Before there was a switch, every event was sent. */
  #follow(): void {
    try {
      this.#set('settings', u32(0), u32(1));
    } catch {
      // an older build
    }
    openRingBuffer(this.#object.map('events'), () => undefined);
  }

  #adopt(): void {
    const pidfd = pidfdOpen(this.connection.pid);
    const fd = pidfdGetfd(pidfd, this.connection.fd);
    this.#object.map('listeners').setSocket(u32(0), fd);
    closeFd(fd);
    closeFd(pidfd);
  }

  #set(map: string, key: Buffer, value: Buffer): void {
    const handle = this.#object.map(map);
    handle.set(key, value);
    handle.close();
  }

  /** Nanoseconds of one run. */
  run(data: Buffer, repeat: number): number {
    const program = this.#object.program('pod_egress');
    const { durationNs, retval } = program.testRun({ data, context: this.#context, repeat });
    program.close();
    if (retval !== 7) {
      throw new Error(`the packet was not redirected: ${retval}`);
    }
    return durationNs;
  }

  runEach(frames: readonly Buffer[]): number {
    const program = this.#object.program('pod_egress');
    let sum = 0;
    for (const data of frames) {
      sum += program.testRun({ data, context: this.#context }).durationNs;
    }
    program.close();
    return Math.round(sum / frames.length);
  }
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

execFileSync('ip', ['netns', 'add', NETNS]);
const netns = openNamespace(`/run/netns/${NETNS}`);
let connection: Awaited<ReturnType<typeof connectInside>> | undefined;
try {
  for (const words of [
    'link add pod type veth peer name inside',
    'link set lo up',
    'link set pod up',
    'link set inside up',
    `addr add ${POD}/32 dev lo`,
    `addr add ${FAR}/32 dev lo`,
  ]) {
    execFileSync('ip', ['-n', NETNS, ...words.split(' ')]);
  }
  const ifindex = withNetns(netns, () => interfaceIndex('pod')) ?? 0;
  connection = await connectInside();
  const { port, clientPort } = connection;
  const now = join(import.meta.dirname, '../../build/bpf');
  const before = process.env.BEFORE;
  const inside = connection;
  const builds = [
    ...(before === undefined ? [] : [new Build('before', before, ifindex, inside, true)]),
    new Build('now', now, ifindex, inside, false),
    new Build('now, followed', now, ifindex, inside, true),
  ];
  const base = { src: POD, dst: FAR, dport: port };
  const later = frame({ ...base, sport: clientPort, flags: TCP.ACK });
  const syn = frame({ ...base, sport: 999 });
  const syns = Array.from({ length: CONNECTIONS }, (_, n) => frame({ ...base, sport: 1024 + n }));
  const cases: Record<string, (build: Build) => number> = {
    FLOW_PACKET: (build) => build.run(later, REPEATS),
    'FLOW_STARTED, the same again': (build) => build.run(syn, REPEATS),
    [`FLOW_STARTED, ${CONNECTIONS} different`]: (build) => build.runEach(syns),
  };
  for (const [name, run] of Object.entries(cases)) {
    const taken = builds.map((): number[] => []);
    for (let round = 0; round < ROUNDS; round++) {
      builds.forEach((build, index) => {
        taken[index]?.push(withNetns(netns, () => run(build)));
      });
    }
    const row = builds.map((build, index) => {
      const values = taken[index] ?? [];
      return `${build.name} ${median(values)} (${Math.min(...values)}–${Math.max(...values)})`;
    });
    console.log(`${name}: ${row.join(' | ')} ns`);
  }
} finally {
  connection?.close();
  closeFd(netns);
  execFileSync('ip', ['netns', 'del', NETNS]);
}
process.exit(0);
