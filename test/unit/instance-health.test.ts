import { beforeEach, expect, it } from 'vitest';
import type { ProbeState } from '../../src/datapath/listener-probe.js';
import { InstanceHealth } from '../../src/instances/health.js';

const LOOK_MS = 1_000;
const NUMBER = 3;
const WEB = {
  name: 'web',
  number: NUMBER,
  listeners: [{ direction: 'outbound', family: 4, adopted: true }],
  rule: { checkMs: 10_000, failMs: 5_000 },
  isUsed: true,
} as const;

let nowMs: number;
let state: ProbeState;
let told: boolean[];
let health: InstanceHealth;

beforeEach(() => {
  nowMs = 1_000_000;
  state = 'queued';
  told = [];
  health = new InstanceHealth({
    lookMs: LOOK_MS,
    open: () => ({ state: () => state, close: () => undefined }),
    changed: (_name, hangs) => told.push(hangs),
    nowMs: () => nowMs,
    log: { info: () => undefined, warn: () => undefined },
  });
});

/** So many looks in time, the first one at once. */
function look(times: number): void {
  for (let i = 0; i < times; i++) {
    health.look([WEB]);
    nowMs += LOOK_MS;
  }
}

it('takes an instance for hung that accepts nothing for as long as it has', () => {
  look(5);
  expect(told).toEqual([]);
  look(1);
  expect(told).toEqual([true]);
  expect(health.of(NUMBER)).toEqual({ state: 'HUNG', reason: 'a connection is not accepted since 5 s' });
  state = 'accepted';
  look(1);
  expect(told).toEqual([true, false]);
  expect(health.of(NUMBER).state).toBe('ACCEPTING');
});

it('holds nothing against an instance of the time that the agent itself was stopped', () => {
  look(2);
  nowMs += 20_000;
  look(1); // what came meanwhile has not been read yet
  expect(told).toEqual([]);
  state = 'accepted';
  look(1);
  expect(told).toEqual([]);
  expect(health.of(NUMBER).state).toBe('ACCEPTING');
});

it('finds out about an instance that hangs after a sleep of the agent as well', () => {
  look(2);
  nowMs += 20_000;
  look(5);
  expect(told).toEqual([]);
  look(1);
  expect(told).toEqual([true]);
});

it('has an instance that hung before a sleep hang after it', () => {
  look(6);
  nowMs += 20_000;
  look(1);
  expect(told).toEqual([true]);
  expect(health.of(NUMBER).state).toBe('HUNG');
});
