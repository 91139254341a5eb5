/** What is kept of an instance in a file of its own, for the next supervisor, and for whoever asks in another process. */

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { STOP_SIGNALS } from '../config/config.js';
import { isAlive, memoryOfGroup } from './processes.js';

export const PROCESS_STATES = ['STOPPED', 'STARTING', 'RUNNING', 'BACKOFF', 'STOPPING', 'FAILED'] as const;
export type ProcessState = (typeof PROCESS_STATES)[number];

/** `name` is the instance's; times are RFC 3339. */
export interface ProcessMessage {
  readonly name: string;
  readonly state: ProcessState;
  readonly pid: number | null;
  /** After it had ended by itself. */
  readonly restarts: number;
  readonly startedAt: string | null;
  readonly memoryBytes: number;
  /** Empty where it has not ended yet. */
  readonly lastExit: string;
  /** Why it does not run though it should; empty where it does. */
  readonly problem: string;
}

const keptState = z.object({
  name: z.string(),
  state: z.enum(PROCESS_STATES),
  process: z.object({ pid: z.int().positive(), startTime: z.number() }).nullable(),
  /** Of what it was started with. */
  hash: z.string(),
  startedAt: z.string().nullable(),
  restarts: z.int(),
  lastExit: z.string(),
  problem: z.string(),
  graceSeconds: z.number(),
  stopSeconds: z.number(),
  stopSignal: z.enum(STOP_SIGNALS).default('SIGTERM'),
  /** Started beside it, to take its place. */
  next: z.object({ pid: z.int().positive(), startTime: z.number() }).nullable().default(null),
  /** That it was handed from descriptor 3 on, as `outbound 127.0.0.1:16001`. */
  handed: z.array(z.string()),
  cgroup: z.string().nullable(),
  /** How much of its output is in the log already. */
  read: z.object({ stdout: z.int(), stderr: z.int() }),
});

export type KeptState = z.output<typeof keptState>;

export function statePath(folder: string, name: string): string {
  return join(folder, `${name}.json`);
}

/** What cannot be read, or is not what a supervisor writes, is left out. */
export function readStates(folder: string): KeptState[] {
  return filesOf(folder)
    .filter((file) => file.endsWith('.json'))
    .flatMap((file) => {
      try {
        const { data } = keptState.safeParse(JSON.parse(readFileSync(join(folder, file), 'utf8')));
        return data === undefined ? [] : [data];
      } catch {
        return [];
      }
    });
}

/** Walks /proc, where it runs. */
export function messageOf(kept: KeptState, now = memoryOf(kept)): ProcessMessage {
  const { name, state, process, restarts, startedAt, lastExit, problem } = kept;
  return {
    name,
    state,
    pid: process?.pid ?? null,
    restarts,
    startedAt,
    memoryBytes: now,
    lastExit,
    problem,
  };
}

/** Of another process's supervisor, by what it has written; one whose process is gone has nobody who would say so. */
export function readMessages(folder: string): ProcessMessage[] {
  return readStates(folder).map((kept) =>
    kept.process === null || isAlive(kept.process)
      ? messageOf(kept)
      : messageOf({
          ...kept,
          state: 'STOPPED',
          process: null,
          problem: 'it has ended, and its supervisor has not noticed: is "nodesentry supervise" running?',
        }),
  );
}

function memoryOf({ process, cgroup }: KeptState): number {
  if (process === null) {
    return 0;
  }
  return (cgroup === null ? undefined : currentOf(cgroup)) ?? memoryOfGroup(process.pid);
}

function currentOf(cgroup: string): number | undefined {
  try {
    return Number(readFileSync(join(cgroup, 'memory.current'), 'utf8'));
  } catch {
    return undefined; // without the controller there is no such file
  }
}

function filesOf(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') {
      return [];
    }
    throw error;
  }
}
