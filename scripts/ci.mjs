// What a submission has to pass: lint, `make test`, `make test-long`; no test skipped, none lost. Closes with the line
// "N passed, N failed" over all of them, and exits with 1 on a failure, a skip, or fewer tests than the floor.
//
// A file with real runtimes or an API server in it that fails is run once more by itself. Passing then, it is listed as
// FLAKY, which is a defect to be mended and no failure; more than MAY_FLAKE of them are.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { relative } from 'node:path';

const MAY_FLAKE = 3;
const DETERMINISTIC = /^test\/(unit|bpf)\//;

/** `least`: the number of tests below which some have been lost. Raise it as tests are added. */
const STAGES = [
  { target: 'test', results: 'build/test-results.json', least: 1750 },
  { target: 'test-full', results: 'build/test-full-results.json', least: 60 },
  { target: 'test-k8s', results: 'build/test-k8s-results.json', least: 15 },
];

function make(target, ...more) {
  return spawnSync('make', [target, ...more], { stdio: 'inherit' }).status ?? 1;
}

/** By file: its tests, or that it could not even be loaded. */
function readResults(path) {
  if (!existsSync(path)) {
    return undefined;
  }
  const { testResults } = JSON.parse(readFileSync(path, 'utf8'));
  return new Map(
    testResults.map((file) => {
      const tests = file.assertionResults;
      const of = (status) => tests.filter((test) => test.status === status).map((test) => test.fullName);
      const failed = of('failed');
      if (file.status === 'failed' && failed.length === 0) {
        failed.push('the file itself');
      }
      const passed = of('passed');
      return [
        relative(process.cwd(), file.name),
        { passed, failed, skipped: tests.length - passed.length - of('failed').length },
      ];
    }),
  );
}

/** A failure that no file tells of: a build that broke, a run that found nothing. */
function broken(what) {
  return new Map([[what, { passed: [], failed: [what], skipped: 0 }]]);
}

function runStage({ target, results, least }, flaky) {
  const startedMs = Date.now();
  rmSync(results, { force: true });
  const status = make(target);
  const files = readResults(results);
  if (files === undefined) {
    return broken(`make ${target} exited with ${status} and wrote no results`);
  }
  const again = [...files].filter(([name, { failed }]) => failed.length > 0 && !DETERMINISTIC.test(name));
  for (const [name, first] of again) {
    console.log(`ci: ${name} failed (${first.failed.join('; ')}): once more, by itself`);
    make(target, `FILES=${name}`);
    const second = readResults(results)?.get(name);
    if (second !== undefined && second.failed.length === 0 && second.passed.length > 0) {
      flaky.push(`${name}: ${first.failed.join('; ')}`);
      files.set(name, second);
    }
  }
  const all = [...files.values()];
  const count = (kind) => all.reduce((sum, file) => sum + file[kind].length, 0);
  console.log(
    `ci: make ${target}: ${count('passed')} passed, ${count('failed')} failed, ${Math.round((Date.now() - startedMs) / 1000)} s`,
  );
  if (status !== 0 && count('failed') === 0 && again.length === 0) {
    files.set(target, { passed: [], failed: [`make ${target} exited with ${status}`], skipped: 0 });
  }
  if (all.reduce((sum, { passed, failed }) => sum + passed.length + failed.length, 0) < least) {
    files.set(`${target} floor`, {
      passed: [],
      failed: [`make ${target} has fewer than ${least} tests`],
      skipped: 0,
    });
  }
  return files;
}

function main() {
  const flaky = [];
  const files =
    make('lint') === 0
      ? STAGES.flatMap((stage) => [...runStage(stage, flaky)])
      : [...broken('make lint failed')];
  const failures = files.flatMap(([name, { failed }]) => failed.map((test) => `${name}: ${test}`));
  const skipped = files.reduce((sum, [, file]) => sum + file.skipped, 0);
  for (const failure of failures) {
    console.log(`FAILED ${failure}`);
  }
  for (const one of flaky) {
    console.log(`FLAKY ${one}`);
  }
  let failed = failures.length;
  if (flaky.length > MAY_FLAKE) {
    console.log(`${flaky.length} files passed only the second time: more than ${MAY_FLAKE} are a failure`);
    failed += 1;
  }
  if (skipped > 0) {
    console.log(`${skipped} tests were skipped: nothing may be skipped here`);
  }
  const passed = files.reduce((sum, [, file]) => sum + file.passed.length, 0);
  console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`);
  process.exit(failed > 0 || skipped > 0 ? 1 : 0);
}

main();
