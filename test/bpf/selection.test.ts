/** Which flows are intercepted: what the programs do, beside what the agent says of it. */

import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type FlowSelection, judge, selectionOf } from '../../src/datapath/selection.js';
import { u32 } from '../../src/kernel/struct.js';
import { ALL_PORTS } from '../../src/net/ports.js';
import { SELECT_ALL, type SelectedDirection } from '../../src/pods/selection.js';
import { Cleanup, Netns } from '../unit/native-lab.js';
import { type RandomFlow, randomFlow, randomSelection } from '../unit/selection-model.js';
import { frame, HOST_MAC, POD_MAC, TCP } from './packets.js';
import {
  addAddress,
  adopt,
  type Connection,
  connectInside,
  countedBy,
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

const NO_SHARES = { outbound: [], inbound: [] };
const BOTH = { outbound: true, inbound: true };

const namespaces = new Cleanup();
const cleanup = new Cleanup();
let node: Netns;
let ifindex: number;
let steerIndex: number;
let listening: Connection;

beforeAll(async () => {
  node = namespaces.owned(new Netns());
  ifindex = node.addVeth('pod');
  steerIndex = node.addVeth('steer');
  node.exec('sysctl', '-qw', 'net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1');
  addAddress(node.path, POD[4]);
  addAddress(node.path, FAR[4]);
  listening = namespaces.owned(await connectInside(node.path, FAR[4], POD[4]));
});

afterAll(() => namespaces.run());
afterEach(() => cleanup.run());

class Direction extends OneProgram {
  constructor(readonly direction: SelectedDirection) {
    super(PROGRAMS[direction].object, steerIndex, (resource) => cleanup.owned(resource));
  }

  async ready(): Promise<this> {
    for (const number of NUMBERS) {
      await adopt(this.object, this.layouts, node.fd, listening.port, this.direction, number);
    }
    return this;
  }

  /** At a bridge port, for elsewhere a test run may assign no socket. */
  select(selection: FlowSelection | undefined, ips: readonly string[] = [POD[4], POD[6]]): void {
    const row = this.tables.enrol(UID, ifindex, true);
    this.tables.write(row, {
      ifindex,
      instance: OWN,
      failureOpen: false,
      dropOther: false,
      bridgeIndex: steerIndex,
      inbound: true,
      selection,
      ips,
    });
  }

  /** The number of the instance that takes the flow; undefined: it is left alone. */
  taker(flow: RandomFlow, flags: number = TCP.SYN): number | undefined {
    const tuple = this.#tuple(flow);
    const bytes = frame({ ...tuple, flags });
    if (this.direction === 'inbound') {
      bytes.set(POD_MAC, 0);
      bytes.set(HOST_MAC, 6);
    }
    const { program } = PROGRAMS[this.direction];
    const { action } = testRun(this.object, program, node.fd, bytes, { ifindex, ingress_ifindex: ELSEWHERE });
    const row = this.flows.get(flowKeyOf(this.layouts, tuple));
    expect(action).toBe(row === undefined ? NEXT : REDIRECT);
    return row && this.layouts.flow.number(row, 'instance');
  }

  forget(flow: RandomFlow): void {
    this.flows.delete(flowKeyOf(this.layouts, this.#tuple(flow)));
  }

  #tuple({ ip, port }: RandomFlow) {
    const pod = POD[ip.includes(':') ? 6 : 4];
    const [src, dst] = this.direction === 'outbound' ? [pod, ip] : [ip, pod];
    return { src, dst, dport: port };
  }

  sizes(): Record<string, number> {
    const names = ['selected', 'selections', 'port_pages', 'cidrs'] as const;
    return Object.fromEntries(names.map((name) => [name, this.object.map(name).entries().length]));
  }
}

describe.each(['outbound', 'inbound'] as const)('%s', (direction) => {
  it('a program does with 10,000 random flows what the agent says of them', async () => {
    const kernel = await new Direction(direction).ready();
    const selections = fc.sample(randomSelection, { numRuns: 200, seed: 1 });
    const flows = fc.sample(randomFlow, { numRuns: 10_000, seed: 2 });
    let left = 0;
    selections.forEach((selection, index) => {
      kernel.select(selection);
      for (const flow of flows.slice(index * 50, (index + 1) * 50)) {
        const { intercepted, share, rule } = judge(selection, direction, flow.ip, flow.port);
        const wanted = intercepted ? (share?.number ?? OWN) : undefined;
        expect({ flow, rule, number: kernel.taker(flow) }).toEqual({ flow, rule, number: wanted });
        left += intercepted ? 0 : 1;
      }
    });
    // Both have to occur for this to say anything.
    expect(left).toBeGreaterThan(2_000);
    expect(left).toBeLessThan(8_000);
  });

  it('a change holds for the next first packet, and leaves what is open alone', async () => {
    const kernel = await new Direction(direction).ready();
    const only = (text: number) =>
      selectionOf(
        SELECT_ALL,
        {
          ...SELECT_ALL,
          [direction]: { ports: [{ from: text, to: text }], include: undefined, exclude: [] },
        },
        NO_SHARES,
        BOTH,
      );
    const flow = { direction, ip: FAR[4], port: 80 };
    kernel.select(only(80));
    expect(kernel.taker(flow)).toBe(OWN);
    kernel.select(only(81));
    // Its record is there, so what follows goes where the first packet went.
    expect(kernel.taker(flow, TCP.ACK)).toBe(OWN);
    expect(kernel.taker({ ...flow, port: 443 })).toBeUndefined();
    // The same ports once more are another connection, and leave no record behind.
    expect(kernel.taker(flow)).toBeUndefined();
    expect(kernel.taker(flow, TCP.ACK)).toBeUndefined();
    expect(await countedBy(kernel.tables, direction === 'outbound' ? 'EGRESS' : 'INGRESS')).toEqual(
      expect.arrayContaining([expect.stringMatching(/^EXCLUDED [23]$/)]),
    );
  });

  it('fails closed: where a table lacks what it is to say, a flow is intercepted', async () => {
    const kernel = await new Direction(direction).ready();
    const none = selectionOf(
      SELECT_ALL,
      { ...SELECT_ALL, [direction]: { ports: [], include: undefined, exclude: [] } },
      NO_SHARES,
      BOTH,
    );
    const flow = { direction, ip: FAR[4], port: 80 };
    for (const name of ['port_pages', 'selections', 'selected'] as const) {
      kernel.select(none);
      expect(kernel.taker(flow)).toBeUndefined();
      const map = kernel.object.map(name);
      map.deleteMany(map.entries().map(([key]) => key));
      expect(kernel.taker(flow)).toBe(OWN);
      kernel.forget(flow);
      // Repaired by the next look at all of it.
      expect(kernel.tables.refresh().join()).toContain(name);
      expect(kernel.taker(flow)).toBeUndefined();
    }
  });
});

describe('the tables', () => {
  const choose = (ports: number, cidr: string) =>
    selectionOf(
      SELECT_ALL,
      {
        ...SELECT_ALL,
        outbound: {
          ports: [{ from: ports, to: ports }],
          include: undefined,
          exclude: [{ ip: cidr, length: 24 }],
        },
      },
      NO_SHARES,
      BOTH,
    );

  it('hold what is in use once, and nothing else', () => {
    const kernel = new Direction('outbound');
    kernel.select(choose(80, '10.0.0.0'));
    kernel.select(choose(80, '10.0.1.0'));
    kernel.select(choose(81, '10.0.1.0'));
    expect(kernel.sizes()).toMatchObject({ selected: 1, selections: 3 });
    kernel.tables.refresh();
    // A page with port 81, one without any and one with all; the prefix and the one of all IPv4 addresses.
    expect(kernel.sizes()).toEqual({ selected: 1, selections: 1, port_pages: 3, cidrs: 2 });
    kernel.select(undefined);
    kernel.tables.refresh();
    expect(kernel.sizes()).toEqual({ selected: 0, selections: 0, port_pages: 0, cidrs: 0 });
  });

  it('are found by the next agent, which writes nothing anew for the same words', () => {
    const kernel = new Direction('outbound');
    kernel.select(choose(80, '10.0.0.0'));
    const before = kernel.object.map('selected').get(u32(ifindex));
    const next = tablesOf(kernel.object, kernel.layouts);
    const kept = next.planAt(ifindex);
    expect(kept?.selection).toMatchObject({ number: before?.readUInt32LE(0) });
    // Held as it is, by an agent that does not know the words yet.
    const row = next.enrol(UID, ifindex, true);
    expect(next.write(row, kept as NonNullable<typeof kept>)).toEqual([]);
    expect(next.verify(row, kept as NonNullable<typeof kept>)).toBeUndefined();
    const again = { ...(kept as NonNullable<typeof kept>), selection: choose(80, '10.0.0.0') };
    expect(next.write(row, again)).toEqual([]);
    expect(kernel.sizes().selections).toBe(1);
  });

  it('take 10,000 CIDRs and 1,000 ranges of ports', () => {
    const kernel = new Direction('outbound');
    const exclude = Array.from({ length: 10_000 }, (_, n) => ({
      ip: `10.${n >> 8}.${n & 255}.0`,
      length: 24,
    }));
    const ports = Array.from({ length: 1_000 }, (_, n) => ({ from: 1 + n * 64, to: 32 + n * 64 }));
    kernel.select(
      selectionOf(
        { ...SELECT_ALL, outbound: { ports: ALL_PORTS, include: undefined, exclude } },
        { ...SELECT_ALL, outbound: { ports, include: undefined, exclude: [] } },
        NO_SHARES,
        BOTH,
      ),
    );
    expect(kernel.sizes().cidrs).toBe(10_001);
    expect(kernel.tables.refresh()).toEqual([]);
  });
});
