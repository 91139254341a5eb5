/** Datagrams: what the programs do with one, beside what the agent says of it; and the answer that nobody is there. */

import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { Listeners } from '../../src/datapath/listeners.js';
import { datagramsOf, type FlowSelection, judge } from '../../src/datapath/selection.js';
import { listenForDatagrams } from '../../src/native/datagrams.js';
import { withNetns } from '../../src/native/namespaces.js';
import { udpListeners } from '../../src/native/sockets.js';
import { ipToBytes } from '../../src/net/ip.js';
import { SELECT_ALL, type SelectedDirection } from '../../src/pods/selection.js';
import { Cleanup, Netns } from '../unit/native-lab.js';
import { type RandomFlow, randomFlow, randomSelection } from '../unit/selection-model.js';
import { type FrameOptions, frame, HOST_MAC, POD_MAC, PROTOCOL, pseudoHeader, sum16 } from './packets.js';
import {
  countedBy,
  DROP,
  ELSEWHERE,
  FAR,
  flowKeyOf,
  NEXT,
  NUMBERS,
  OneProgram,
  OWN,
  POD,
  PROGRAMS,
  REDIRECT,
  tablesOf,
  testRun,
  UID,
} from './test-run.js';

const DIRECTIONS = ['outbound', 'inbound'] as const;
const FAMILIES = [4, 6] as const;
const TAKES = { outbound: true, inbound: true };

const namespaces = new Cleanup();
const cleanup = new Cleanup();
let node: Netns;
let ifindex: number;
let steerIndex: number;
let port: number;

beforeAll(() => {
  node = namespaces.owned(new Netns());
  ifindex = node.addVeth('pod');
  steerIndex = node.addVeth('steer');
  node.exec('ip', 'link', 'set', 'lo', 'up');
  const listening = node.run(() => listenForDatagrams({ ip: '::', port: 0 }, false, () => undefined));
  namespaces.owned(listening);
  port = listening.port;
});

afterAll(() => namespaces.run());
afterEach(() => cleanup.run());

interface Settings {
  readonly failureOpen?: boolean;
  readonly dropOther?: boolean;
  readonly closing?: boolean;
  readonly observed?: boolean;
}

class Direction extends OneProgram {
  constructor(readonly direction: SelectedDirection) {
    super(PROGRAMS[direction].object, steerIndex, (resource) => cleanup.owned(resource));
  }

  /** Each of the instances has the one socket. */
  async ready(): Promise<this> {
    const wanted = [{ host: '::', port, family: 6 } as const];
    const none = { outbound: [], inbound: [] };
    const listeners = new Listeners({
      map: this.object.map('udp_listeners'),
      slots: this.layouts.slots,
      sockets: udpListeners,
      protocol: 'udp',
      instances: NUMBERS.map((number) => ({
        name: `of-${number}`,
        number,
        ...none,
        [this.direction]: wanted,
        owner: { uid: 0 },
      })),
      log: { info: () => undefined, warn: () => undefined },
      referred: () => new Set(),
    });
    await withNetns(node.fd, () => ({ look: listeners.refresh() })).look;
    expect(listeners.status().filter(({ adopted }) => adopted)).toHaveLength(2 * NUMBERS.length);
    return this;
  }

  /** At a bridge port, for elsewhere a test run may assign no socket. */
  select(datagrams: FlowSelection | undefined, settings: Settings = {}): void {
    const row = this.tables.enrol(UID, ifindex, true);
    this.tables.write(row, {
      ifindex,
      instance: OWN,
      failureOpen: false,
      dropOther: false,
      bridgeIndex: steerIndex,
      inbound: true,
      datagrams,
      ips: [POD[4], POD[6]],
      ...settings,
    });
  }

  run(options: FrameOptions) {
    const bytes = frame({ protocol: PROTOCOL.UDP, ...options });
    if (this.direction === 'inbound') {
      bytes.set(POD_MAC, 0);
      bytes.set(HOST_MAC, 6);
    }
    const { program } = PROGRAMS[this.direction];
    return testRun(this.object, program, node.fd, bytes, { ifindex, ingress_ifindex: ELSEWHERE });
  }

  record(tuple: FrameOptions): Buffer | undefined {
    return this.flows.get(flowKeyOf(this.layouts, tuple, PROTOCOL.UDP));
  }

  rewrite(tuple: FrameOptions, field: string, value: number): void {
    const row = this.record(tuple) as Buffer;
    row.writeUInt32LE(value, this.layouts.flow.offsetOf(field));
    this.flows.set(flowKeyOf(this.layouts, tuple, PROTOCOL.UDP), row);
  }

  /** The number of the instance that takes it; undefined: it is left alone. */
  taker(flow: RandomFlow): number | undefined {
    const tuple = this.tuple(flow.ip, flow.port);
    const { action } = this.run(tuple);
    const row = this.record(tuple);
    expect(action).toBe(row === undefined ? NEXT : REDIRECT);
    return row && this.layouts.flow.number(row, 'instance');
  }

  tuple(ip: string, dport: number) {
    const pod = POD[ip.includes(':') ? 6 : 4];
    const [src, dst] = this.direction === 'outbound' ? [pod, ip] : [ip, pod];
    return { src, dst, dport };
  }

  counted(): Promise<string[]> {
    return countedBy(this.tables, this.direction === 'outbound' ? 'EGRESS' : 'INGRESS');
  }
}

/** Of both directions that port alone. */
function only(dport: number): FlowSelection {
  const rules = { ports: [{ from: dport, to: dport }], include: undefined, exclude: [] };
  const none = { outbound: [], inbound: [] };
  return datagramsOf({ outbound: rules, inbound: rules }, SELECT_ALL, none, TAKES) as FlowSelection;
}

describe.each(DIRECTIONS)('%s', (direction) => {
  it('a program does with 10,000 random datagrams what the agent says of them', async () => {
    const kernel = await new Direction(direction).ready();
    const selections = fc.sample(randomSelection, { numRuns: 200, seed: 3 });
    const flows = fc.sample(randomFlow, { numRuns: 10_000, seed: 4 });
    let left = 0;
    selections.forEach((drawn, index) => {
      const selection =
        drawn &&
        datagramsOf(
          { outbound: drawn.outbound.node, inbound: drawn.inbound.node },
          { outbound: drawn.outbound.pod, inbound: drawn.inbound.pod },
          { outbound: drawn.outbound.shares, inbound: drawn.inbound.shares },
          { outbound: drawn.outbound.rest, inbound: drawn.inbound.rest },
        );
      kernel.select(selection);
      for (const [n, flow] of flows.slice(index * 50, (index + 1) * 50).entries()) {
        const { intercepted, share, rule } =
          selection === undefined
            ? { intercepted: false, share: undefined, rule: 'none is named' }
            : judge(selection, direction, flow.ip, flow.port, true);
        const wanted = intercepted ? (share?.number ?? OWN) : undefined;
        // Each from a port of its own: a flow that is known stays where it is.
        const tuple = { ...kernel.tuple(flow.ip, flow.port), sport: 1_024 + index * 50 + n };
        const { action } = kernel.run(tuple);
        const row = kernel.record(tuple);
        expect(action).toBe(row === undefined ? NEXT : REDIRECT);
        const number = row && kernel.layouts.flow.number(row, 'instance');
        expect({ flow, rule, number }).toEqual({ flow, rule, number: wanted });
        left += intercepted ? 0 : 1;
      }
    });
    expect(left).toBeGreaterThan(2_000);
    expect(left).toBeLessThan(9_000);
  });

  it('a flow that is known stays where it is, until nothing was said on it for the time of its limit', async () => {
    const kernel = await new Direction(direction).ready();
    const tuple = kernel.tuple(FAR[4], 53);
    kernel.select(only(53));
    expect(kernel.taker({ direction, ip: FAR[4], port: 53 })).toBe(OWN);
    kernel.select(only(54));
    expect(kernel.run(tuple).action).toBe(REDIRECT);
    const nowS = Number(process.hrtime.bigint() / 1_000_000_000n);
    const { udpIdleSeconds } = kernel.layouts.limits;
    kernel.rewrite(tuple, 'seen_s', nowS - udpIdleSeconds + 10);
    expect(kernel.run(tuple).action).toBe(REDIRECT);
    expect(kernel.layouts.flow.number(kernel.record(tuple) as Buffer, 'seen_s')).toBeGreaterThan(nowS - 2);
    kernel.rewrite(tuple, 'seen_s', nowS - udpIdleSeconds - 10);
    expect(kernel.run(tuple).action).toBe(NEXT);
    expect(await kernel.counted()).toEqual(
      expect.arrayContaining(['FLOW_STARTED 1', 'FLOW_PACKET 2', 'NOT_TCP 1']),
    );
  });

  it('of a pod that is only observed all of it passes, but what the proxy has of it', async () => {
    const kernel = await new Direction(direction).ready();
    kernel.select(only(53));
    const known = { ...kernel.tuple(FAR[4], 53), sport: 7 };
    expect(kernel.run(known).action).toBe(REDIRECT);
    kernel.select(only(53), { observed: true });
    expect(kernel.run(known).action).toBe(REDIRECT);
    expect(kernel.run(kernel.tuple(FAR[4], 53)).action).toBe(NEXT);
    expect(kernel.run({ ...kernel.tuple(FAR[4], 53), fragment: 0x2000 }).action).toBe(NEXT);
    expect(await kernel.counted()).toEqual(
      expect.arrayContaining(['FLOW_PACKET 1', 'WOULD_INTERCEPT 1', 'OBSERVED 1']),
    );
  });

  it('without any port that is named nothing is looked at', async () => {
    const kernel = await new Direction(direction).ready();
    kernel.select(undefined);
    expect(kernel.run(kernel.tuple(FAR[4], 53)).action).toBe(NEXT);
    expect(kernel.run({ ...kernel.tuple(FAR[4], 53), fragment: 0x2000 }).action).toBe(NEXT);
  });

  it('what has no port that can be seen is dropped where one is named', async () => {
    const kernel = await new Direction(direction).ready();
    kernel.select(only(53));
    const tuple = kernel.tuple(FAR[4], 54);
    expect(kernel.run(tuple).action).toBe(NEXT);
    const short = (bytes: Buffer, { l4 }: { l4: number }) => void bytes.writeUInt16BE(7, l4 + 4);
    expect(kernel.run({ ...tuple, fragment: 0x2000 }).action).toBe(DROP); // the first
    expect(kernel.run({ ...tuple, fragment: 0x0001 }).action).toBe(DROP); // a later one
    expect(kernel.run({ ...tuple, vlans: [5] }).action).toBe(DROP);
    expect(kernel.run({ ...tuple, patch: short }).action).toBe(DROP);
    expect(await kernel.counted()).toEqual(
      expect.arrayContaining(['FRAGMENT 2', 'VLAN 1', 'MALFORMED 1', 'NOT_TCP 1']),
    );
  });

  describe.each(FAMILIES)('IPv%i', (family) => {
    const ICMP = {
      4: { protocol: 1, type: 3, code: 3, ip: 20 },
      6: { protocol: 58, type: 1, code: 4, ip: 40 },
    } as const;

    it.each([0, 1, 1_200])(
      'without a listener one of %i bytes is answered "port unreachable"',
      async (size) => {
        const kernel = new Direction(direction);
        kernel.select(only(53));
        const tuple = { ...kernel.tuple(FAR[family], 53), payload: Buffer.alloc(size, 0xa5) };
        const { action, data } = kernel.run(tuple);
        expect(action).toBe(REDIRECT);
        const icmp = ICMP[family];
        const asked = frame({ protocol: PROTOCOL.UDP, ...tuple });
        // Back to where it came from.
        const [to, from] = direction === 'outbound' ? [POD_MAC, HOST_MAC] : [HOST_MAC, POD_MAC];
        expect(data.subarray(0, 6)).toEqual(to);
        expect(data.subarray(6, 12)).toEqual(from);
        const [network, message] = [data.subarray(14, 14 + icmp.ip), data.subarray(14 + icmp.ip)];
        expect([message[0], message[1]]).toEqual([icmp.type, icmp.code]);
        // The headers of what is answered, and the eight bytes behind them.
        expect(message.subarray(8)).toEqual(asked.subarray(14, 14 + icmp.ip + 8));
        const address = (ip: string) => Buffer.from(ipToBytes(ip)).subarray(family === 4 ? 12 : 0);
        const length = family === 4 ? 4 : 16;
        const at = family === 4 ? 12 : 8;
        expect(network.subarray(at, at + length)).toEqual(address(tuple.dst));
        expect(network.subarray(at + length, at + 2 * length)).toEqual(address(tuple.src));
        if (family === 4) {
          expect(sum16(network)).toBe(0xffff);
          expect(sum16(message)).toBe(0xffff);
          expect(network.readUInt16BE(2)).toBe(network.length + message.length);
          expect(network[9]).toBe(icmp.protocol);
        } else {
          const pseudo = pseudoHeader(tuple.dst, tuple.src, icmp.protocol, message.length);
          expect(sum16(pseudo, message)).toBe(0xffff);
          expect(network.readUInt16BE(4)).toBe(message.length);
          expect(network[6]).toBe(icmp.protocol);
        }
        expect(await kernel.counted()).toContain('NO_LISTENER_RESET 1');
        expect(kernel.record(tuple)).toBeUndefined();
      },
    );

    it('or goes on, where the failure policy is open', async () => {
      const kernel = new Direction(direction);
      kernel.select(only(53), { failureOpen: true });
      expect(kernel.run(kernel.tuple(FAR[family], 53)).action).toBe(NEXT);
      expect(await kernel.counted()).toContain('NO_LISTENER_OPEN 1');
    });
  });
});

describe('outbound', () => {
  it('one to many is not answered', () => {
    const kernel = new Direction('outbound');
    kernel.select(only(53));
    for (const dst of ['224.0.0.251', '255.255.255.255', 'ff02::fb']) {
      expect(kernel.run(kernel.tuple(dst, 53)).action).toBe(DROP);
    }
  });

  it('a source that is nobody’s starts no flow, and what comes before a pod has an address passes', async () => {
    const kernel = await new Direction('outbound').ready();
    kernel.select(only(53));
    expect(kernel.run({ src: '10.66.0.9', dst: FAR[4], dport: 53 }).action).toBe(DROP);
    expect(kernel.run({ src: 'fe80::1', dst: FAR[6], dport: 53 }).action).toBe(DROP);
    expect(kernel.run({ src: '0.0.0.0', dst: '255.255.255.255', dport: 67 }).action).toBe(NEXT);
    expect(await kernel.counted()).toEqual(expect.arrayContaining(['SPOOFED_SOURCE 2', 'NOT_TCP 1']));
  });

  it('a loopback address is none that the proxy is to ask', async () => {
    const kernel = await new Direction('outbound').ready();
    kernel.select(only(53));
    expect(kernel.run(kernel.tuple('127.0.0.53', 53)).action).toBe(DROP);
    expect(await kernel.counted()).toContain('LOOPBACK 1');
  });

  it('where other protocols are closed, what is named goes to the listener, and open does not open', async () => {
    const kernel = await new Direction('outbound').ready();
    kernel.select(only(53), { dropOther: true });
    expect(kernel.run(kernel.tuple(FAR[4], 53)).action).toBe(REDIRECT);
    expect(kernel.run(kernel.tuple(FAR[4], 54)).action).toBe(DROP);
    const none = new Direction('outbound');
    none.select(only(53), { dropOther: true, failureOpen: true });
    expect(none.run(none.tuple(FAR[4], 53)).action).toBe(DROP);
  });
});

it('what an agent has written is found by the next, and held as it is', () => {
  const kernel = new Direction('outbound');
  const rules = { ports: [{ from: 53, to: 53 }], include: undefined, exclude: [] };
  const node = { outbound: rules, inbound: { ...rules, ports: [] } };
  const none = { outbound: [], inbound: [] };
  kernel.select(datagramsOf(node, SELECT_ALL, none, TAKES));
  const next = tablesOf(kernel.object, kernel.layouts);
  const kept = next.planAt(ifindex);
  expect(kept?.datagrams).toMatchObject({ looksAt: { outbound: true, inbound: false } });
  const row = next.enrol(UID, ifindex, true);
  expect(next.write(row, kept as NonNullable<typeof kept>)).toEqual([]);
  expect(next.verify(row, kept as NonNullable<typeof kept>)).toBeUndefined();
  expect(next.refresh()).toEqual([]);
});

describe('inbound', () => {
  it('a pod that is about to end refuses new flows, and has those that it had', async () => {
    const kernel = await new Direction('inbound').ready();
    kernel.select(only(53));
    expect(kernel.taker({ direction: 'inbound', ip: FAR[4], port: 53 })).toBe(OWN);
    kernel.select(only(53), { closing: true });
    expect(kernel.run(kernel.tuple(FAR[4], 53)).action).toBe(REDIRECT);
    expect(kernel.run({ ...kernel.tuple(FAR[4], 53), sport: 2 }).action).toBe(REDIRECT);
    expect(await kernel.counted()).toEqual(
      expect.arrayContaining(['FLOW_STARTED 1', 'FLOW_PACKET 1', 'CLOSING 1']),
    );
  });

  it('what a bridge floods to an address of others is not touched', async () => {
    const kernel = await new Direction('inbound').ready();
    kernel.select(only(53));
    expect(kernel.run({ src: FAR[4], dst: '10.66.0.9', dport: 53 }).action).toBe(NEXT);
    expect(await kernel.counted()).toContain('NOT_OURS 1');
  });
});
