/** The report of `make bench` says what was measured, and no more. */

import { describe, expect, it } from 'vitest';
import { judge, outcomes } from '../bench/datapath/goals.js';
import { readmeLines, withBenchmark } from '../bench/datapath/readme.js';
import { inDigits, inRatio, writeReport } from '../bench/datapath/report.js';
import { compare, drift, type Results, type Section } from '../bench/datapath/results.js';
import type { Run } from '../bench/datapath/rounds.js';
import { summarise } from '../bench/datapath/statistics.js';
import type { VariantName } from '../bench/datapath/variants.js';

function run(variant: VariantName, round: number, perSecond: number, cpuUs: number, repeated?: true): Run {
  return {
    workload: 'connects-64',
    variant,
    round,
    ...(repeated && { repeated }),
    metrics: { connectionsPerSecond: perSecond, cpuUs },
    cpuSeconds: 2,
    told: { seconds: 1, done: 1, total: 1, bytes: 0, totalBytes: 0, failures: 0, error: '' },
  };
}

/** A machine that is half as fast in its second round. */
const SECTION: Section = {
  name: 'some',
  title: 'Some proxy',
  busyBefore: 0.034,
  runs: [
    run('explicit', 0, 10_000, 100),
    run('ours', 0, 12_000, 90),
    run('iptables-tproxy', 0, 11_000, 95),
    run('explicit', 0, 9_000, 110, true),
    run('explicit', 1, 5_000, 200),
    run('ours', 1, 5_500, 180),
    run('iptables-tproxy', 1, 5_600, 160),
    run('explicit', 1, 5_000, 200, true),
  ],
};

const RESULTS: Results = {
  machine: {
    cpu: 'A processor',
    cpus: 2,
    memoryBytes: 8 * 2 ** 30,
    kernel: '6.18.0',
    versions: { HAProxy: '2.6.12' },
    date: '2026-11-29T09:00:00.000Z',
    commit: 'abc1234-dirty',
  },
  rounds: 2,
  seconds: 1,
  sections: [SECTION],
};

describe('what is compared', () => {
  it('is a variant with explicit, round by round', () => {
    const compared = compare(SECTION, 'connects-64', 'ours', 'connectionsPerSecond');
    expect(compared?.value).toEqual({ median: 8_750, min: 5_500, max: 12_000, runs: 2 });
    expect(compared?.ratio.min).toBeCloseTo(1.1);
    expect(compared?.ratio.max).toBeCloseTo(1.2);
  });

  it('is without the repetition, which tells of the machine alone', () => {
    expect(compare(SECTION, 'connects-64', 'explicit', 'connectionsPerSecond')?.value.runs).toBe(2);
    expect(drift(SECTION, 'connects-64', 'connectionsPerSecond')).toEqual({
      median: 0.95,
      min: 0.9,
      max: 1,
      runs: 2,
    });
  });

  it('is nothing where there was no run', () => {
    expect(compare(SECTION, 'connects-64', 'splice', 'connectionsPerSecond')).toBeUndefined();
    expect(compare(SECTION, 'bulk-1', 'ours', 'megabytesPerSecond')).toBeUndefined();
  });
});

describe('a goal', () => {
  it.each([
    [[1.1, 1.2, 1.3], 'yes'],
    [[0.9, 1.2, 1.3], 'yes, within its spread'],
    [[0.8, 0.9, 1.3], 'no, within its spread'],
    [[0.8, 0.9, 0.95], 'no'],
  ])('of at least 1 with rounds of %j is reached: %s', (values, verdict) => {
    expect(judge(summarise(values), { atLeast: 1 })).toBe(verdict);
  });

  it('of at most 1 is the other way round', () => {
    expect(judge(summarise([0.8, 0.9, 0.95]), { atMost: 1 })).toBe('yes');
    expect(judge(summarise([1.1, 1.2]), { atMost: 1 })).toBe('no');
  });

  it('is not reached by what was not measured', () => {
    expect(judge(summarise([]), { atLeast: 1 })).toBe('no');
    expect(outcomes({ ...SECTION, runs: [] })).toEqual([]);
  });

  it('against others is by the median of the others, and less CPU is better', () => {
    const found = outcomes(SECTION).map(({ what, verdict }) => [what, verdict]);
    expect(found).toEqual([
      ['NodeSentry: new connections', 'yes'],
      ['NodeSentry: new connections, against iptables TPROXY', 'yes, within its spread'],
      ['NodeSentry: CPU per connection, against iptables TPROXY', 'no'],
    ]);
  });
});

describe('the report', () => {
  const files = writeReport(RESULTS);
  const text = files['report.md'] as string;

  it('names the machine, the kernel, the versions, the day, and that files were changed', () => {
    for (const word of ['A processor', '6.18.0', 'HAProxy 2.6.12', '2026-11-29', 'abc1234-dirty']) {
      expect(text).toContain(word);
    }
  });

  it('has the median, and the ratio with its least and its most', () => {
    expect(text).toContain('| NodeSentry | 8,750 · **1.15** (1.10–1.20) | 135 · **0.90** (0.90–0.90) |');
  });

  it('says how steady the machine was, and how busy', () => {
    expect(text).toContain('3 % of the machine was at work with something else');
    expect(text).toContain(
      '| the first one again, in the end | **0.95** (0.90–1.00) | **1.05** (1.00–1.10) |',
    );
  });

  it('links every plot that it wrote, and no other', () => {
    const linked = [...text.matchAll(/\]\(([\w-]+\.svg)\)/g)].map(([, name]) => name);
    expect(linked).toEqual(Object.keys(files).filter((name) => name.endsWith('.svg')));
    expect(linked).toEqual(['some-throughput.svg', 'some-cpu.svg']);
  });

  it('draws a bar as long as its value', () => {
    const svg = files['some-throughput.svg'] as string;
    expect(svg).toMatch(/^<svg /);
    for (const name of ['explicit', 'NodeSentry', 'iptables TPROXY']) {
      expect(svg).toContain(`>${name}</text>`);
    }
    const heights = ['#999999', '#e69f00', '#0072b2'].map((colour) => {
      const bar = new RegExp(`l0 -([\\d.]+)l-[\\d.]+ 0Z" fill="${colour}"`).exec(svg);
      return Number(bar?.[1]);
    }) as [number, number, number];
    expect(heights[1] / heights[0]).toBeCloseTo(1.15, 2);
    expect(heights[2] / heights[0]).toBeCloseTo(1.11, 2);
  });
});

it('numbers that there are none of are a dash', () => {
  expect(inDigits(Number.NaN)).toBe('–');
  expect(inRatio(summarise([]))).toBe('–');
  expect([0.123, 12.34, 123.4, 12_345].map(inDigits)).toEqual(['0.12', '12.3', '123', '12,345']);
});

describe('a goal of size', () => {
  const sized = (variant: VariantName, values: readonly number[]) =>
    values.map((value, round) => run(variant, round, value, 100));
  const section = {
    ...SECTION,
    runs: [
      ...sized('explicit', [10_000, 5_000]),
      ...sized('pods-10', [10_000, 5_000]),
      ...sized('pods-1000', [9_600, 4_700]),
    ],
  };

  it('is to the smaller node in the same round, not to explicit', () => {
    const found = outcomes(section).map(({ what, wanted, verdict }) => [what, wanted, verdict]);
    expect(found).toEqual([
      ['NodeSentry, 1,000 pods: new connections, to NodeSentry, 10 pods', '≥ 0.95', 'yes, within its spread'],
    ]);
  });
});

describe('the lines of the README', () => {
  const main = { ...RESULTS, sections: [{ ...SECTION, name: 'haproxy-runc' }] };

  it('are those of the main part, with their spread, and say where the others are', () => {
    const lines = readmeLines(main) as string;
    expect(lines).toContain('- NodeSentry, new connections, 64 at a time: 1.15 times (1.10–1.20)');
    expect(lines).toContain('2 rounds; 2 × A processor, Linux 6.18.0, 2026-11-29');
    expect(lines).toContain('slower lines included');
  });

  it('are none where the main part was not measured, or the machine was busy', () => {
    expect(readmeLines(RESULTS)).toBeUndefined();
    const busy = { ...main, sections: main.sections.map((section) => ({ ...section, busyBefore: 0.2 })) };
    expect(readmeLines(busy)).toBeUndefined();
  });

  it('take the place of those before, and of nothing else', () => {
    const readme = 'a\n<!-- make bench writes this -->\nold\n<!-- up to here -->\nb\n';
    expect(withBenchmark(readme, 'new')).toBe(readme.replace('old', 'new'));
    expect(() => withBenchmark('no marks', 'new')).toThrow('no place');
  });
});
