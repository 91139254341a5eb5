/**
 * How many times slower than here the machine may be that a test runs on: 1, or what NODESENTRY_TEST_PATIENCE says. The
 * emulated machines of test/vm set it.
 */

const said = Number(process.env.NODESENTRY_TEST_PATIENCE ?? 1);
if (!(said >= 1)) {
  throw new Error(`NODESENTRY_TEST_PATIENCE is a number from 1, not ${process.env.NODESENTRY_TEST_PATIENCE}`);
}

export const PATIENCE = said;

/** A limit in milliseconds, for this machine. */
export function patient(limitMs: number): number {
  return limitMs * PATIENCE;
}
