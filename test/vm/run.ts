/**
 * The suite of suite.ts on other kernels and on this one; results in build/kernels/, and from them the table of
 * docs/kernels.md.
 *
 *   tsx test/vm/run.ts [--kernel 6.1|6.12|own]… [FILE…]     default: all of them, all files
 */

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { readReport } from '../../scripts/ci-verdict.js';
import { type Kernel, kernelOf, SERIES, type Series } from './kernels.js';
import { runInGuest } from './machine.js';
import { resultPath, writeTable } from './results.js';
import { FEATURES, GUEST_MODULES, GUEST_PATIENCE, GUEST_RUNTIMES } from './suite.js';

const ROOT = join(import.meta.dirname, '../..');
const KERNELS = [...SERIES, 'own'] as const;
const GUEST_TIMEOUT_MS = 40 * 60_000;
/** A guest that ends before its tests do, which the emulator's own mistakes can bring about, is started once more. */
const ATTEMPTS = 2;

const { values, positionals } = parseArgs({
  options: { kernel: { type: 'string', multiple: true } },
  allowPositionals: true,
});
const units = positionals.length > 0 ? positionals : FEATURES.flatMap(({ files }) => files);
const failures: string[] = [];
for (const name of values.kernel ?? KERNELS) {
  const series = SERIES.find((candidate) => candidate === name);
  if (series === undefined && name !== 'own') {
    throw new Error(`--kernel is one of ${KERNELS.join(', ')}, not ${name}`);
  }
  const kernel = series && (await kernelOf(series));
  process.stdout.write(
    `kernels: ${kernel ? `${kernel.release}, emulated` : `${release()}, this machine's own`}\n`,
  );
  for (const unit of units) {
    const path = resultPath(ROOT, name, unit);
    mkdirSync(join(path, '..'), { recursive: true });
    rmSync(path, { force: true });
    if (series === undefined || kernel === undefined) {
      here(unit, path);
    } else {
      await inGuest(kernel, series, unit, path);
    }
    failures.push(...told(name, unit, path));
  }
}
writeTable(ROOT, KERNELS);
process.stdout.write(failures.map((failure) => `kernels: FAILED ${failure}\n`).join(''));
process.stdout.write(`kernels: ${failures.length === 0 ? 'all passed' : `${failures.length} failed`}\n`);
process.exitCode = failures.length === 0 ? 0 : 1;

function words(unit: string, report: string): string[] {
  return ['run', unit, '--reporter=verbose', '--reporter=json', `--outputFile.json=${report}`];
}

function here(unit: string, path: string): void {
  spawnSync('npx', ['--no-install', 'vitest', ...words(unit, path)], { cwd: ROOT, stdio: 'inherit' });
}

async function inGuest(kernel: Kernel, series: Series, unit: string, path: string): Promise<void> {
  const script = `
set -u
for module in ${GUEST_MODULES.join(' ')}; do modprobe $module || exit 1; done
cd '${ROOT}'
export CI=1 NO_COLOR=1 NODESENTRY_TEST_ALL_PARTS=1
export NODESENTRY_TEST_PATIENCE=${GUEST_PATIENCE} NODESENTRY_TEST_RUNTIMES=${GUEST_RUNTIMES}
npx --no-install vitest ${words(unit, '/run/report').join(' ')}
`;
  for (let n = 1; n <= ATTEMPTS; n++) {
    const { code, report } = await runInGuest(kernel, {
      script,
      timeoutMs: GUEST_TIMEOUT_MS,
      consolePath: path.replace(/json$/, 'log'),
      onOutput: (text) => process.stdout.write(text),
    });
    if (code !== undefined && report !== '') {
      writeFileSync(path, report);
      return;
    }
    process.stdout.write(
      `kernels: ${series}: the guest ended before ${unit} did (attempt ${n} of ${ATTEMPTS})\n`,
    );
  }
}

/** What did not pass, in words. */
function told(kernel: string, unit: string, path: string): string[] {
  if (!existsSync(path)) {
    return [`${kernel}: ${unit}: no report`];
  }
  const bad: string[] = [];
  let passed = 0;
  for (const [file, result] of readReport(JSON.parse(readFileSync(path, 'utf8')), ROOT)) {
    passed += result.passed.length;
    bad.push(...result.failed.map((test) => `${kernel}: ${file}: ${test}`));
    bad.push(...result.skipped.map((test) => `${kernel}: ${file}: skipped: ${test}`));
  }
  process.stdout.write(`kernels: ${kernel}: ${unit}: ${passed} passed, ${bad.length} failed or skipped\n`);
  return passed === 0 && bad.length === 0 ? [`${kernel}: ${unit}: no test ran`] : bad;
}
