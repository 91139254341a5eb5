import { expect, it } from 'vitest';
import { Allowance } from '../../src/base/allowance.js';

it('gives out so many a second, and no more at once after a pause', () => {
  let now = 5_000;
  const allowance = new Allowance(100, () => now);
  expect([allowance.take(60), allowance.take(60), allowance.take(1)]).toEqual([60, 40, 0]);
  now += 25;
  expect([allowance.take(1), allowance.take(1), allowance.take(5)]).toEqual([1, 1, 0]);
  now += 60_000;
  expect(allowance.take(1_000)).toBe(100);
});

it('counts what is not whole', () => {
  let now = 0;
  const allowance = new Allowance(100, () => now);
  allowance.take(100);
  const taken = Array.from({ length: 100 }, () => {
    now += 7.5;
    return allowance.take(9);
  });
  expect(taken.reduce((sum, count) => sum + count)).toBe(75);
});
