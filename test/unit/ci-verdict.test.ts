import { describe, expect, test } from 'vitest';
import {
  type FileResult,
  isGood,
  judge,
  type Results,
  readReport,
  report,
  type StageOutcome,
  worthAnotherTry,
} from '../../scripts/ci-verdict.js';

const GOOD: FileResult = { passed: ['a', 'b'], failed: [], skipped: [] };
const BAD: FileResult = { passed: ['a'], failed: ['b'], skipped: [] };

function files(...given: [string, FileResult][]): Results {
  return new Map(given);
}

function outcome(fields: Partial<StageOutcome> = {}): StageOutcome {
  return {
    stage: { target: 'test', least: 2 },
    status: 0,
    first: files(['test/e2e/a.test.ts', GOOD]),
    again: new Map(),
    ...fields,
  };
}

const closing = (...outcomes: StageOutcome[]) => report(judge(outcomes)).at(-1);

test('all passed', () => {
  const verdict = judge([outcome(), outcome()]);
  expect(report(verdict)).toEqual(['4 passed, 0 failed']);
  expect(isGood(verdict)).toBe(true);
});

describe('is not good', () => {
  test.each<[string, Partial<StageOutcome>, string]>([
    ['a test that failed', { status: 2, first: files(['x', BAD]) }, 'FAILED x: b'],
    ['no results', { status: 2, first: undefined }, 'FAILED make test exited with 2 and wrote no results'],
    [
      'no test at all',
      { first: files() },
      'FAILED make test ran 0 tests: fewer than 2, so some have been lost',
    ],
    [
      'fewer tests than the floor',
      { stage: { target: 'test', least: 3 } },
      'FAILED make test ran 2 tests: fewer than 3, so some have been lost',
    ],
    ['make that failed by itself', { status: 1 }, 'FAILED make test exited with 1, though no test failed'],
    [
      'a skip',
      { first: files(['x', { ...GOOD, skipped: ['c'] }]) },
      '1 tests were skipped: nothing may be skipped here',
    ],
  ])('%s', (_what, fields, told) => {
    const verdict = judge([outcome(fields)]);
    expect(isGood(verdict)).toBe(false);
    expect(report(verdict)).toContain(told);
  });

  test('a run without stages', () => {
    expect(isGood(judge([]))).toBe(false);
  });
});

describe('a second try', () => {
  test('is given to files with runtimes in them, and to no other', () => {
    const first = files(
      ['test/unit/a.test.ts', BAD],
      ['test/bpf/b.test.ts', BAD],
      ['test/e2e/c.test.ts', BAD],
      ['test/e2e/d.test.ts', GOOD],
      ['test/image/e.test.ts', BAD],
    );
    expect(worthAnotherTry(first)).toEqual(['test/e2e/c.test.ts', 'test/image/e.test.ts']);
  });

  test('that is passed is listed as flaky, and counts what it came to', () => {
    const verdict = judge([outcome({ status: 2, first: files(['x', BAD]), again: files(['x', GOOD]) })]);
    expect(report(verdict)).toEqual(['FLAKY x: b', '2 passed, 0 failed']);
    expect(isGood(verdict)).toBe(true);
  });

  test('that fails, or runs nothing, changes nothing', () => {
    for (const second of [BAD, { passed: [], failed: [], skipped: ['a', 'b'] }]) {
      expect(closing(outcome({ status: 2, first: files(['x', BAD]), again: files(['x', second]) }))).toBe(
        '1 passed, 1 failed',
      );
    }
  });

  test('is not for a whole suite that flakes', () => {
    const names = ['a', 'b', 'c', 'd'];
    const first = new Map(names.map((name) => [name, BAD]));
    const again = new Map(names.map((name) => [name, GOOD]));
    expect(closing(outcome({ status: 2, first, again }))).toBe('8 passed, 1 failed');
  });
});

test("vitest's report is read by file; one that could not be loaded has failed", () => {
  const test = (fullName: string, status: string) => ({ fullName, status });
  const read = readReport(
    {
      testResults: [
        {
          name: '/w/test/e2e/a.test.ts',
          status: 'failed',
          assertionResults: [
            test('p', 'passed'),
            test('f', 'failed'),
            test('s', 'skipped'),
            test('t', 'todo'),
          ],
        },
        { name: '/w/test/e2e/b.test.ts', status: 'failed', assertionResults: [] },
        { name: '/w/test/e2e/c.test.ts', status: 'failed', assertionResults: [test('p', 'pending')] },
      ],
    },
    '/w',
  );
  expect(Object.fromEntries(read)).toEqual({
    'test/e2e/a.test.ts': { passed: ['p'], failed: ['f'], skipped: ['s', 't'] },
    'test/e2e/b.test.ts': { passed: [], failed: ['the file itself'], skipped: [] },
    'test/e2e/c.test.ts': { passed: [], failed: ['the file itself'], skipped: ['p'] },
  });
});
