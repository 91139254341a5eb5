import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, expect, it } from 'vitest';
import { LoopDelay } from '../../src/telemetry/loop-delay.js';

const loop = new LoopDelay();
afterEach(() => loop.close());

it('tells for how long the loop was held at most, once', async () => {
  await delay(120);
  loop.take();
  await delay(60);
  const until = performance.now() + 300;
  while (performance.now() < until) {
    // held
  }
  await delay(120);
  const { 1: longest } = loop.take();
  expect(longest).toBeGreaterThan(0.2);
  expect(loop.take()[1]).toBe(0);
});
