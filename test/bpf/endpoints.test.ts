import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type EndpointPlan, EndpointTables } from '../../src/datapath/endpoints.js';
import type { DatapathPrograms } from '../../src/datapath/manifest.js';
import { u32 } from '../../src/kernel/struct.js';
import { possibleCpus } from '../../src/native/bpf.js';
import { ipToBytes } from '../../src/net/ip.js';
import type { PodUid } from '../../src/pods/pod.js';
import { Cleanup, temporaryBpffs } from '../unit/native-lab.js';
import { openIn } from './datapath-lab.js';

const WEB = 'uid-of-web-0' as PodUid;
const SHOP = 'uid-of-shop-0' as PodUid;
const PLAN: EndpointPlan = {
  ifindex: 40,
  instance: 2,
  failureOpen: false,
  dropOther: false,
  bridgeIndex: 0,
  shaped: false,
  inbound: false,
  closing: false,
  observed: false,
  ips: ['10.66.0.3', 'fd00:66::3'],
};

const cleanup = new Cleanup();
let datapath: DatapathPrograms;
let tables: EndpointTables;

beforeEach(() => {
  datapath = openIn(cleanup, temporaryBpffs(cleanup));
  tables = restarted();
});

afterEach(() => cleanup.run());

/** The tables as the next agent finds them. */
function restarted(): EndpointTables {
  return new EndpointTables(datapath.maps, datapath.layouts);
}

function sources(): string[] {
  const { sourceKey } = datapath.layouts;
  return datapath.maps.sources
    .entries()
    .map(([key]) => `${sourceKey.number(key, 'ifindex')} ${sourceKey.bytes(key, 'address').toString('hex')}`)
    .sort();
}

function sourceOf(ifindex: number, ip: string): string {
  return `${ifindex} ${Buffer.from(ipToBytes(ip)).toString('hex')}`;
}

function enrol(uid: PodUid, plan: EndpointPlan = PLAN, wasEnrolled = false) {
  const row = tables.enrol(uid, plan.ifindex, wasEnrolled);
  tables.write(row, plan);
  return row;
}

describe('what is in the kernel', () => {
  const BRIDGED = {
    ...PLAN,
    ifindex: 41,
    instance: 1,
    failureOpen: true,
    bridgeIndex: 7,
    ips: ['10.66.0.4'],
  };

  it('is told pod by pod, as it was written, also to the next agent', () => {
    const row = enrol(WEB);
    tables.write(row, BRIDGED);
    enrol(SHOP, { ...PLAN, ifindex: 42, ips: ['10.66.0.5'] });
    for (const agent of [tables, restarted()]) {
      expect(agent.plansOf(WEB).sort((a, b) => a.ifindex - b.ifindex)).toEqual([PLAN, BRIDGED]);
      expect([40, 41, 42, 43].map((ifindex) => agent.ownerOf(ifindex))).toEqual([WEB, WEB, SHOP, undefined]);
      expect([...agent.addresses()].sort()).toEqual(['10.66.0.3', '10.66.0.4', '10.66.0.5', 'fd00:66::3']);
    }
    tables.remove(40);
    expect(tables.plansOf(WEB)).toEqual([BRIDGED]);
    expect([...tables.addresses()].sort()).toEqual(['10.66.0.4', '10.66.0.5']);
  });
});

describe('the version', () => {
  it('is the same while nobody writes, and another after whoever did', () => {
    const row = enrol(WEB);
    tables.refresh();
    const { version } = tables;
    tables.write(row, PLAN);
    tables.refresh();
    expect(tables.version).toBe(version);
    const { endpoints } = datapath.maps;
    const before = endpoints.get(u32(PLAN.ifindex)) ?? Buffer.alloc(0);
    endpoints.delete(u32(PLAN.ifindex));
    tables.refresh();
    expect(tables.version).not.toBe(version);
    expect(tables.isLive(row)).toBe(false);
    endpoints.set(u32(PLAN.ifindex), before);
    tables.refresh();
    expect(tables.isLive(row)).toBe(true);
  });

  it('tells of what somebody puts back to what it was before we wrote', () => {
    const row = enrol(WEB);
    tables.refresh();
    const { endpoints } = datapath.maps;
    const old = endpoints.get(u32(PLAN.ifindex)) ?? Buffer.alloc(0);
    tables.write(row, { ...PLAN, instance: 3 });
    const { version } = tables;
    endpoints.set(u32(PLAN.ifindex), old);
    tables.refresh();
    expect(tables.version).not.toBe(version);
    expect(tables.write(row, { ...PLAN, instance: 3 })).toEqual(['the endpoint was not as written']);
  });
});

describe('ids', () => {
  it('count up, and each pod keeps its own', () => {
    expect(tables.enrol(WEB, 40, false).id).toBe(1);
    expect(tables.enrol(SHOP, 41, false).id).toBe(2);
    expect(tables.enrol(WEB, 40, true).id).toBe(1);
    expect(tables.rowOf(SHOP)).toEqual(tables.rowById(2));
    expect(tables.rows().map(({ id }) => id)).toEqual([1, 2]);
  });

  it('are not given out again after their pod is forgotten, by this agent or the next', () => {
    enrol(WEB);
    enrol(SHOP, { ...PLAN, ifindex: 41 });
    tables.forget(WEB);
    tables.forget(SHOP);
    expect(tables.enrol('third' as PodUid, 42, false).id).toBe(3);
    tables.forget('third' as PodUid);
    tables = restarted();
    expect(tables.rows()).toEqual([]);
    expect(tables.enrol(WEB, 40, false)).toMatchObject({ id: 4, generation: 1 });
  });

  it('of a pod whose name does not fit are not spent', () => {
    expect(() => tables.enrol('x'.repeat(65) as PodUid, 40, false)).toThrow(
      `pod uid "${'x'.repeat(65)}" is longer than 64 bytes`,
    );
    const longest = 'y'.repeat(64) as PodUid;
    expect(tables.enrol(longest, 40, false).id).toBe(1);
    expect(restarted().rowOf(longest)?.id).toBe(1);
  });
});

describe('the generation', () => {
  it('stays while the pod is enrolled where it was', () => {
    const row = enrol(WEB);
    expect(row.generation).toBe(1);
    expect(tables.enrol(WEB, 40, true)).toEqual(row);
    expect(tables.enrol(WEB, 40, false)).toEqual(row);
  });

  it('stays over a restart of the agent', () => {
    const row = enrol(WEB);
    tables = restarted();
    expect(tables.rowOf(WEB)).toEqual(row);
    expect(tables.isLive(row)).toBe(true);
    expect(tables.enrol(WEB, 40, false)).toEqual(row);
    expect(tables.write(row, PLAN)).toEqual([]);
  });

  it('grows when the pod is enrolled anew', () => {
    const { id } = enrol(WEB);
    tables.remove(PLAN.ifindex);
    expect(enrol(WEB)).toEqual({ uid: WEB, id, generation: 2, ifindex: 40, sinceBirth: false });
    tables = restarted();
    tables.remove(PLAN.ifindex);
    expect(enrol(WEB)).toEqual({ uid: WEB, id, generation: 3, ifindex: 40, sinceBirth: false });
  });

  it('grows when the pod comes up at another interface, even without a pause', () => {
    enrol(WEB);
    const moved = { ...PLAN, ifindex: 77 };
    expect(enrol(WEB, moved, true)).toMatchObject({ id: 1, generation: 2, ifindex: 77 });
  });

  it('grows when another pod had the interface meanwhile', () => {
    enrol(WEB);
    enrol(SHOP);
    expect(tables.isLive({ uid: WEB, id: 1, generation: 1, ifindex: 40, sinceBirth: false })).toBe(false);
    expect(tables.enrol(WEB, 40, false)).toMatchObject({ id: 1, generation: 2 });
  });
});

describe('a pod that is enrolled before its first process', () => {
  const born = () => {
    const row = tables.enrol(WEB, PLAN.ifindex, false, true);
    tables.write(row, PLAN);
    return row;
  };

  it('is so for the kernel, and for the next agent', () => {
    expect(tables.write(born(), PLAN)).toEqual([]);
    const { endpoint, flags } = datapath.layouts;
    const value = datapath.maps.endpoints.get(u32(40)) ?? Buffer.alloc(0);
    expect(endpoint.number(value, 'flags')).toBe(flags.sinceBirth);
    tables = restarted();
    expect(tables.enrol(WEB, 40, false)).toMatchObject({ generation: 1, sinceBirth: true });
    expect(tables.write(tables.enrol(WEB, 40, true), PLAN)).toEqual([]);
  });

  it('is not any more once it has been without us', () => {
    born();
    tables.remove(PLAN.ifindex);
    expect(enrol(WEB)).toMatchObject({ generation: 2, sinceBirth: false });
    tables = restarted();
    expect(tables.enrol(WEB, 40, false).sinceBirth).toBe(false);
  });
});

it('the turns of a pod that is forgotten are free again soon, also by the next agent, and nobody else loses any', () => {
  const [web, shop] = [enrol(WEB), enrol(SHOP, { ...PLAN, ifindex: 41 })];
  const { share, turn, flowKey } = datapath.layouts;
  for (const { id } of [web, shop]) {
    datapath.maps.shares.set(u32(id), share.encode({ recorded: 20_000 }));
    for (const number of [0, 16_383]) {
      datapath.maps.turns.set(turn.encode({ endpoint: id, number }), flowKey.encode({ sport: 1 }));
    }
  }
  const held = () => datapath.maps.turns.entries().map(([key]) => turn.number(key, 'endpoint'));
  tables.forget(WEB);
  tables.refresh(); // the last ones
  expect(held().sort()).toEqual([web.id, shop.id, shop.id].sort());
  tables = restarted();
  for (let look = 0; look < 4; look++) {
    tables.refresh();
  }
  expect(held()).toEqual([shop.id, shop.id]);
  expect(datapath.maps.shares.entries()).toHaveLength(1);
});

it('pods that are forgotten together, with few flows each, leave together', () => {
  const { share, turn, flowKey } = datapath.layouts;
  for (const ifindex of [51, 52, 53]) {
    const uid = `uid-${ifindex}` as PodUid;
    const { id } = enrol(uid, { ...PLAN, ifindex });
    datapath.maps.shares.set(u32(id), share.encode({ recorded: ifindex - 51 }));
    datapath.maps.turns.set(turn.encode({ endpoint: id, number: 0 }), flowKey.encode({ sport: 1 }));
    tables.forget(uid);
  }
  tables.refresh();
  expect(datapath.maps.shares.entries()).toEqual([]);
  expect(datapath.maps.turns.entries()).toHaveLength(1); // of the one that had not recorded any
});

describe('an endpoint', () => {
  it('is in the kernel as planned, and only then verified', () => {
    const row = tables.enrol(WEB, PLAN.ifindex, false);
    expect(tables.verify(row, PLAN)).toBe('the endpoint of ifindex 40 is not in the kernel as programmed');
    expect(tables.write(row, PLAN)).not.toEqual([]);
    expect(tables.verify(row, PLAN)).toBeUndefined();
    expect(tables.write(row, PLAN)).toEqual([]);
    const value = datapath.maps.endpoints.get(u32(40));
    expect(value).toEqual(
      datapath.layouts.endpoint.encode({ id: 1, generation: 1, instance: 2, flags: 0, bridge_ifindex: 0 }),
    );
    expect(sources()).toEqual([sourceOf(40, '10.66.0.3'), sourceOf(40, 'fd00:66::3')].sort());
  });

  it.each([
    ['instance', { instance: 3 }, { instance: 3, flags: 0, bridge_ifindex: 0 }],
    ['failure policy', { failureOpen: true }, { instance: 2, flags: 1, bridge_ifindex: 0 }],
    ['bridge', { bridgeIndex: 9 }, { instance: 2, flags: 2, bridge_ifindex: 9 }],
  ])('follows a change of its %s', (_what, change, written) => {
    const row = enrol(WEB);
    const plan = { ...PLAN, ...change };
    expect(tables.verify(row, plan)).toBeDefined();
    expect(tables.write(row, plan)).not.toEqual([]);
    expect(tables.verify(row, plan)).toBeUndefined();
    expect(datapath.maps.endpoints.get(u32(40))).toEqual(
      datapath.layouts.endpoint.encode({ id: 1, generation: 1, ...written }),
    );
  });

  it('gains and loses addresses', () => {
    const row = enrol(WEB);
    const more = { ...PLAN, ips: [...PLAN.ips, '10.66.0.4'] };
    expect(tables.verify(row, more)).toBe('the source address 10.66.0.4 is not in the kernel');
    expect(tables.write(row, more)).not.toEqual([]);
    expect(sources()).toContain(sourceOf(40, '10.66.0.4'));
    expect(tables.write(row, { ...PLAN, ips: ['10.66.0.4'] })).not.toEqual([]);
    expect(sources()).toEqual([sourceOf(40, '10.66.0.4')]);
  });

  it("loses addresses that the agent before wrote, and leaves other interfaces' alone", () => {
    enrol(WEB);
    enrol(SHOP, { ...PLAN, ifindex: 41 });
    tables = restarted();
    const row = tables.enrol(WEB, 40, false);
    tables.write(row, { ...PLAN, ips: ['fd00:66::3'] });
    expect(sources()).toEqual(
      [sourceOf(40, 'fd00:66::3'), sourceOf(41, '10.66.0.3'), sourceOf(41, 'fd00:66::3')].sort(),
    );
  });

  it('that somebody took out of the kernel is written again', () => {
    const row = enrol(WEB);
    datapath.maps.endpoints.delete(u32(40));
    const key = datapath.layouts.sourceKey.encode({ ifindex: 40, address: ipToBytes('10.66.0.3') });
    datapath.maps.sources.delete(key);
    tables.refresh();
    expect(tables.verify(row, PLAN)).toBeDefined();
    expect(tables.write(row, PLAN)).not.toEqual([]);
    expect(tables.verify(row, PLAN)).toBeUndefined();
  });

  it('is removed with its addresses; its row stays, so that it can still be named', () => {
    const row = enrol(WEB);
    enrol(SHOP, { ...PLAN, ifindex: 41 });
    expect(tables.liveInterfaces().sort()).toEqual([40, 41]);
    tables.remove(40);
    expect(datapath.maps.endpoints.get(u32(40))).toBeUndefined();
    expect(sources()).toEqual([sourceOf(41, '10.66.0.3'), sourceOf(41, 'fd00:66::3')].sort());
    expect(tables.liveInterfaces()).toEqual([41]);
    expect(tables.rowById(row.id)).toEqual(row);
    expect(tables.isLive(row)).toBe(false);
    tables.remove(40);
  });

  it('of the agent before is known by its interface, even where only its addresses are left', () => {
    enrol(WEB);
    datapath.maps.endpoints.delete(u32(40));
    tables = restarted();
    expect(tables.liveInterfaces()).toEqual([40]);
    tables.remove(40);
    expect(sources()).toEqual([]);
  });
});

describe('counters', () => {
  /** Writes what each CPU has counted, as the programs do. */
  function count(endpointId: number, verdict: string, perCpu: readonly number[]): void {
    const value = datapath.maps.counters.get(u32(endpointId)) ?? Buffer.alloc(0);
    const stride = value.length / possibleCpus();
    const index = datapath.layouts.verdicts.indexOf(verdict);
    perCpu.forEach((packets, cpu) => {
      value.writeBigUInt64LE(BigInt(packets), cpu * stride + index * 8);
    });
    datapath.maps.counters.set(u32(endpointId), value);
  }

  it('are summed over the CPUs, per pod and verdict', async () => {
    enrol(WEB);
    const perCpu = Array.from({ length: possibleCpus() }, (_, cpu) => 10 ** cpu);
    count(1, 'FLOW_STARTED', perCpu);
    count(1, 'EVENT_LOST', [7]);
    const row = (await tables.counters()).find(({ endpointId }) => endpointId === 1);
    expect(row?.podUid).toBe(WEB);
    expect(row?.packets).toMatchObject({
      FLOW_STARTED: perCpu.reduce((sum, packets) => sum + packets),
      EVENT_LOST: 7,
      FLOW_PACKET: 0,
    });
    expect(Object.keys(row?.packets ?? {})).toEqual(datapath.layouts.verdicts);
  });

  it('of packets that belong to nobody have a row from the start', async () => {
    expect(await tables.counters()).toMatchObject([
      { endpointId: 0, podUid: undefined, direction: 'EGRESS' },
      { endpointId: 0, podUid: undefined, direction: 'INGRESS' },
    ]);
  });

  it('go on counting over a restart and a re-enrolment, and go when the pod is forgotten', async () => {
    enrol(WEB);
    count(1, 'NOT_TCP', [5]);
    tables = restarted();
    tables.remove(40);
    enrol(WEB);
    const ofWeb = async () => (await tables.counters()).find(({ podUid }) => podUid === WEB);
    expect((await ofWeb())?.packets.NOT_TCP).toBe(5);
    tables.forget(WEB);
    expect(await ofWeb()).toBeUndefined();
    expect(await tables.counters()).toHaveLength(2);
  });
});
