/** What a check is, and how all of them are run: one after the other, each for itself. */

import type { Door } from './doors.js';
import type { GrpcDoor } from './grpc-door.js';
import type { HttpDoor } from './http-door.js';

const TRIES = 5;

export interface Context {
  readonly http: HttpDoor;
  readonly grpc: GrpcDoor;
  /** As HTTP's parameters have them: a flow that is to be asked about besides those that are listed. */
  readonly flow: { readonly src: string; readonly dst: string } | undefined;
  /** Neither waits for a heartbeat nor for connections. */
  readonly fast: boolean;
  /** Where a proxy of the caller's is to listen, so that it is adopted; undefined: the door is left out. */
  readonly listener: { readonly host: string; readonly port: number } | undefined;
}

export interface Check {
  readonly id: string;
  readonly says: string;
  /** Resolves to why it does not apply here, undefined where it is as it should be; rejects where it is not. */
  readonly run: (context: Context) => Promise<string | undefined>;
}

export interface Outcome {
  readonly id: string;
  readonly says: string;
  readonly result: 'pass' | 'fail' | 'not applicable';
  /** Empty where it passes. */
  readonly detail: string;
}

export async function runChecks(checks: readonly Check[], context: Context): Promise<readonly Outcome[]> {
  const outcomes: Outcome[] = [];
  for (const { id, says, run } of checks) {
    try {
      const why = await run(context);
      outcomes.push({ id, says, result: why === undefined ? 'pass' : 'not applicable', detail: why ?? '' });
    } catch (error) {
      outcomes.push({
        id,
        says,
        result: 'fail',
        detail: error instanceof Error ? error.message : String(error),
      });
    }
  }
  return outcomes;
}

export const doorsOf = ({ http, grpc }: Context): readonly Door[] => [http, grpc];

/** Throws where they differ, with both. */
export function same(what: string, wanted: unknown, got: unknown): void {
  const [one, other] = [JSON.stringify(wanted), JSON.stringify(got)];
  if (one !== other) {
    throw new Error(`${what}: expected ${one}, got ${other}`);
  }
}

/** Pods may come and go between two looks: once has to do. */
export async function eventually(
  what: string,
  look: () => Promise<readonly [wanted: unknown, got: unknown]>,
): Promise<void> {
  for (let tries = 1; ; tries++) {
    const [wanted, got] = await look();
    if (tries === TRIES || JSON.stringify(wanted) === JSON.stringify(got)) {
      same(what, wanted, got);
      return;
    }
  }
}

export function truth(what: string, is: boolean): void {
  if (!is) {
    throw new Error(what);
  }
}
