/** Files that other programs read at any moment: whole or not at all, and durable before anybody can see them. */

import { createHash, randomBytes } from 'node:crypto';
import {
  closeSync,
  fchmodSync,
  fchownSync,
  fsyncSync,
  openSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { CniError, reasonOf } from './errors.js';

export interface Ownership {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
}

/** Hexadecimal. */
export function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** Undefined where there is none. Throws CniError where it cannot be read. */
export function readIfThere(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') {
      return undefined;
    }
    throw new CniError('UNREADABLE', `${path}: cannot be read: ${reasonOf(error)}`, { cause: error });
  }
}

/** Throws what the file system throws. */
export function ownershipOf(path: string): Ownership {
  const { mode, uid, gid } = statSync(path);
  return { mode: mode & 0o7777, uid, gid };
}

/** Where a symbolic link leads, so that the link itself stays what it is. */
export function behindLinks(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return path;
  }
}

/**
 * Puts `bytes` under `path` in one step. `stillThere` is asked at the last moment; where it says no, nothing happens
 * and CniError CHANGED_MEANWHILE is thrown. The name of the temporary file is one that no runtime takes for a
 * configuration.
 */
export function replaceFile(
  path: string,
  bytes: Buffer,
  ownership: Ownership,
  stillThere: () => boolean = () => true,
): void {
  const folder = dirname(path);
  const temporary = join(folder, `.${basename(path)}.${randomBytes(6).toString('hex')}.nodesentry-tmp`);
  try {
    const fd = openSync(temporary, 'wx', 0o600);
    try {
      writeFileSync(fd, bytes);
      fchownSync(fd, ownership.uid, ownership.gid);
      fchmodSync(fd, ownership.mode);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    if (!stillThere()) {
      throw new CniError('CHANGED_MEANWHILE', `${path}: somebody else changed it just now; try again`);
    }
    renameSync(temporary, path);
    syncFolder(folder);
  } catch (error) {
    rmSync(temporary, { force: true });
    if (error instanceof CniError) {
      throw error;
    }
    throw new CniError('UNWRITABLE', `${path}: cannot be written: ${reasonOf(error)}`, { cause: error });
  }
}

/** Also where it is not there. CniError UNWRITABLE where it cannot be removed. */
export function removeFile(path: string): void {
  try {
    rmSync(path, { force: true });
    syncFolder(dirname(path));
  } catch (error) {
    throw new CniError('UNWRITABLE', `${path}: cannot be removed: ${reasonOf(error)}`, { cause: error });
  }
}

function syncFolder(folder: string): void {
  const fd = openSync(folder, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
