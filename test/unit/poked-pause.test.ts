import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { PokedPause } from '../../src/pods/sources/poked-pause.js';

const LONG_MS = 60_000;

let pause: PokedPause;
let abort: AbortController;
let ended: boolean;

beforeEach(() => {
  vi.useFakeTimers();
  pause = new PokedPause();
  abort = new AbortController();
  ended = false;
});
afterEach(() => {
  expect(vi.getTimerCount()).toBe(0);
  vi.useRealTimers();
});

function begin(): Promise<void> {
  return pause.wait(LONG_MS, abort.signal).then(() => {
    ended = true;
  });
}

test('a pause that nobody pokes has its full length', async () => {
  void begin();
  await vi.advanceTimersByTimeAsync(LONG_MS - 1);
  expect(ended).toBe(false);
  await vi.advanceTimersByTimeAsync(1);
  expect(ended).toBe(true);
});

test('a poke ends the pause soon, and further pokes do not put that off', async () => {
  void begin();
  pause.poke();
  for (let ms = 0; ms < 20; ms += 5) {
    expect(ended).toBe(false);
    pause.poke();
    await vi.advanceTimersByTimeAsync(5);
  }
  expect(ended).toBe(true);
});

test('a poke while a list is under way makes the pause after it short, and only that one', async () => {
  pause.answer();
  pause.poke();
  void begin();
  await vi.advanceTimersByTimeAsync(20);
  expect(ended).toBe(true);
  ended = false;
  pause.answer();
  void begin();
  await vi.advanceTimersByTimeAsync(LONG_MS - 1);
  expect(ended).toBe(false);
  await vi.advanceTimersByTimeAsync(1);
});

test('an abort ends the pause at once, before and while it lasts', async () => {
  const under = begin();
  abort.abort();
  await under;
  await begin();
});
