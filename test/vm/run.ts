/**
 * The suite of suite.ts on other kernels and on this one; results in build/kernels/, and the table of docs/kernels.md.
 *
 *   tsx test/vm/run.ts [--kernel 6.1|6.12|own]… [FILE…]     default: all of them, all files
 */

import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { type Report, type Results, readReport } from '../../scripts/ci-verdict.js';
import { kernelOf, SERIES, type Series } from './kernels.js';
import { runInGuest } from './machine.js';
import { FEATURES, GUEST_PATIENCE, GUEST_RUNTIMES } from './suite.js';
import { writeTable } from './table.js';

const ROOT = join(import.meta.dirname, '../..');
const OUT = join(ROOT, 'build/kernels');
const GUEST_TIMEOUT_MS = 90 * 60_000;
/** A node has these loaded: kube-proxy, a bridge CNI and the runtimes ask for them. */
const NODE_MODULES = [
  'br_netfilter',
  'ip_vs',
  'ip_vs_rr',
  'ip_vs_sh',
  'nf_conntrack',
  'ifb',
  'sch_tbf',
  'cls_u32',
  'act_mirred',
];

const { values, positionals } = parseArgs({
  options: { kernel: { type: 'string', multiple: true } },
  allowPositionals: true,
});
const all = [...SERIES, 'own'] as const;
const wanted = values.kernel ?? all;
const files = positionals.length > 0 ? positionals : FEATURES.flatMap((feature) => feature.files);
mkdirSync(OUT, { recursive: true });
let failed = false;
for (const kernel of wanted) {
  if (!(all as readonly string[]).includes(kernel)) {
    throw new Error(`--kernel is one of ${all.join(', ')}, not ${kernel}`);
  }
  const report = kernel === 'own' ? here() : await inGuest(kernel as Series);
  failed = !tell(kernel, report) || failed;
}
if (positionals.length === 0 && values.kernel === undefined) {
  writeTable(ROOT, OUT, all);
}
process.exitCode = failed ? 1 : 0;

function words(report: string): string[] {
  return ['run', ...files, '--reporter=verbose', '--reporter=json', `--outputFile.json=${report}`];
}

function here(): Report | undefined {
  process.stdout.write(`kernels: ${release()}, this machine's own\n`);
  const path = join(OUT, 'own.json');
  spawnSync('npx', ['--no-install', 'vitest', ...words(path)], { cwd: ROOT, stdio: 'inherit' });
  return parsed(readFileSync(path, 'utf8'));
}

async function inGuest(series: Series): Promise<Report | undefined> {
  const kernel = await kernelOf(series);
  process.stdout.write(`kernels: ${kernel.release}, emulated\n`);
  const script = `
set -u
for module in ${NODE_MODULES.join(' ')}; do modprobe $module || exit 1; done
cd '${ROOT}'
export NO_COLOR=1 NODESENTRY_TEST_PATIENCE=${GUEST_PATIENCE} NODESENTRY_TEST_RUNTIMES=${GUEST_RUNTIMES} NODESENTRY_EXPECT_IPVS=1 NODESENTRY_TEST_ALL_PARTS=1 CI=1
npx --no-install vitest ${words('/run/report').join(' ')}
`;
  const { code, report } = await runInGuest(kernel, {
    script,
    timeoutMs: GUEST_TIMEOUT_MS,
    consolePath: join(OUT, `${series}.log`),
    onOutput: (text) => process.stdout.write(text),
  });
  if (code === undefined) {
    return undefined;
  }
  writeFileSync(join(OUT, `${series}.json`), report);
  return parsed(report);
}

function parsed(text: string): Report | undefined {
  try {
    return JSON.parse(text) as Report;
  } catch {
    return undefined;
  }
}

/** Whether all passed and none was skipped. */
function tell(kernel: string, report: Report | undefined): boolean {
  if (report === undefined) {
    process.stdout.write(`kernels: ${kernel}: no report; see build/kernels/${kernel}.log\n`);
    return false;
  }
  const results: Results = readReport(report, ROOT);
  let [passed, bad] = [0, 0];
  for (const [file, result] of results) {
    passed += result.passed.length;
    bad += result.failed.length + result.skipped.length;
    for (const name of result.failed) {
      process.stdout.write(`kernels: ${kernel}: FAILED ${file}: ${name}\n`);
    }
    for (const name of result.skipped) {
      process.stdout.write(`kernels: ${kernel}: SKIPPED ${file}: ${name}\n`);
    }
  }
  process.stdout.write(`kernels: ${kernel}: ${passed} passed, ${bad} failed or skipped\n`);
  return bad === 0 && passed > 0;
}
