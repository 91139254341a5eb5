import { expect, it } from 'vitest';
import { inTurns } from '../../src/base/in-turns.js';

it('does all in their order, and gives others their turn in between', async () => {
  let turns = 0;
  const timer = setInterval(() => {
    turns += 1;
  }, 0);
  const items = Array.from({ length: 200 }, (_, n) => n);
  const doubled = await inTurns(items, (n) => {
    const until = performance.now() + 0.5;
    while (performance.now() < until) {
      // work
    }
    return 2 * n;
  });
  clearInterval(timer);
  expect(doubled).toEqual(items.map((n) => 2 * n));
  expect(turns).toBeGreaterThan(10);
});
