/** What a submission has to pass after lint: `make test` and of `make test-long` all but the full sizes. See docs/testing.md. */

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import {
  type FileResult,
  isGood,
  judge,
  type Report,
  type Results,
  readReport,
  report,
  type Stage,
  type StageOutcome,
  worthAnotherTry,
} from './ci-verdict.js';

const STAGES: readonly Stage[] = [
  { target: 'test', least: 3_500 },
  { target: 'test-image', least: 16 },
  { target: 'test-k8s', least: 60 },
];

function make(...words: readonly string[]): number {
  return spawnSync('make', words, { stdio: 'inherit' }).status ?? 1;
}

/** What this target has written. */
function resultsOf({ target }: Stage): Results | undefined {
  const path = `build/${target}-results.json`;
  if (!existsSync(path)) {
    return undefined;
  }
  const read = readReport(JSON.parse(readFileSync(path, 'utf8')) as Report, process.cwd());
  rmSync(path);
  return read;
}

function run(stage: Stage): StageOutcome {
  const startedMs = performance.now();
  resultsOf(stage); // of an earlier run
  const status = make(stage.target);
  const first = resultsOf(stage);
  const again = new Map<string, FileResult>();
  for (const file of first === undefined ? [] : worthAnotherTry(first)) {
    process.stdout.write(`ci: ${file} failed: once more, by itself\n`);
    make(stage.target, `FILES=${file}`);
    const second = resultsOf(stage)?.get(file);
    if (second !== undefined) {
      again.set(file, second);
    }
  }
  process.stdout.write(
    `ci: make ${stage.target}: ${Math.round((performance.now() - startedMs) / 1_000)} s\n`,
  );
  return { stage, status, first, again };
}

const verdict = judge(STAGES.map(run));
process.stdout.write(`${report(verdict).join('\n')}\n`);
process.exit(isGood(verdict) ? 0 : 1);
