import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { BpfLink, BpfMap, BpfObject, BpfProgram, possibleCpus, programInfo } from '../../src/native/bpf.js';
import { socketInfo } from '../../src/native/sockets.js';
import { Cleanup, fixture, loadProbe, temporaryBpffs, temporaryFolder, u32 } from './native-lab.js';

const FRAME = Buffer.alloc(64);
const cleanup = new Cleanup();

afterEach(() => cleanup.run());

function probe(): BpfObject {
  return cleanup.owned(loadProbe());
}

function map(object: BpfObject, name: string): BpfMap {
  return cleanup.owned(object.map(name));
}

function program(object: BpfObject, name: string): BpfProgram {
  return cleanup.owned(object.program(name));
}

describe('an object file', () => {
  it('runs with the read-only data that was set by name', () => {
    const object = cleanup.owned(BpfObject.open(fixture('probe')));
    object.setReadOnlyData('answer', u32(0xbeef));
    object.load();
    const result = program(object, 'stamp').testRun({ data: FRAME, context: Buffer.alloc(192) });
    expect(result.retval).toBe(0xffffffff);
    expect(result.context.readUInt32LE(8)).toBe(0xbeef);
    expect(result.data).toEqual(FRAME);
  });

  it('refuses a variable that it does not have, or of another size', () => {
    const object = cleanup.owned(BpfObject.open(fixture('probe')));
    expect(() => object.setReadOnlyData('question', u32(1))).toThrow(/variable question is not in the/);
    expect(() => object.setReadOnlyData('answer', Buffer.alloc(8))).toThrow(/the 4 bytes of answer/);
    object.load();
    expect(() => object.setReadOnlyData('answer', u32(1))).toThrow(
      expect.objectContaining({ code: 'EINVAL' }),
    );
  });

  it('tells layouts and enums from its BTF', () => {
    const object = probe();
    const layout = object.layout('outer');
    expect(layout).toMatchObject({ name: 'outer', size: 12 });
    expect([...layout.fields].map(([name, { offset, size }]) => [name, offset, size])).toEqual([
      ['first', 0, 4],
      ['nested', 4, 6],
      ['last', 10, 2],
    ]);
    expect([...object.enumValues('colour')]).toEqual([
      ['COLOUR_RED', 1],
      ['COLOUR_BLUE', 7],
    ]);
    expect(() => object.layout('nothing')).toThrow(RangeError);
    expect(() => object.enumValues('nothing')).toThrow(RangeError);
  });

  it('carries the whole verifier log when the kernel refuses it', () => {
    const object = cleanup.owned(BpfObject.open(fixture('refused')));
    let caught: unknown;
    try {
      object.load();
    } catch (error) {
      caught = error;
    }
    expect(caught).toMatchObject({ code: 'EACCES', errno: 13, syscall: 'bpf' });
    const { log } = caught as { log: string };
    expect(log.length).toBeGreaterThan(4096);
    expect(log).toContain('BEGIN PROG LOAD LOG');
    expect(log).toContain('invalid access to packet');
    expect(log).toContain('END PROG LOAD LOG');
  });

  it('names the file that cannot be opened', () => {
    expect(() => BpfObject.open('/nonexistent.bpf.o')).toThrow(
      expect.objectContaining({ code: 'ENOENT', message: expect.stringContaining('/nonexistent.bpf.o') }),
    );
  });

  it('shares a map with another object, if it is of the same shape', () => {
    const first = probe();
    const numbers = map(first, 'numbers');
    const second = cleanup.owned(BpfObject.open(fixture('probe')));
    second.reuseMap('numbers', numbers);
    expect(() => second.reuseMap('colours', numbers)).toThrow(expect.objectContaining({ code: 'EINVAL' }));
    expect(() => second.reuseMap('nothing', numbers)).toThrow(RangeError);
    second.load();
    expect(map(second, 'numbers').id).toBe(numbers.id);
    expect(map(second, 'colours').id).not.toBe(map(first, 'colours').id);
  });

  it('gives maps and programs that outlive it, and says what is closed', () => {
    const object = loadProbe();
    const numbers = map(object, 'numbers');
    const stamp = program(object, 'stamp');
    object.close();
    object.close();
    expect(numbers.get(u32(1))).toBeUndefined();
    expect(stamp.testRun({ data: FRAME }).retval).toBe(0xffffffff);
    expect(() => object.map('numbers')).toThrow(/probe\.bpf\.o is closed/);
    numbers.close();
    numbers.close();
    expect(() => numbers.get(u32(1))).toThrow(new TypeError('map numbers is closed'));
    stamp.close();
    expect(() => stamp.testRun({ data: FRAME })).toThrow(new TypeError('program stamp is closed'));
  });

  it('knows no map or program of another name', () => {
    const object = probe();
    expect(() => object.map('nothing')).toThrow(RangeError);
    expect(() => object.program('nothing')).toThrow(RangeError);
    const unloaded = cleanup.owned(BpfObject.open(fixture('probe')));
    expect(() => unloaded.map('numbers')).toThrow(/not loaded/);
  });
});

describe('a map', () => {
  it('sets, reads and deletes', () => {
    const numbers = map(probe(), 'numbers');
    const value = Buffer.alloc(12, 7);
    expect(numbers).toMatchObject({ name: 'numbers', type: 1, keySize: 4, valueSize: 12, maxEntries: 4096 });
    expect(() => numbers.set(u32(1), value, 'replace')).toThrow(expect.objectContaining({ code: 'ENOENT' }));
    numbers.set(u32(1), value, 'create');
    expect(() => numbers.set(u32(1), value, 'create')).toThrow(expect.objectContaining({ code: 'EEXIST' }));
    expect(numbers.get(u32(1))).toEqual(value);
    expect(numbers.delete(u32(1))).toBe(true);
    expect(numbers.delete(u32(1))).toBe(false);
    expect(numbers.get(u32(1))).toBeUndefined();
  });

  it.each([
    ['numbers', 3000, 'a hash'],
    ['prefixes', 1000, 'a trie'],
  ])('reads and deletes all entries of %s', (name, count) => {
    const object = probe();
    const whole = map(object, name);
    const key = (i: number) => (name === 'prefixes' ? Buffer.concat([u32(32), u32(i)]) : u32(i));
    const keys = Array.from({ length: count }, (_, i) => key(i));
    expect(whole.entries()).toEqual([]);
    for (const [i, entry] of keys.entries()) {
      whole.set(entry, Buffer.alloc(whole.valueSize, i % 251));
    }
    const found = new Map(whole.entries().map(([k, v]) => [k.toString('hex'), v]));
    expect(found.size).toBe(count);
    expect(found.get(key(260).toString('hex'))).toEqual(Buffer.alloc(whole.valueSize, 9));

    // Every third is there; the others are not.
    const some = keys.flatMap((entry, i) => (i % 3 === 0 ? [entry, key(5000 + i), key(9000 + i)] : []));
    const third = Math.ceil(count / 3);
    expect(whole.deleteMany(some)).toBe(third);
    expect(whole.deleteMany(some)).toBe(0);
    expect(whole.deleteMany([])).toBe(0);
    expect(whole.entries()).toHaveLength(count - third);
  });

  it('of one value per CPU has all of them side by side, or summed up', async () => {
    const object = probe();
    const tallies = map(object, 'tallies');
    expect(tallies.valueSize).toBe(8 * possibleCpus());
    program(object, 'stamp').testRun({ data: FRAME, repeat: 5 });
    const entries = tallies.entries();
    expect(entries).toHaveLength(2);
    const total = Array.from(
      { length: possibleCpus() },
      (_, cpu) => entries[0]?.[1].readUInt32LE(cpu * 8) ?? 0,
    );
    expect(total.reduce((sum, value) => sum + value, 0)).toBe(5);
    const { count, keys, values } = await tallies.sums();
    expect([count, keys.readUInt32LE(4), values.length]).toEqual([2, 1, 16]);
    expect([values.readBigUInt64LE(0), values.readBigUInt64LE(8)]).toEqual([5n, 0n]);
  });

  it('gives the entries with the largest numbers, off the event loop, also when it is closed meanwhile', async () => {
    const numbers = map(probe(), 'numbers');
    for (let key = 0; key < 3000; key++) {
      const value = Buffer.alloc(12);
      value.writeBigUInt64LE(BigInt((key * 7919) % 3001) << 32n, 4);
      numbers.set(u32(key), value);
    }
    const reading = numbers.largest(4, 3);
    numbers.close();
    const { count, keys, values } = await reading;
    expect(count).toBe(3);
    expect([0, 1, 2].map((i) => values.readBigUInt64LE(i * 12 + 4) >> 32n)).toEqual([3000n, 2999n, 2998n]);
    for (let i = 0; i < count; i++) {
      expect(BigInt((keys.readUInt32LE(i * 4) * 7919) % 3001)).toBe(
        values.readBigUInt64LE(i * 12 + 4) >> 32n,
      );
    }
    const few = map(probe(), 'numbers');
    few.set(u32(9), Buffer.alloc(12));
    expect(await few.largest(0, 10)).toMatchObject({ count: 1, keys: u32(9) });
  });

  it('that can delete nothing says so', () => {
    const colours = map(probe(), 'colours');
    expect(() => colours.delete(u32(0))).toThrow(expect.objectContaining({ code: 'EINVAL', syscall: 'bpf' }));
    expect(() => colours.deleteMany([u32(0)])).toThrow(expect.objectContaining({ code: 'EINVAL' }));
  });
});

describe.each(['sockets', 'peers'])('the socket map %s', (name) => {
  async function listener(): Promise<Server> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return server;
  }

  it('tells the cookie of the socket, and forgets it when that closes', async () => {
    const sockets = map(probe(), name);
    const server = await listener();
    try {
      const { fd } = (server as unknown as { _handle: { fd: number } })._handle;
      sockets.setSocket(u32(2), fd);
      expect(sockets.get(u32(2))?.readBigUInt64LE()).toBe(socketInfo(fd).cookie);
      expect(sockets.entries().map(([key]) => key.readUInt32LE())).toEqual([2]);
      expect(sockets.delete(u32(2))).toBe(true);
      expect(sockets.delete(u32(2))).toBe(false);
      sockets.setSocket(u32(2), fd);
    } finally {
      await new Promise((resolve) => server.close(resolve));
    }
    await vi.waitFor(() => expect(sockets.get(u32(2))).toBeUndefined());
    expect(sockets.entries()).toEqual([]);
  });

  it('refuses what is no socket', () => {
    const sockets = map(probe(), name);
    expect(() => sockets.setSocket(u32(0), 99_999)).toThrow(expect.objectContaining({ code: 'EBADF' }));
  });
});

describe('a pin', () => {
  it('gives back the same map, program or link, and nothing else', () => {
    const bpffs = temporaryBpffs(cleanup);
    const object = probe();
    const numbers = map(object, 'numbers');
    const stamp = program(object, 'stamp');
    numbers.set(u32(3), Buffer.alloc(12, 3));
    numbers.pin(join(bpffs, 'numbers'));
    stamp.pin(join(bpffs, 'stamp'));
    numbers.close();
    stamp.close();
    object.close();

    const reopened = cleanup.owned(BpfMap.openPinned(join(bpffs, 'numbers')));
    expect(reopened).toMatchObject({ name: 'numbers', id: numbers.id });
    expect(reopened.get(u32(3))).toEqual(Buffer.alloc(12, 3));
    const again = cleanup.owned(BpfProgram.openPinned(join(bpffs, 'stamp')));
    expect(again).toMatchObject({ name: 'stamp', id: stamp.id, tag: stamp.tag });
    expect(again.tag).toMatch(/^[0-9a-f]{16}$/);
    expect(programInfo(again.id)).toEqual({ name: 'stamp', id: stamp.id, tag: stamp.tag, type: stamp.type });

    const refused = expect.objectContaining({ code: 'EINVAL' });
    expect(() => BpfMap.openPinned(join(bpffs, 'stamp'))).toThrow(refused);
    expect(() => BpfProgram.openPinned(join(bpffs, 'numbers'))).toThrow(refused);
    expect(() => BpfLink.openPinned(join(bpffs, 'numbers'))).toThrow(refused);
    expect(() => reopened.pin(join(bpffs, 'numbers'))).toThrow(expect.objectContaining({ code: 'EEXIST' }));
    expect(() => BpfMap.openPinned(join(bpffs, 'none'))).toThrow(expect.objectContaining({ code: 'ENOENT' }));
  });

  it('stands in a bpffs only', () => {
    const path = join(temporaryFolder(cleanup), 'pin');
    expect(() => map(probe(), 'numbers').pin(path)).toThrow(expect.objectContaining({ syscall: 'bpf' }));
  });
});
