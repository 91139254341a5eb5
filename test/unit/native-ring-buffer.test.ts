import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { afterEach, expect, it, vi } from 'vitest';
import { type BpfProgram, openRingBuffer } from '../../src/native/bpf.js';
import { Cleanup, fixture, loadProbe } from './native-lab.js';

const cleanup = new Cleanup();

afterEach(() => cleanup.run());

function opened(options?: { queueLimit?: number }) {
  const object = cleanup.owned(loadProbe());
  const records = cleanup.owned(object.map('records'));
  const serials: number[] = [];
  const ring = cleanup.owned(
    openRingBuffer(
      records,
      (batch) => serials.push(...batch.map((record) => record.readUInt32LE())),
      options,
    ),
  );
  return { ring, records, serials, program: cleanup.owned(object.program('record')) };
}

/** One record each; JavaScript is blocked meanwhile. Serial numbers are per CPU. */
function write(program: BpfProgram, count: number): void {
  expect(program.testRun({ data: Buffer.alloc(64), repeat: count }).retval).toBe(0);
}

it('delivers every record in order', async () => {
  const { ring, serials, program } = opened();
  write(program, 1000);
  await vi.waitFor(() => expect(serials).toHaveLength(1000));
  expect(serials).toEqual(Array.from({ length: 1000 }, (_, i) => i));
  expect(ring.lost).toBe(0n);
});

it('counts what is lost while JavaScript is behind, and goes on', async () => {
  const { ring, serials, program } = opened({ queueLimit: 10 });
  write(program, 1000);
  await vi.waitFor(() => expect(BigInt(serials.length) + ring.lost).toBe(1000n));
  expect(serials.slice(0, 10)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  expect(ring.lost).toBeGreaterThan(0n);
  const before = serials.length;
  write(program, 1);
  await vi.waitFor(() => expect(serials).toHaveLength(before + 1));
});

it('delivers nothing after it is closed', async () => {
  const { ring, records, serials, program } = opened();
  write(program, 100);
  ring.close();
  ring.close();
  expect(ring.lost).toBe(0n);
  // Another reader of the same ring delivers later than anything that was on its way.
  let later = 0;
  cleanup.owned(
    openRingBuffer(records, (batch) => {
      later += batch.length;
    }),
  );
  write(program, 5);
  await vi.waitFor(() => expect(later).toBeGreaterThanOrEqual(5));
  expect(serials).toEqual([]);
});

it('may be closed from its own callback', async () => {
  const object = cleanup.owned(loadProbe());
  let batches = 0;
  const ring = openRingBuffer(cleanup.owned(object.map('records')), () => {
    batches++;
    ring.close();
  });
  write(cleanup.owned(object.program('record')), 10);
  await vi.waitFor(() => expect(batches).toBe(1));
});

it('opens on a ring buffer only', () => {
  const numbers = cleanup.owned(cleanup.owned(loadProbe()).map('numbers'));
  expect(() => openRingBuffer(numbers, () => {})).toThrow(expect.objectContaining({ code: 'EINVAL' }));
});

it.each([
  ['is left open when the process has nothing else to do', 'return', 0, ''],
  ['is left open by process.exit() in the middle of a batch', 'exit', 0, ''],
  ['throws from its callback, as an uncaught exception', 'throw', 1, 'from the callback'],
])('ends the process cleanly when it %s', (_what, how, status, message) => {
  for (let i = 0; i < 3; i++) {
    const script = join(import.meta.dirname, 'fixtures/leaves-open.ts');
    const child = spawnSync(process.execPath, ['--import', 'tsx', script, fixture('probe'), how], {
      encoding: 'utf8',
      timeout: 20_000,
    });
    expect({ status: child.status, signal: child.signal }).toEqual({ status, signal: null });
    expect(child.stderr).toContain(message);
  }
});
