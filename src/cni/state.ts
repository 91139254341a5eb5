/**
 * What an installation has changed on this node, and the originals: kept on disk, so that any later program can undo
 * it.
 */

import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { rulePath } from './conflist.js';
import { CniError, reasonOf } from './errors.js';
import { readIfThere, removeFile, replaceFile, sha256 } from './files.js';

const digest = z.string().regex(/^[0-9a-f]{64}$/);
const editedFile = z.strictObject({
  path: z.string(),
  /** edited: our entry was added to it; derived: we made it, from the plain configuration `source`. */
  kind: z.enum(['edited', 'derived']),
  source: z.string().optional(),
  /** Digest of the kept bytes: of the file as it was, or of `source`. */
  original: digest,
  /** Digest of what we wrote. */
  written: digest,
});
const stateSchema = z.strictObject({
  version: z.literal(1),
  files: z.array(editedFile),
  binary: z.strictObject({ path: z.string(), sha256: digest }).optional(),
});

export type EditedFile = z.infer<typeof editedFile>;
export type InstalledState = z.infer<typeof stateSchema>;

const PRIVATE = { mode: 0o600, uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };

export class StateStore {
  readonly #directory: string;

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** Empty where nothing is installed. Throws CniError where the file cannot be understood. */
  load(): InstalledState {
    const bytes = readIfThere(this.#path());
    if (bytes === undefined) {
      return { version: 1, files: [] };
    }
    try {
      return stateSchema.parse(JSON.parse(bytes.toString()));
    } catch (error) {
      const message = `${this.#path()}: not what nodesentry wrote: move it away to go on without it`;
      throw new CniError('STATE_INVALID', message, { cause: error });
    }
  }

  save(state: InstalledState): void {
    this.#makeDirectory();
    replaceFile(this.#path(), Buffer.from(`${JSON.stringify(state, null, 2)}\n`), PRIVATE);
    const needed = new Set(state.files.map(({ original }) => original));
    for (const name of readdirSync(this.#directory)) {
      const kept = /^original-([0-9a-f]{64})$/.exec(name)?.[1];
      if (kept !== undefined && !needed.has(kept)) {
        removeFile(join(this.#directory, name));
      }
    }
  }

  /** Returns the digest to find them by. */
  keepOriginal(bytes: Buffer): string {
    const digest = sha256(bytes);
    const path = this.#originalPath(digest);
    this.#makeDirectory();
    if (readIfThere(path)?.equals(bytes) !== true) {
      replaceFile(path, bytes, PRIVATE);
    }
    return digest;
  }

  /** Undefined where they are gone or not what they were. */
  original(digest: string): Buffer | undefined {
    const bytes = readIfThere(this.#originalPath(digest));
    return bytes !== undefined && sha256(bytes) === digest ? bytes : undefined;
  }

  /** Takes everything of ours out of the folder; the folder stays. */
  clear(): void {
    if (readIfThere(rulePath(this.#directory)) !== undefined) {
      removeFile(rulePath(this.#directory));
    }
    if (readIfThere(this.#path()) !== undefined) {
      this.save({ version: 1, files: [] });
      removeFile(this.#path());
    }
  }

  #makeDirectory(): void {
    try {
      mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
    } catch (error) {
      const message = `${this.#directory}: cannot be made: ${reasonOf(error)}`;
      throw new CniError('UNWRITABLE', message, { cause: error });
    }
  }

  #path(): string {
    return join(this.#directory, 'state.json');
  }

  #originalPath(digest: string): string {
    return join(this.#directory, `original-${digest}`);
  }
}
