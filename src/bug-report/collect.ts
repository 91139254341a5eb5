/** Takes every part, secrets out of it, within limits; one that cannot be had is named with the reason. */

import { PART_BYTES, type Part, reasonOf } from './part.js';
import { redact } from './redaction.js';
import type { Secrets } from './secrets.js';

export interface Member {
  readonly name: string;
  readonly from: string;
  readonly bytes: Buffer;
  readonly note: string;
}

export interface Missing {
  readonly name: string;
  readonly from: string;
  readonly why: string;
}

export interface Collected {
  readonly members: readonly Member[];
  readonly missing: readonly Missing[];
}

export interface Limits {
  /** Of one part, milliseconds; each command in it has a shorter one of its own. */
  readonly partMs: number;
  readonly partBytes: number;
  /** The report is made in the memory of the agent's container. */
  readonly totalBytes: number;
}

export const LIMITS: Limits = { partMs: 90_000, partBytes: PART_BYTES, totalBytes: 96 << 20 };

/** In order; `told` hears of each as it comes. */
export async function collect(
  parts: readonly Part[],
  secrets: Secrets,
  told: (entry: Member | Missing) => void,
  limits: Limits = LIMITS,
): Promise<Collected> {
  const members: Member[] = [];
  const missing: Missing[] = [];
  let left = limits.totalBytes;
  for (const { name, from, format, take } of parts) {
    const known = { name, from: secrets.outOf(from) };
    try {
      if (left <= 0) {
        throw new Error(`the report is full (${limits.totalBytes} bytes)`);
      }
      const { text, note } = await within(limits.partMs, take);
      const whole = Buffer.from(redact(text, format, secrets));
      const bytes = whole.subarray(0, Math.min(limits.partBytes, left));
      const cut =
        bytes.length < whole.length ? `cut: the first ${bytes.length} of ${whole.length} bytes` : '';
      const notes = [secrets.outOf(note), cut].filter((words) => words !== '').join('; ');
      const member = { ...known, bytes, note: notes };
      left -= bytes.length;
      members.push(member);
      told(member);
    } catch (error) {
      const lost = { ...known, why: secrets.outOf(reasonOf(error)) };
      missing.push(lost);
      told(lost);
    }
  }
  return { members, missing };
}

async function within<T>(ms: number, take: () => Promise<T> | T): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`not there after ${ms / 1_000} s`)), ms);
  });
  try {
    return await Promise.race([take(), limit]);
  } finally {
    clearTimeout(timer);
  }
}
