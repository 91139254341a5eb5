/** The table kernel × feature of docs/kernels.md, from what the runs wrote. */

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Report, readReport } from '../../scripts/ci-verdict.js';
import { FEATURES } from './suite.js';

const [BEGIN, END] = ['<!-- written by make test-kernels -->', '<!-- end -->'];

/** `results`: the folder with KERNEL.json. */
export function writeTable(root: string, results: string, kernels: readonly string[]): void {
  const path = join(root, 'docs/kernels.md');
  const text = readFileSync(path, 'utf8');
  const [from, to] = [text.indexOf(BEGIN), text.indexOf(END)];
  if (from < 0 || to < from) {
    throw new Error(`${path} has no place for the table (${BEGIN} … ${END})`);
  }
  const reports = kernels.map((kernel) => {
    const file = join(results, `${kernel}.json`);
    return existsSync(file) ? readReport(JSON.parse(readFileSync(file, 'utf8')) as Report, root) : undefined;
  });
  const header = ['feature', ...kernels.map((kernel) => (kernel === 'own' ? 'this machine’s' : kernel))];
  const rows = FEATURES.map(({ name, files }) => [
    name,
    ...reports.map((report) => {
      if (report === undefined) {
        return 'not run';
      }
      const found = [...report].filter(([file]) => files.some((wanted) => file.startsWith(wanted)));
      const [passed, bad] = found.reduce(
        ([good, ill], [, result]) => [
          good + result.passed.length,
          ill + result.failed.length + result.skipped.length,
        ],
        [0, 0],
      );
      return bad > 0 ? `**${bad} failed**, ${passed} passed` : `${passed} passed`;
    }),
  ]);
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  const table = [line(header), line(header.map(() => '---')), ...rows.map(line)].join('\n');
  writeFileSync(path, `${text.slice(0, from + BEGIN.length)}\n${table}\n${text.slice(to)}`);
}
