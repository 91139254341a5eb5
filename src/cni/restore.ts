/** A configuration without our plugin again, as it was before where that is possible. */

import { withoutPlugin } from './conflist.js';
import { CniError } from './errors.js';
import { ownershipOf, readIfThere, removeFile, replaceFile, sha256 } from './files.js';
import type { EditedFile, StateStore } from './state.js';

export interface Restored {
  readonly path: string;
  readonly change:
    | 'restored' // byte for byte what it was before the installation
    | 'removed' // it was ours
    | 'entry-removed' // somebody else has rewritten it since: only our entry was taken out
    | 'left' // it has nothing of ours
    | 'gone';
}

/** Puts a file back as it was before our first edit, as far as nobody has changed it since. Throws CniError. */
export function restoreFile(file: EditedFile, store: StateStore): Restored {
  const { path, kind } = file;
  const bytes = readIfThere(path);
  if (bytes === undefined) {
    return { path, change: 'gone' };
  }
  if (sha256(bytes) !== file.written) {
    return removeEntry(path, bytes);
  }
  if (kind === 'derived') {
    removeFile(path);
    return { path, change: 'removed' };
  }
  const original = store.original(file.original);
  if (original === undefined) {
    return removeEntry(path, bytes);
  }
  put(path, original, bytes);
  return { path, change: 'restored' };
}

/** Takes our entry out of a file of which nothing else is known. */
export function removeEntry(path: string, bytes: Buffer): Restored {
  let without: Buffer;
  try {
    without = withoutPlugin(bytes, path);
  } catch (error) {
    if (error instanceof CniError) {
      return { path, change: 'left' }; // no conflist, so our entry is not in its list
    }
    throw error;
  }
  if (without === bytes) {
    return { path, change: 'left' };
  }
  put(path, without, bytes);
  return { path, change: 'entry-removed' };
}

function put(path: string, bytes: Buffer, expected: Buffer): void {
  replaceFile(path, bytes, ownershipOf(path), () => readIfThere(path)?.equals(expected) === true);
}
