/** What a run of tests comes to, from vitest's JSON report: pure, so that it is tested itself (test/unit/ci-verdict.test.ts). */

import { relative } from 'node:path';

/** By the tests' full names. */
export interface FileResult {
  readonly passed: readonly string[];
  readonly failed: readonly string[];
  /** Of any kind: skipped, to do, not reached. */
  readonly skipped: readonly string[];
}

/** By the file's path below the checkout. */
export type Results = ReadonlyMap<string, FileResult>;

/** The part of vitest's report that is read. */
export interface Report {
  readonly testResults: readonly {
    readonly name: string;
    readonly status: string;
    readonly assertionResults: readonly { readonly fullName: string; readonly status: string }[];
  }[];
}

export interface Stage {
  /** Of make. */
  readonly target: string;
  /** Fewer tests than that, and some have been lost. Raise it as tests are added. */
  readonly least: number;
}

export interface StageOutcome {
  readonly stage: Stage;
  /** Of make. */
  readonly status: number;
  /** Undefined: make wrote none. */
  readonly first: Results | undefined;
  /** Of the files that were run once more, by themselves. */
  readonly again: Results;
}

export interface Verdict {
  readonly passed: number;
  /** In words, one a line. */
  readonly failed: readonly string[];
  readonly flaky: readonly string[];
  readonly skipped: number;
}

/** So many files may pass only the second time. */
const MAY_FLAKE = 3;
/** A test without a runtime in it has no excuse. */
const DETERMINISTIC = /^test\/(unit|bpf)\//;

export function readReport({ testResults }: Report, root: string): Results {
  return new Map(
    testResults.map(({ name, status, assertionResults }) => {
      const of = (...wanted: string[]) =>
        assertionResults.filter((test) => wanted.includes(test.status)).map(({ fullName }) => fullName);
      const [passed, failed] = [of('passed'), of('failed')];
      const told = new Set([...passed, ...failed]);
      return [
        relative(root, name),
        {
          passed,
          // A file that could not be loaded, or whose hooks failed, has no failed test of its own.
          failed: status === 'failed' && failed.length === 0 ? ['the file itself'] : failed,
          skipped: assertionResults.map(({ fullName }) => fullName).filter((test) => !told.has(test)),
        },
      ];
    }),
  );
}

/** Files that get a second try. */
export function worthAnotherTry(first: Results): string[] {
  return [...first]
    .filter(([name, { failed }]) => failed.length > 0 && !DETERMINISTIC.test(name))
    .map(([name]) => name);
}

export function judge(outcomes: readonly StageOutcome[]): Verdict {
  const failed: string[] = [];
  const flaky: string[] = [];
  let passed = 0;
  let skipped = 0;
  for (const { stage, status, first, again } of outcomes) {
    if (first === undefined) {
      failed.push(`make ${stage.target} exited with ${status} and wrote no results`);
      continue;
    }
    let tests = 0;
    let failures = 0;
    for (const [name, before] of first) {
      const after = again.get(name);
      const mended = after !== undefined && after.failed.length === 0 && after.passed.length > 0;
      const result = mended ? after : before;
      if (mended) {
        flaky.push(`${name}: ${before.failed.join('; ')}`);
      }
      passed += result.passed.length;
      skipped += result.skipped.length;
      tests += result.passed.length + result.failed.length;
      failures += before.failed.length;
      failed.push(...result.failed.map((test) => `${name}: ${test}`));
    }
    if (status !== 0 && failures === 0) {
      failed.push(`make ${stage.target} exited with ${status}, though no test failed`);
    }
    if (tests < stage.least) {
      failed.push(
        `make ${stage.target} ran ${tests} tests: fewer than ${stage.least}, so some have been lost`,
      );
    }
  }
  if (flaky.length > MAY_FLAKE) {
    failed.push(`${flaky.length} files passed only the second time: more than ${MAY_FLAKE} are a failure`);
  }
  return { passed, failed, flaky, skipped };
}

/** The last of them is the closing line. */
export function report({ passed, failed, flaky, skipped }: Verdict): string[] {
  return [
    ...failed.map((one) => `FAILED ${one}`),
    ...flaky.map((one) => `FLAKY ${one}`),
    ...(skipped > 0 ? [`${skipped} tests were skipped: nothing may be skipped here`] : []),
    `${passed} passed, ${failed.length} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`,
  ];
}

export function isGood({ passed, failed, skipped }: Verdict): boolean {
  return passed > 0 && failed.length === 0 && skipped === 0;
}
