/** The runtimes that tests of all of them run; NODESENTRY_TEST_RUNTIMES names fewer, such as `runc,runsc`. */

import type { LabRuntime } from './pod.js';

const ALL: readonly LabRuntime[] = ['runc', 'runsc', 'rund'];
const named = process.env.NODESENTRY_TEST_RUNTIMES?.split(',') ?? ALL;

export const RUNTIMES = ALL.filter((runtime) => named.includes(runtime));

if (RUNTIMES.length !== named.length) {
  throw new Error(`NODESENTRY_TEST_RUNTIMES names ${named.join(', ')}: there are ${ALL.join(', ')}`);
}
