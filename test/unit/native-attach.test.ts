import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  attachClsact,
  attachSkLookup,
  attachTcx,
  BpfLink,
  type BpfObject,
  type BpfProgram,
  detachClsact,
  isBpffs,
  mountBpffs,
  queryClsact,
  queryTcx,
  tcxPrograms,
  tcxSupported,
} from '../../src/native/bpf.js';
import { Cleanup, loadProbe, Netns, temporaryBpffs, temporaryFolder, u32 } from './native-lab.js';

const cleanup = new Cleanup();
let object: BpfObject;
let netns: Netns;
let ifindex: number;
let stamp: BpfProgram;
let other: BpfProgram;

beforeEach(() => {
  netns = cleanup.owned(new Netns());
  ifindex = netns.addVeth('pod');
  object = cleanup.owned(loadProbe());
  stamp = cleanup.owned(object.program('stamp'));
  other = cleanup.owned(object.program('other'));
});

afterEach(() => cleanup.run());

/** How often `stamp` and `other` have run. */
function runs(): { stamp: number; other: number } {
  const tallies = object.map('tallies');
  const total = (index: number) => {
    const perCpu = tallies.get(u32(index)) ?? Buffer.alloc(0);
    return Array.from({ length: perCpu.length / 8 }, (_, cpu) => perCpu.readUInt32LE(cpu * 8)).reduce(
      (sum, value) => sum + value,
    );
  };
  try {
    return { stamp: total(0), other: total(1) };
  } finally {
    tallies.close();
  }
}

/** Brings both ends up: IPv6 then sends of itself, in both directions. */
function traffic(): void {
  netns.ip('link set pod up');
  netns.ip('link set pod-peer up');
}

describe('a tcx link', () => {
  it.each(['ingress', 'egress'] as const)(
    'of %s runs beside another program and a clsact filter',
    async (way) => {
      netns.exec('tc', 'qdisc', 'add', 'dev', 'pod', 'clsact');
      netns.exec(
        'tc',
        'filter',
        'add',
        'dev',
        'pod',
        way,
        'prio',
        '9',
        'u32',
        'match',
        'u32',
        '0',
        '0',
        'flowid',
        '1:1',
      );
      const filters = () => netns.exec('tc', 'filter', 'show', 'dev', 'pod', way).replaceAll(/\(.*?\)/g, '');
      const before = filters();
      expect(before).toContain('u32');
      netns.run(() => {
        expect(queryTcx(ifindex, way)).toEqual([]);
        const first = cleanup.owned(attachTcx(other, ifindex, way));
        const second = cleanup.owned(attachTcx(stamp, ifindex, way));
        expect(queryTcx(ifindex, way)).toEqual([
          { programId: other.id, linkId: first.id },
          { programId: stamp.id, linkId: second.id },
        ]);
        // Several at once: one with none, and one that is not there.
        expect([...tcxPrograms([1, ifindex, 999], way)]).toEqual([
          [1, []],
          [ifindex, [other.id, stamp.id]],
          [999, []],
        ]);
      });
      traffic();
      await vi.waitFor(() => {
        expect(runs().stamp).toBeGreaterThan(0);
        expect(runs().other).toBeGreaterThan(0);
      }, 10_000);
      expect(filters()).toBe(before);
    },
  );

  it('stays when it is pinned, and can be updated and detached by whoever opens the pin', () => {
    const path = join(temporaryBpffs(cleanup), 'link');
    const attached = netns.run(() => attachTcx(stamp, ifindex, 'ingress'));
    attached.pin(path);
    attached.close();
    const programs = () => netns.run(() => queryTcx(ifindex, 'ingress')).map((entry) => entry.programId);
    expect(programs()).toEqual([stamp.id]);

    const link = cleanup.owned(BpfLink.openPinned(path));
    expect(link.id).toBe(attached.id);
    expect(link.programId).toBe(stamp.id);
    link.update(other);
    expect(link.programId).toBe(other.id);
    expect(programs()).toEqual([other.id]);
    link.detach();
    expect(programs()).toEqual([]);
    link.close();
    expect(() => link.programId).toThrow(new TypeError(`link ${link.id} is closed`));
  });

  it('goes when its last descriptor is closed', () => {
    const link = netns.run(() => attachTcx(stamp, ifindex, 'egress'));
    link.close();
    link.close();
    expect(netns.run(() => queryTcx(ifindex, 'egress'))).toEqual([]);
  });

  it('is refused where the interface is none, with the reason', () => {
    expect(tcxSupported()).toBe(true);
    expect(() => netns.run(() => attachTcx(stamp, 999, 'ingress'))).toThrow(
      expect.objectContaining({
        code: 'ENODEV',
        message: 'attaching stamp to tcx ingress of ifindex 999: No such device',
      }),
    );
    expect(() => netns.run(() => queryTcx(999, 'ingress'))).toThrow(
      expect.objectContaining({ code: 'ENODEV' }),
    );
  });
});

describe('a clsact filter', () => {
  const place = { priority: 7, handle: 0x40 };
  const filters = (way: string) => netns.exec('tc', 'filter', 'show', 'dev', 'pod', way);
  const qdiscs = () => netns.exec('tc', 'qdisc', 'show', 'dev', 'pod');

  it.each(['ingress', 'egress'] as const)('of %s comes and goes beside a foreign one', async (way) => {
    netns.exec('tc', 'qdisc', 'add', 'dev', 'pod', 'clsact');
    netns.exec(
      'tc',
      'filter',
      'add',
      'dev',
      'pod',
      way,
      'prio',
      '9',
      'u32',
      'match',
      'u32',
      '0',
      '0',
      'flowid',
      '1:1',
    );
    const before = filters(way);
    netns.run(() => {
      expect(queryClsact(ifindex, way, place)).toBeUndefined();
      expect(attachClsact(other, ifindex, way, place)).toBe(false);
      expect(attachClsact(stamp, ifindex, way, place)).toBe(false);
      expect(queryClsact(ifindex, way, place)).toEqual({ programId: stamp.id });
      expect(queryClsact(ifindex, way, { ...place, handle: 1 })).toBeUndefined();
      expect(queryClsact(ifindex, way === 'ingress' ? 'egress' : 'ingress', place)).toBeUndefined();
    });
    traffic();
    await vi.waitFor(() => expect(runs().stamp).toBeGreaterThan(0), 10_000);
    expect(runs().other).toBe(0);
    netns.run(() => {
      expect(detachClsact(ifindex, way, place)).toBe(true);
      expect(detachClsact(ifindex, way, place)).toBe(false);
    });
    expect(filters(way)).toBe(before);
  });

  it('brings the qdisc, and takes it along when told to', () => {
    netns.run(() => {
      expect(queryClsact(ifindex, 'ingress', place)).toBeUndefined();
      expect(detachClsact(ifindex, 'ingress', place)).toBe(false);
      expect(attachClsact(stamp, ifindex, 'ingress', place)).toBe(true);
      expect(detachClsact(ifindex, 'ingress', place)).toBe(true);
    });
    expect(qdiscs()).toContain('clsact');
    netns.run(() => {
      expect(attachClsact(stamp, ifindex, 'ingress', place)).toBe(false);
      expect(detachClsact(ifindex, 'ingress', { ...place, removeQdisc: true })).toBe(true);
    });
    expect(qdiscs()).not.toContain('clsact');
  });

  it('of ingress works on an ingress qdisc; one of egress is refused there, not run at ingress', () => {
    netns.exec('tc', 'qdisc', 'add', 'dev', 'pod', 'ingress');
    netns.run(() => {
      expect(() => attachClsact(stamp, ifindex, 'egress', place)).toThrow(
        expect.objectContaining({ code: 'EEXIST' }),
      );
      expect(attachClsact(stamp, ifindex, 'ingress', place)).toBe(false);
      expect(queryClsact(ifindex, 'ingress', place)).toEqual({ programId: stamp.id });
      expect(queryClsact(ifindex, 'egress', place)).toBeUndefined();
      expect(detachClsact(ifindex, 'egress', place)).toBe(false);
      expect(detachClsact(ifindex, 'ingress', place)).toBe(true);
    });
  });

  it('leaves no qdisc behind when the filter is refused', () => {
    const watch = cleanup.owned(object.program('watch'));
    netns.run(() =>
      expect(() => attachClsact(watch, ifindex, 'ingress', place)).toThrow(
        expect.objectContaining({ code: 'EINVAL', syscall: 'sendmsg' }),
      ),
    );
    expect(qdiscs()).not.toContain('clsact');
  });

  it('says when the interface is gone', () => {
    const gone = expect.objectContaining({ code: 'ENODEV' });
    netns.run(() => {
      expect(() => queryClsact(999, 'ingress', place)).toThrow(gone);
      expect(() => detachClsact(999, 'ingress', place)).toThrow(gone);
    });
  });
});

describe('other places', () => {
  it('a network namespace takes an sk_lookup program', () => {
    const choose = cleanup.owned(object.program('choose'));
    const link = cleanup.owned(attachSkLookup(choose, netns.fd));
    expect(link.programId).toBe(choose.id);
    link.update(choose);
    link.detach();
  });
});

it('mounts a bpffs once, and tells one from other file systems', () => {
  const path = join(temporaryFolder(cleanup), 'bpf');
  cleanup.add(path, () => isBpffs(path) && execFileSync('umount', [path]));
  expect(isBpffs(path)).toBe(false);
  expect(mountBpffs(path)).toBe(true);
  expect(mountBpffs(path)).toBe(false);
  expect(isBpffs(path)).toBe(true);
  expect(() => mountBpffs(join(path, '../none/bpf'))).toThrow(expect.objectContaining({ syscall: 'mkdir' }));
});
