/** When listeners are looked for, by the clock alone. */

import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { ListenerLooks } from '../../src/agent/listener-looks.js';

let looks: ListenerLooks | undefined;
/** Milliseconds since the start of each look. */
let at: number[];

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
  at = [];
});

afterEach(() => {
  looks?.close();
  vi.useRealTimers();
});

function start(isTold: boolean): ListenerLooks {
  const startedMs = performance.now();
  looks = new ListenerLooks({ look: () => void at.push(performance.now() - startedMs), isTold });
  return looks;
}

describe('where the kernel tells', () => {
  test('every 100 ms for two seconds after the start, then once a second', () => {
    start(true);
    vi.advanceTimersByTime(2_000);
    expect(at.length).toBe(20);
    vi.advanceTimersByTime(10_000);
    expect(at.length).toBe(30);
  });

  test('5 ms after a socket came or went, and attentive again for two seconds', () => {
    const told = start(true);
    vi.advanceTimersByTime(5_500);
    at = [];
    told.told();
    vi.advanceTimersByTime(4);
    expect(at).toEqual([]);
    vi.advanceTimersByTime(1);
    expect(at).toEqual([5_505]);
    vi.advanceTimersByTime(2_000);
    expect(at.length).toBe(21);
    vi.advanceTimersByTime(3_000);
    expect(at.length).toBe(24);
  });

  test('many sockets at once do not make more than a look every 20 ms', () => {
    const told = start(true);
    vi.advanceTimersByTime(5_500);
    at = [];
    for (let ms = 0; ms < 200; ms += 1) {
      told.told();
      vi.advanceTimersByTime(1);
    }
    expect(at.length).toBeGreaterThanOrEqual(9);
    expect(at.length).toBeLessThanOrEqual(11);
    const gaps = at.slice(1).map((ms, index) => ms - (at[index] ?? 0));
    expect(Math.min(...gaps)).toBeGreaterThanOrEqual(20);
  });
});

test('where it does not, every 100 ms for good', () => {
  start(false);
  vi.advanceTimersByTime(10_000);
  expect(at.length).toBe(100);
});

test('closed, it looks no more, whatever it is told', () => {
  const told = start(true);
  told.close();
  told.told();
  vi.advanceTimersByTime(5_000);
  expect(at).toEqual([]);
});
