/** The arithmetic of `make bench`. */

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { idleSeconds } from '../bench/datapath/machine.js';
import { median, ratios, summarise } from '../bench/datapath/statistics.js';
import { metricsOf, type Told, WORKLOADS, type Workload, wordsOf } from '../bench/datapath/workloads.js';

const workload = (name: string) => WORKLOADS.find((one) => one.name === name) as Workload;
const told = (more: Partial<Told>): Told => ({
  seconds: 2,
  done: 0,
  total: 0,
  bytes: 0,
  totalBytes: 0,
  failures: 0,
  error: '',
  ...more,
});

describe('medians', () => {
  it.each([
    [[3], 3],
    [[1, 9], 5],
    [[9, 1, 2], 2],
    [[10, 9, 100, 1], 9.5],
  ])('of %j is %d', (values, expected) => {
    expect(median(values)).toBe(expected);
  });

  it('have as many values above them as below, and are not moved by the order', () => {
    fc.assert(
      fc.property(fc.array(fc.double({ noNaN: true, min: -1e9, max: 1e9 }), { minLength: 1 }), (values) => {
        const middle = median(values);
        const [below, above] = [values.filter((v) => v < middle), values.filter((v) => v > middle)];
        expect(Math.max(below.length, above.length)).toBeLessThanOrEqual(values.length / 2);
        expect(median([...values].reverse())).toBe(middle);
      }),
    );
  });

  it('of nothing are no number, which nothing can be mistaken for', () => {
    expect(summarise([])).toEqual({ median: Number.NaN, min: Number.NaN, max: Number.NaN, runs: 0 });
  });
});

describe('ratios', () => {
  it('are taken within a round: a machine that gets slower does not make one of them slower', () => {
    const explicit = [100, 50, 25].map((value, round) => ({ round, value }));
    const ours = [110, 55, 27.5].map((value, round) => ({ round, value }));
    const { median: middle, min, max, runs } = ratios(ours, explicit);
    expect([middle, min, max].map((value) => value.toFixed(6))).toEqual(['1.100000', '1.100000', '1.100000']);
    expect(runs).toBe(3);
  });

  it('leave out a round that only one of them has', () => {
    const explicit = [{ round: 1, value: 100 }];
    const ours = [
      { round: 0, value: 1 },
      { round: 1, value: 90 },
    ];
    expect(ratios(ours, explicit)).toEqual({ median: 0.9, min: 0.9, max: 0.9, runs: 1 });
  });

  it('leave out a round in which the other did nothing', () => {
    expect(ratios([{ round: 0, value: 5 }], [{ round: 0, value: 0 }]).runs).toBe(0);
  });
});

describe('a run', () => {
  it('counts what was done in the measured time, and the CPU by all that was done', () => {
    const connects = told({ done: 1_000, total: 1_500 });
    expect(metricsOf(workload('connects-64'), connects, 0.3)).toEqual({
      connectionsPerSecond: 500,
      cpuUs: 200,
    });
  });

  it('of bulk counts megabytes of a million bytes', () => {
    const bulk = told({ bytes: 4e9, totalBytes: 5e9 });
    expect(metricsOf(workload('bulk-1'), bulk, 1)).toEqual({ megabytesPerSecond: 2_000, cpuUs: 200 });
  });

  it('with a failure is refused, however fast it was', () => {
    const failed = told({ done: 1_000_000, total: 1_000_000, failures: 1, error: 'ECONNRESET' });
    expect(() => metricsOf(workload('requests-1'), failed, 1)).toThrow(
      '1 failures, the last of them ECONNRESET',
    );
  });

  it('in which nothing was done is refused', () => {
    expect(() => metricsOf(workload('paced'), told({}), 1)).toThrow('nothing was done');
  });

  it('is asked for in words of the load', () => {
    expect(wordsOf(workload('paced'), { ip: '10.0.0.1', ports: [1, 2] }, 2)).toEqual([
      'paced',
      '10.0.0.1',
      '1,2',
      '16',
      '2',
      '2000',
    ]);
  });
});

it('idle, waiting for disks and taken by the host is what the machine did not work', () => {
  const stat = 'cpu  100 1 20 5000 300 7 8 40 0 0\ncpu0 50 0 10 2500 150 3 4 20 0 0\n';
  expect(idleSeconds(stat)).toBe(53.4);
});
