// Reads vitest's JSON report, prints the closing line, and fails on a failure, a skip, or a run without tests.
import { existsSync, readFileSync } from 'node:fs';

const [path, makeStatus] = process.argv.slice(2);
if (!existsSync(path)) {
  console.log('no test results were written');
  console.log('0 passed, 1 failed');
  process.exit(1);
}
const report = JSON.parse(readFileSync(path, 'utf8'));
const skipped = report.numPendingTests + (report.numTodoTests ?? 0);
// A file that fails to load has no failed test of its own.
const brokenFiles = report.testResults.filter(
  (file) => file.status === 'failed' && !file.assertionResults.some((test) => test.status === 'failed'),
).length;
let failed = report.numFailedTests + brokenFiles;
if (skipped > 0) {
  console.log(`${skipped} tests were skipped: nothing may be skipped here`);
}
if (failed === 0 && (makeStatus !== '0' || report.numTotalTests === 0)) {
  console.log(`make test exited with ${makeStatus} after ${report.numTotalTests} tests`);
  failed = 1;
}
console.log(
  `${report.numPassedTests} passed, ${failed}${skipped > 0 ? ` failed, ${skipped} skipped` : ' failed'}`,
);
process.exit(failed > 0 || skipped > 0 ? 1 : 0);
