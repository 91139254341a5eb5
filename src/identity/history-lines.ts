/** The history as lines of text, and back. */

import { z } from 'zod';
import { RUNTIME_KINDS } from '../pods/pod.js';
import type { Workload } from './workload.js';

/** Labels are not kept: they are most of what is known of a pod, and no part of who it is. */
export type PastWorkload = Omit<Workload, 'labels' | 'state'>;

const VERSION = 1;
const ms = z.number();
const text = z.string();

const schema = z.union([
  /** Nothing before it is kept. */
  z.strictObject({ version: z.literal(VERSION), since: ms }),
  /** `until` is left out while the pod has the address. Said again of the same pod, address and `from`, it counts anew. */
  z.strictObject({
    ip: text,
    from: ms,
    until: ms.exactOptional(),
    workload: z.strictObject({
      uid: text,
      generation: z.number(),
      spiffeId: text,
      namespace: text,
      podName: text,
      podUid: text,
      serviceAccount: text,
      app: text,
      runtime: z.enum(RUNTIME_KINDS),
      runtimeHandler: text,
      sandboxId: text,
      ips: z.array(text),
      node: text,
    }),
  }),
  z.strictObject({ ip: text, uid: text, until: ms }),
]);

export type HistoryLine =
  | { readonly version: typeof VERSION; readonly since: number }
  | { readonly ip: string; readonly from: number; readonly until?: number; readonly workload: PastWorkload }
  | { readonly ip: string; readonly uid: string; readonly until: number };

export function firstLine(since: number): HistoryLine {
  return { version: VERSION, since };
}

export function formatLine(line: HistoryLine): string {
  return `${JSON.stringify(line)}\n`;
}

/** Undefined for what is no line of ours. */
export function parseLine(given: string): HistoryLine | undefined {
  try {
    return schema.safeParse(JSON.parse(given)).data;
  } catch {
    return undefined; // not JSON: the caller tells of it
  }
}
