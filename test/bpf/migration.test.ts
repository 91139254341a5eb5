/** An agent of a newer layout finds what an older one left: nothing of it is lost, wherever a first attempt has died. */

import { copyFileSync, existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { EndpointTables } from '../../src/datapath/endpoints.js';
import { type DatapathPrograms, MANIFEST } from '../../src/datapath/manifest.js';
import { CLSACT, ClsactFilters } from '../../src/kernel/clsact.js';
import { copyByName, sameShape } from '../../src/kernel/map-copy.js';
import { findMigration } from '../../src/kernel/migration.js';
import { moveLinks } from '../../src/kernel/migration-links.js';
import { layoutVersion, openObjectFile } from '../../src/kernel/pins.js';
import { openPrograms } from '../../src/kernel/programs.js';
import { SocketLookup } from '../../src/kernel/socket-lookup.js';
import { Struct } from '../../src/kernel/struct.js';
import { TcxLinks } from '../../src/kernel/tcx.js';
import { BpfLink, BpfMap, BpfObject, queryClsact, queryTcx } from '../../src/native/bpf.js';
import type { PodUid } from '../../src/pods/pod.js';
import { sized } from '../lab/size.js';
import { Cleanup, loadProbe, Netns, temporaryBpffs, temporaryFolder, u32 } from '../unit/native-lab.js';
import { MARK, OBJECTS } from './datapath-lab.js';

const V1B = join(process.cwd(), 'build/bpf-v1b');
const V2 = join(process.cwd(), 'build/bpf-v2');

const cleanup = new Cleanup();
let bpffs: string;
let netns: Netns;
let pods: number[];
let bridge: number;

beforeEach(() => {
  bpffs = join(temporaryBpffs(cleanup), 'nodesentry');
  netns = cleanup.owned(new Netns());
  pods = [netns.addVeth('pod0'), netns.addVeth('pod1')];
  bridge = netns.addVeth('bridge0');
});

afterEach(() => cleanup.run());

function open(objects: string): DatapathPrograms {
  return cleanup.owned(openPrograms({ set: MANIFEST, bpffs, objects, mark: MARK }));
}

function structIn(objects: string, name: string): Struct {
  const object = openObjectFile(objects, 'intercept');
  try {
    return new Struct(object.layout(name), []);
  } finally {
    object.close();
  }
}

const uid = (index: number) => `pod-${index}` as PodUid;
const flowKey = (programs: DatapathPrograms, sport: number) =>
  programs.layouts.flowKey.encode({
    src: Buffer.alloc(16, 1),
    dst: Buffer.alloc(16, 2),
    sport,
    dport: 80,
    protocol: 6,
  });

function record(programs: DatapathPrograms, sport: number, startedNs: number): void {
  const { flow } = programs.layouts;
  const value = { started_ns: startedNs, endpoint: 1, generation: 1, ifindex: pods[0] ?? 0, instance: 3 };
  programs.maps.flows.set(flowKey(programs, sport), flow.encode({ ...value, direction: 1 }));
}

function startedNs(programs: DatapathPrograms, sport: number): number | undefined {
  const value = programs.maps.flows.get(flowKey(programs, sport));
  return value === undefined ? undefined : programs.layouts.flow.number(value, 'started_ns');
}

/** What an agent of layout 1 leaves that has enrolled two pods, one of them twice, and has gone. */
function leaveOlder(objects = OBJECTS): { readonly linkIds: number[]; readonly programs: DatapathPrograms } {
  const programs = open(objects);
  const tables = new EndpointTables(programs.maps, programs.layouts);
  const links = new TcxLinks(MANIFEST, programs.linksPath);
  tables.enrol(uid(1), 999, false);
  netns.run(() => {
    pods.forEach((ifindex, index) => {
      const row = tables.enrol(uid(index), ifindex, false);
      const ips = [`10.66.0.${index + 2}`];
      tables.write(row, { ifindex, instance: 5, failureOpen: true, dropOther: false, bridgeIndex: 0, ips });
      links.attach({ role: 'egress', ifindex }, programs.programs.pod_egress);
    });
    links.attach({ role: 'steer', ifindex: bridge }, programs.programs.bridge_steer);
    new SocketLookup(programs.linksPath, 'socket-lookup').attach(programs.programs.socket_lookup);
  });
  record(programs, 1000, 111);
  return { linkIds: linkIds(), programs };
}

function linkIds(): number[] {
  return netns.run(() =>
    [...pods, bridge].flatMap((ifindex) => queryTcx(ifindex, 'ingress').map(({ linkId }) => linkId)),
  );
}

function running(): number[] {
  return netns.run(() =>
    [...pods, bridge].flatMap((ifindex) => queryTcx(ifindex, 'ingress').map(({ programId }) => programId)),
  );
}

function linkNames(): string[] {
  return ['socket-lookup', `steer-${bridge}`, ...pods.map((ifindex) => `egress-${ifindex}`)].sort();
}

/** All that the older agent knew is known to `programs`, and every link runs the new programs. */
function expectTakenOver(programs: DatapathPrograms, links: readonly number[]): void {
  const { endpoint } = programs.layouts;
  const tables = new EndpointTables(programs.maps, programs.layouts);
  expect(tables.rowOf(uid(1))).toEqual({
    uid: uid(1),
    id: 1,
    generation: 2,
    ifindex: pods[1],
    sinceBirth: false,
  });
  expect(tables.rowOf(uid(0))).toEqual({
    uid: uid(0),
    id: 2,
    generation: 1,
    ifindex: pods[0],
    sinceBirth: false,
  });
  expect(tables.enrol(uid(7), 77, false).id).toBe(3);
  pods.forEach((ifindex, index) => {
    const value = programs.maps.endpoints.get(u32(ifindex)) ?? Buffer.alloc(endpoint.size);
    expect(endpoint.number(value, 'id')).toBe(2 - index);
    expect(endpoint.number(value, 'generation')).toBe(index + 1);
    expect(endpoint.number(value, 'instance')).toBe(5);
    expect(endpoint.number(value, 'flags')).toBe(programs.layouts.flags.failureOpen);
    const plan = {
      ifindex,
      instance: 5,
      failureOpen: true,
      dropOther: false,
      bridgeIndex: 0,
      ips: [`10.66.0.${index + 2}`],
    };
    const row = tables.rowOf(uid(index));
    expect(row && tables.verify(row, plan)).toBeUndefined();
  });
  expect(startedNs(programs, 1000)).toBe(111);
  const { pod_egress, bridge_steer, socket_lookup } = programs.programs;
  expect(running()).toEqual([pod_egress.id, pod_egress.id, bridge_steer.id]);
  expect(linkIds()).toEqual(links);
  expect(readdirSync(programs.linksPath).sort()).toEqual(linkNames());
  const lookup = cleanup.owned(BpfLink.openPinned(join(programs.linksPath, 'socket-lookup')));
  expect(lookup.programId).toBe(socket_lookup.id);
  expect(readdirSync(bpffs)).toEqual(['v2']);
  expect(programs.finishMigration()).toBeUndefined();
}

it('the objects say of which layout they are, and the tests have three of them', () => {
  expect([OBJECTS, V1B, V2].map((objects) => layoutVersion(objects, 'intercept'))).toEqual([1, 1, 2]);
  for (const name of ['flow', 'endpoint', 'workload']) {
    expect(structIn(V2, name).size).toBeGreaterThan(structIn(OBJECTS, name).size);
  }
});

describe('an agent of a newer layout', () => {
  it('knows every endpoint, address, id, generation and flow by its name, and leaves no link behind', () => {
    const older = leaveOlder();
    older.programs.close();
    const newer = open(V2);
    // Until it is told to go on, the pods run what they ran.
    expect(running()).not.toContain(newer.programs.pod_egress.id);
    expect(newer.finishMigration()).toMatchObject({
      from: ['v1'],
      to: 'v2',
      shared: [
        'sources',
        'inbound',
        'selected',
        'udp_selected',
        'selections',
        'port_pages',
        'cidrs',
        'identities',
        'addresses',
        'node',
        'instances',
        'generations',
        'instance_counts',
        'lifecycle',
        'shares',
        'turns',
        'udp_ports',
        'proxy_ports',
        'udp_proxy_ports',
        'explicit_ports',
        'proxy_cgroups',
        'observed',
        'settings',
        'listeners',
        'udp_listeners',
        'counters',
        'ingress_counters',
        'steering',
        'canaries',
        'deliveries',
        'ingress_canaries',
        'ingress_deliveries',
      ],
      copied: { endpoints: 2, workloads: 3, flows: 1 },
      unfit: 0,
      links: 4,
      kept: [],
    });
    expectTakenOver(newer, older.linkIds);
    const flow = newer.maps.flows.get(flowKey(newer, 1000)) ?? Buffer.alloc(0);
    const { number } = { number: (name: string) => structIn(V2, 'flow').number(flow, name) };
    expect(['endpoint', 'generation', 'ifindex', 'instance', 'direction', 'test_field'].map(number)).toEqual([
      1,
      1,
      pods[0],
      3,
      1,
      0,
    ]);
  });

  it('shares the maps that have not changed: counters and listeners go on without a gap', () => {
    const older = leaveOlder();
    const ids = (programs: DatapathPrograms) =>
      (['sources', 'listeners', 'counters'] as const).map((name) => programs.maps[name].id);
    const newer = open(V2);
    newer.finishMigration();
    expect(ids(newer)).toEqual(ids(older.programs));
    expect(newer.maps.flows.id).not.toBe(older.programs.maps.flows.id);
  });

  it('takes along what was recorded after it had first copied, and keeps its own newer records', () => {
    const older = leaveOlder();
    const newer = open(V2);
    record(older.programs, 2000, 222);
    record(older.programs, 3000, 333);
    record(newer, 3000, 999);
    newer.finishMigration();
    expectTakenOver(newer, older.linkIds);
    expect(startedNs(newer, 2000)).toBe(222);
    expect(startedNs(newer, 3000)).toBe(999);
  });

  it('leaves what it does not know: maps, links and files of an older agent go with its folder', () => {
    const older = leaveOlder();
    const probe = cleanup.owned(loadProbe());
    cleanup.owned(probe.map('numbers')).pin(join(bpffs, 'v1/maps/numbers'));
    cleanup.owned(probe.map('colours')).pin(join(bpffs, 'v1/links/splice-1'));
    cleanup.owned(probe.map('colours')).pin(join(bpffs, `v1/links/egress-4711`));
    const newer = open(V2);
    expect(newer.finishMigration()).toMatchObject({ links: 4 });
    expectTakenOver(newer, older.linkIds);
  });

  it('forgets the links of interfaces that are gone', () => {
    const older = leaveOlder();
    older.programs.close();
    netns.ip('link del pod1');
    const newer = open(V2);
    expect(newer.finishMigration()).toMatchObject({ links: 3, kept: [] });
    expect(readdirSync(newer.linksPath)).toEqual(linkNames().filter((name) => name !== `egress-${pods[1]}`));
    expect(readdirSync(bpffs)).toEqual(['v2']);
  });

  it('lets an interface keep its program as long as its endpoint is not known', () => {
    const older = leaveOlder();
    older.programs.maps.endpoints.delete(u32(pods[1] ?? 0));
    const before = running();
    const newer = open(V2);
    expect(newer.finishMigration()).toMatchObject({ links: 3, kept: [`egress-${pods[1]}`] });
    expect(running()[1]).toBe(before[1]);
    expect(readdirSync(newer.linksPath).sort()).toEqual(linkNames());
    const links = new TcxLinks(MANIFEST, newer.linksPath);
    const attach = () => links.attach({ role: 'egress', ifindex: pods[1] ?? 0 }, newer.programs.pod_egress);
    expect(netns.run(attach)).toBe('updated');
    expect(linkIds()).toEqual(older.linkIds);
  });

  it('exchanges the filters of a kernel without tcx', () => {
    const programs = open(OBJECTS);
    const [ifindex = 0] = pods;
    const tables = new EndpointTables(programs.maps, programs.layouts);
    const plan = { ifindex, instance: 0, failureOpen: false, dropOther: false, bridgeIndex: 0, ips: [] };
    tables.write(tables.enrol(uid(0), ifindex, false), plan);
    const links = new ClsactFilters(MANIFEST);
    netns.run(() => links.attach({ role: 'egress', ifindex }, programs.programs.pod_egress));
    const newer = open(V2);
    expect(netns.run(() => newer.finishMigration([...pods, bridge]))).toMatchObject({ links: 1 });
    expect(netns.run(() => queryClsact(ifindex, 'ingress', CLSACT))).toEqual({
      programId: newer.programs.pod_egress.id,
    });
  });

  it('takes over a full map, and of the flows nearly all, in a few seconds', () => {
    const older = leaveOlder();
    const { workloads, flows } = older.programs.maps;
    fill(workloads, 100);
    fill(flows, 100);
    const [rows, records] = [workloads.entries().length, flows.entries().length];
    expect(rows).toBe(workloads.maxEntries);
    const begun = performance.now();
    const newer = open(V2);
    const opened = performance.now();
    newer.finishMigration();
    const ms = Math.round(performance.now() - begun);
    const kept = newer.maps.flows.entries().length;
    process.stdout.write(
      `${records} flows, ${rows} workloads: copied in ${Math.round(opened - begun)} ms, finished after ${ms} ms, ${kept} flows kept\n`,
    );
    expect(newer.maps.workloads.entries().length).toBe(rows);
    expect(kept).toBeGreaterThan(records * 0.9);
    // Twice what docs/upgrade.md says, where nothing else wants the two cores.
    expect(ms).toBeLessThan(sized(30_000, 4_000));
  });
});

/** Until it is full; the keys are numbers from `first` on. */
function fill(map: BpfMap, first: number): void {
  const keys = Buffer.alloc(map.maxEntries * map.keySize);
  for (let index = 0; index < map.maxEntries; index++) {
    keys.writeUInt32LE(first + index, index * map.keySize);
  }
  map.addMany(keys, Buffer.alloc(map.maxEntries * map.valueSize, 1));
}

describe('a newer agent that is killed', () => {
  const halfway: Record<string, () => void> = {
    'before it has done anything': () => mkdirSync(join(bpffs, 'v2/maps'), { recursive: true }),
    'after it has pinned the first maps': () => {
      const migration = findMigration(MANIFEST, bpffs, 2);
      mkdirSync(join(bpffs, 'v2/maps'), { recursive: true });
      const object = cleanup.owned(BpfObject.open(join(V2, 'intercept.bpf.o')));
      migration?.shareMaps(object);
      for (const name of ['counters', 'canaries']) {
        rmSync(join(bpffs, 'v2/maps', name));
      }
    },
    'after it has copied': () => {
      open(V2);
    },
    'after it has exchanged programs, before it has moved a pin': () => {
      const { programs } = open(V2);
      for (const name of [`steer-${bridge}`, `egress-${pods[0]}`]) {
        const link = cleanup.owned(BpfLink.openPinned(join(bpffs, 'v1/links', name)));
        link.update(name.startsWith('steer') ? programs.bridge_steer : programs.pod_egress);
      }
    },
    'after it has moved the links': () => {
      const { maps, programs } = open(V2);
      moveLinks({ set: MANIFEST, bpffs, version: 2, older: [1], maps, programs });
    },
    'while it takes the older folder away': () => {
      const { maps, programs } = open(V2);
      moveLinks({ set: MANIFEST, bpffs, version: 2, older: [1], maps, programs });
      rmSync(join(bpffs, 'v1/maps/flows'));
      rmSync(join(bpffs, 'v1/links'), { recursive: true });
    },
  };

  it.each(Object.keys(halfway))('%s is followed by one that completes it', (when) => {
    const older = leaveOlder();
    halfway[when]?.();
    const next = open(V2);
    expect(next.finishMigration()).toMatchObject({ from: ['v1'], to: 'v2', kept: [] });
    expectTakenOver(next, older.linkIds);
  });

  it('is followed by one that is killed too, at every step, and by one that completes it', () => {
    const older = leaveOlder();
    for (const step of Object.values(halfway).slice(0, -1)) {
      step();
      step();
    }
    const next = open(V2);
    next.finishMigration();
    expectTakenOver(next, older.linkIds);
  });
});

describe('an upgrade that fails', () => {
  it('for want of an object leaves the older agent everything as it was', () => {
    const older = leaveOlder();
    const before = running();
    older.programs.close();
    const objects = temporaryFolder(cleanup);
    for (const name of ['intercept', 'steer']) {
      copyFileSync(join(V2, `${name}.bpf.o`), join(objects, `${name}.bpf.o`));
    }
    expect(() => open(objects)).toThrow(expect.objectContaining({ code: 'OBJECT_MISSING' }));
    expect(readdirSync(bpffs)).toEqual(['v1']);
    expect(running()).toEqual(before);
    expect(open(OBJECTS).takenOver).toBe(true);
  });

  it('before the first link is moved can be taken back by starting the older agent', () => {
    const older = leaveOlder();
    const before = running();
    const newer = open(V2);
    newer.close();
    expect(existsSync(join(bpffs, 'v2'))).toBe(false);
    expect(running()).toEqual(before);
    expect(open(OBJECTS).maps.flows.id).toBe(older.programs.maps.flows.id);
  });

  it('names a map that cannot be read, and what to do', () => {
    const probe = cleanup.owned(loadProbe());
    mkdirSync(join(bpffs, 'v1/maps'), { recursive: true });
    cleanup.owned(probe.map('prefixes')).pin(join(bpffs, 'v1/maps/endpoints'));
    expect(() => open(V2)).toThrow(
      expect.objectContaining({
        code: 'LAYOUT_MISMATCH',
        message: expect.stringMatching(/prefixes.*nodesentry cleanup/),
      }),
    );
    expect(readdirSync(bpffs)).toEqual(['v1']);
  });
});

describe('within one layout', () => {
  it('other programs come to the same maps, and back', () => {
    const older = leaveOlder();
    const maps = Object.values(older.programs.maps).map(({ id }) => id);
    older.programs.close();
    let before = running();
    for (const objects of [V1B, OBJECTS]) {
      const next = open(objects);
      expect(next.takenOver).toBe(true);
      expect(Object.values(next.maps).map(({ id }) => id)).toEqual(maps);
      expect(next.finishMigration()).toBeUndefined();
      expect(running()).toEqual(before);
      const { pod_egress, bridge_steer } = next.programs;
      const links = new TcxLinks(MANIFEST, next.linksPath);
      netns.run(() => {
        links.attach({ role: 'steer', ifindex: bridge }, bridge_steer);
        for (const ifindex of pods) {
          expect(links.attach({ role: 'egress', ifindex }, pod_egress)).toBe('updated');
        }
      });
      expect(next.removeStalePrograms()).toHaveLength(Object.keys(next.programs).length);
      before = running();
      expect(before).toEqual([pod_egress.id, pod_egress.id, bridge_steer.id]);
      expect(linkIds()).toEqual(older.linkIds);
      next.close();
    }
  });

  it('the two builds of layout 1 have other instructions', () => {
    const [a, b] = [open(OBJECTS), open(V1B)];
    for (const name of ['pod_egress', 'bridge_steer', 'socket_lookup'] as const) {
      expect(a.programs[name].tag).not.toBe(b.programs[name].tag);
    }
  });
});

it('an older agent refuses the newer layout and touches nothing', () => {
  leaveOlder().programs.close();
  const newer = open(V2);
  newer.finishMigration();
  const state = () => ({
    running: running(),
    links: linkIds(),
    pins: readdirSync(bpffs, { recursive: true }).sort(),
    endpoints: newer.maps.endpoints.entries(),
  });
  const before = state();
  for (const objects of [OBJECTS, V1B]) {
    expect(() => open(objects)).toThrow(
      expect.objectContaining({
        code: 'LAYOUT_NEWER',
        message: `${bpffs}/v2 belongs to a newer agent: run that one, or its "nodesentry cleanup" first`,
      }),
    );
  }
  expect(state()).toEqual(before);
  expect(open(V2).takenOver).toBe(true);
});

describe('an entry', () => {
  function maps(): { numbers: BpfMap; narrowed: BpfMap } {
    const probe = cleanup.owned(loadProbe());
    return { numbers: cleanup.owned(probe.map('numbers')), narrowed: cleanup.owned(probe.map('narrowed')) };
  }
  /** struct outer: first at 0, nested.bytes at 4, last at 10. */
  const outer = (first: number, last: number) => {
    const value = Buffer.alloc(12, 7);
    value.writeUInt32LE(first, 0);
    value.writeUInt16LE(last, 10);
    return value;
  };

  it('is copied by name into other places, sizes and company, and left out where it does not fit', () => {
    const { numbers, narrowed } = maps();
    numbers.set(u32(1), outer(255, 0x1234));
    numbers.set(u32(2), outer(256, 1));
    expect(copyByName(numbers, narrowed)).toEqual({ added: 1, unfit: 1 });
    const [[key, value] = []] = narrowed.entries();
    expect(key).toEqual(Buffer.from([1, 0, 0, 0, 0, 0, 0, 0]));
    expect(value?.subarray(0, 11)).toEqual(Buffer.from([0, 0, 0x34, 0x12, 255, 7, 7, 7, 7, 7, 7]));
    // The second time nothing is new.
    expect(copyByName(numbers, narrowed)).toEqual({ added: 0, unfit: 1 });
  });

  it('that finds no room is an error that says how many and what to do', () => {
    const { numbers, narrowed } = maps();
    for (let index = 0; index < 5; index++) {
      numbers.set(u32(index), outer(index, index));
    }
    expect(() => copyByName(numbers, narrowed)).toThrow(
      expect.objectContaining({
        code: 'LAYOUT_MISMATCH',
        message: expect.stringMatching(/2 of 5 entries .* numbers .* 3 of this agent's.*nodesentry cleanup/),
      }),
    );
  });

  it('keys are compared too: maps are the same only in every field of both', () => {
    const { numbers, narrowed } = maps();
    expect(sameShape(numbers.shape(), numbers.shape())).toBe(true);
    expect(sameShape(numbers.shape(), narrowed.shape())).toBe(false);
    const shape = numbers.shape();
    const [field, ...rest] = shape.value?.fields ?? [];
    const renamed = { size: 12, fields: [{ name: 'other', offset: 0, size: 4 }, ...rest] };
    expect(field?.name).toBe('first');
    expect(sameShape(shape, { ...shape, value: renamed })).toBe(false);
    expect(sameShape(shape, { ...shape, value: undefined })).toBe(false);
  });
});

it('a pinned map says of which fields it is made, as the object that it came from does', () => {
  const { maps } = open(OBJECTS);
  const object = cleanup.owned(BpfObject.open(join(OBJECTS, 'intercept.bpf.o')));
  for (const name of ['endpoints', 'sources', 'workloads', 'flows', 'counters'] as const) {
    expect(maps[name].shape()).toEqual(object.mapShape(name));
  }
  expect(maps.sources.shape().key?.fields).toEqual([
    { name: 'ifindex', offset: 0, size: 4 },
    { name: 'address.bytes', offset: 4, size: 16 },
  ]);
  expect(maps.listeners.shape()).toMatchObject({ key: undefined, value: undefined });
  const pinned = cleanup.owned(BpfMap.openPinned(join(bpffs, 'v1/maps/endpoints')));
  expect(pinned.shape().key).toEqual({ size: 4, fields: [{ name: '', offset: 0, size: 4 }] });
});
