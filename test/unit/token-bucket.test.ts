import { expect, it } from 'vitest';
import { TokenBucket } from '../../src/base/token-bucket.js';

it('gives out so many a second, and no more at once after a pause', () => {
  let now = 5_000;
  const bucket = new TokenBucket({ perSecond: 100, burst: 100 }, () => now);
  expect([bucket.take(60), bucket.take(60), bucket.take(1)]).toEqual([60, 40, 0]);
  now += 25;
  expect([bucket.take(1), bucket.take(1), bucket.take(5)]).toEqual([1, 1, 0]);
  now += 60_000;
  expect(bucket.take(1_000)).toBe(100);
});

it('counts what is not whole', () => {
  let now = 0;
  const bucket = new TokenBucket({ perSecond: 100, burst: 100 }, () => now);
  bucket.take(100);
  const taken = Array.from({ length: 100 }, () => {
    now += 7.5;
    return bucket.take(9);
  });
  expect(taken.reduce((sum, count) => sum + count)).toBe(75);
});
