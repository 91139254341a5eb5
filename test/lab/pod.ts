/** A pod of any runtime, as tests use it. */

import type { Output } from './exec.js';

export type Topology = 'ptp' | 'bridge';
export type LabRuntime = 'runc' | 'runsc' | 'rund';

export interface PodSpec {
  readonly name: string;
  readonly namespace?: string;
  readonly runtime: LabRuntime;
  /** Where an API server has given one already (containerd pods only). */
  readonly uid?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly annotations?: Readonly<Record<string, string>>;
  /** Nothing but the sandbox's own process; it cannot be told to run anything. */
  readonly sandboxOnly?: boolean;
}

export interface LabPod {
  readonly name: string;
  readonly namespace: string;
  readonly uid: string;
  readonly runtime: LabRuntime;
  readonly ips: { readonly 4: string; readonly 6: string };
  /** Path. */
  readonly netns: string;
  /** Runs `/bin/app` with these words inside the pod. */
  app(words: readonly string[], timeoutMs?: number): Promise<Output>;
  stop(): Promise<void>;
}

/** The line of JSON that the application printed; throws with all its output where there is none. */
export function reply(output: Output): Record<string, unknown> & { ok: boolean } {
  const line = output.stdout.split('\n').find((candidate) => candidate.trim().startsWith('{'));
  if (line === undefined) {
    throw new Error(
      `the application printed no JSON (exit ${output.code}): ${output.stdout}\n${output.stderr}`,
    );
  }
  return JSON.parse(line) as Record<string, unknown> & { ok: boolean };
}
