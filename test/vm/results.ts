/** Where the results of a kernel stand, and the table kernel × feature of docs/kernels.md that is made of them. */

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readReport } from '../../scripts/ci-verdict.js';
import { FEATURES } from './suite.js';

const [BEGIN, END] = ['<!-- written by make test-kernels -->', '<!-- end -->'];

/** Of a file or folder of tests: vitest's JSON report. */
export function resultPath(root: string, kernel: string, unit: string): string {
  return join(root, 'build/kernels', kernel, `${unit.replaceAll('/', '-')}.json`);
}

export function writeTable(root: string, kernels: readonly string[]): void {
  const path = join(root, 'docs/kernels.md');
  const text = readFileSync(path, 'utf8');
  const [from, to] = [text.indexOf(BEGIN), text.indexOf(END)];
  if (from < 0 || to < from) {
    throw new Error(`${path} has no place for the table (${BEGIN} … ${END})`);
  }
  const rows = FEATURES.map(({ name, files }) => [
    name,
    ...kernels.map((kernel) =>
      cell(
        files.map((file) => resultPath(root, kernel, file)),
        root,
      ),
    ),
  ]);
  const header = ['what', ...kernels.map((kernel) => (kernel === 'own' ? 'this machine’s own' : kernel))];
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  const table = [line(header), line(header.map(() => '---')), ...rows.map(line)].join('\n');
  writeFileSync(path, `${text.slice(0, from + BEGIN.length)}\n\n${table}\n\n${text.slice(to)}`);
}

function cell(paths: readonly string[], root: string): string {
  if (!paths.every((path) => existsSync(path))) {
    return 'not run';
  }
  let [passed, bad] = [0, 0];
  for (const path of paths) {
    for (const result of readReport(JSON.parse(readFileSync(path, 'utf8')), root).values()) {
      passed += result.passed.length;
      bad += result.failed.length + result.skipped.length;
    }
  }
  return bad > 0 ? `**${bad} failed**, ${passed} passed` : `${passed} passed`;
}
