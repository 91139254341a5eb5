/** One line of `nodesentry doctor`, and running all of them whatever becomes of one. */

export type CheckStatus = 'ok' | 'warn' | 'fail';

export interface CheckResult {
  readonly name: string;
  readonly status: CheckStatus;
  readonly found: string;
  /** What to do; empty where nothing has to be done. */
  readonly advice: string;
}

export type Finding = Omit<CheckResult, 'name'>;

/** A check may find several things; none means there is nothing to tell. */
export interface Check {
  readonly name: string;
  run(): Promise<readonly Finding[]> | readonly Finding[];
}

export function ok(found: string): Finding {
  return { status: 'ok', found, advice: '' };
}

export function warn(found: string, advice: string): Finding {
  return { status: 'warn', found, advice };
}

export function fail(found: string, advice: string): Finding {
  return { status: 'fail', found, advice };
}

/** In order. A check that breaks is a line that says so. */
export async function runChecks(checks: readonly Check[]): Promise<CheckResult[]> {
  const results: CheckResult[] = [];
  for (const { name, run } of checks) {
    try {
      results.push(...(await run()).map((result) => ({ name, ...result })));
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      results.push({ name, ...fail(`could not be checked: ${why}`, 'see the reason; run as root') });
    }
  }
  return results;
}
