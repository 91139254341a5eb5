/** A part of a bug report: what it is called in the archive, and how it is obtained. */

/** How secrets are found in it. */
export type Format = 'json' | 'ndjson' | 'yaml' | 'text';

export interface Part {
  /** In the archive, such as `kernel/nft.txt`. */
  readonly name: string;
  /** A command, a file or a question to the agent, in words. */
  readonly from: string;
  readonly format: Format;
  /** An error says why it cannot be had. */
  take(): Promise<Taken> | Taken;
}

export interface Taken {
  readonly text: string;
  /** What a reader has to know of it, such as that it was cut; empty where there is nothing. */
  readonly note: string;
}

/** Of each part in the archive. */
export const PART_BYTES = 16 << 20;
/** A part of a form that secrets are found by cannot be cut before they are out. */
export const READ_BYTES = 64 << 20;

export function asJson(value: unknown): Taken {
  const plain = (_key: string, given: unknown) => (typeof given === 'bigint' ? String(given) : given);
  return { text: `${JSON.stringify(value, plain, 2)}\n`, note: '' };
}

export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
