/** When what bridges have learnt is renewed. The kernel's part: test/e2e/bridge-mac.test.ts. */

import { beforeEach, expect, test, vi } from 'vitest';
import type { Link } from '../../src/net/link.js';
import { BridgeMemory } from '../../src/reconcile/bridge-memory.js';
import { bridged, link, recordingLog, routed } from './reconcile-fixture.js';

const BRIDGE = link(50, 'br0', { kind: 'bridge', ageingMs: 300_000 });
const PODS = [bridged(100, BRIDGE), bridged(101, BRIDGE), routed(102)];

let nowMs: number;
let bridge: Link;
let failure: Error | undefined;
let memory: BridgeMemory;
const renew = vi.fn<(port: number, most: number) => number>();
const log = recordingLog();
beforeEach(() => {
  renew.mockReset();
  log.warn.mockReset();
  nowMs = 1_000;
  bridge = BRIDGE;
  failure = undefined;
  memory = new BridgeMemory({
    fdb: { renew },
    links: {
      hostLink: async () => {
        if (failure !== undefined) {
          throw failure;
        }
        return bridge;
      },
    },
    nowMs: () => nowMs,
    log,
  });
});

const ports = () => renew.mock.calls.map(([port]) => port);

test.each([
  { ageingMs: 300_000, everyMs: 30_000 },
  { ageingMs: 30_000, everyMs: 10_000 },
])(
  'with an ageing time of $ageingMs ms every $everyMs ms, at the ports of bridges alone',
  async ({ ageingMs, everyMs }) => {
    bridge = { ...BRIDGE, ageingMs };
    await memory.renew(PODS);
    expect(ports()).toEqual([100, 101]);
    nowMs += everyMs - 1;
    await memory.renew(PODS);
    expect(ports()).toHaveLength(2);
    nowMs += 1;
    await memory.renew(PODS);
    expect(ports()).toEqual([100, 101, 100, 101]);
  },
);

test('a bridge that learns nothing is left alone', async () => {
  bridge = { ...BRIDGE, ageingMs: 0 };
  await memory.renew(PODS);
  expect(ports()).toEqual([]);
});

test('a port that has gone is no news, another failure is told once, and neither keeps the other ports from their turn', async () => {
  const refuse = (code: string) => Object.assign(new Error(code), { code, errno: 1, syscall: 'recv' });
  renew.mockImplementationOnce(() => {
    throw refuse('ENODEV');
  });
  await memory.renew(PODS);
  expect(ports()).toEqual([100, 101]);
  expect(log.warn).not.toHaveBeenCalled();
  renew.mockImplementation(() => {
    throw refuse('EPERM');
  });
  nowMs += 60_000;
  await memory.renew(PODS);
  expect(ports()).toHaveLength(4);
  expect(log.warn).toHaveBeenCalledTimes(1);
});

test('a shorter ageing time that is set meanwhile counts from the next look on', async () => {
  await memory.renew(PODS);
  bridge = { ...BRIDGE, ageingMs: 6_000 };
  nowMs += 1_999;
  await memory.renew(PODS);
  expect(ports()).toHaveLength(2);
  nowMs += 1;
  await memory.renew(PODS);
  expect(ports()).toHaveLength(4);
});

test('netlink that fails is told once and tried again by the next look', async () => {
  failure = new Error('TIMEOUT');
  await memory.renew(PODS);
  await memory.renew(PODS);
  expect(log.warn).toHaveBeenCalledTimes(1);
  expect(ports()).toEqual([]);
  failure = undefined;
  await memory.renew(PODS);
  expect(ports()).toEqual([100, 101]);
});

test('a look that comes while one is under way adds nothing to it', async () => {
  await Promise.all([memory.renew(PODS), memory.renew(PODS)]);
  expect(ports()).toEqual([100, 101]);
});

test('many ports keep nobody from his turn', async () => {
  renew.mockImplementation(() => {
    const begun = performance.now();
    while (performance.now() - begun < 1) {
      // as long as the kernel takes on a large bridge
    }
    return 1;
  });
  let turns = 0;
  const turn = setInterval(() => turns++, 1);
  await memory.renew(Array.from({ length: 50 }, (_, n) => bridged(100 + n, BRIDGE)));
  clearInterval(turn);
  expect(ports()).toHaveLength(50);
  expect(turns).toBeGreaterThan(5);
});
