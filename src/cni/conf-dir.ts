/** Which network configuration the runtime uses. */

import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { CniError, reasonOf } from './errors.js';

const EXTENSIONS = ['.conf', '.conflist', '.json'];

/** One configuration that a runtime would consider. */
export interface Candidate {
  readonly path: string;
  /** A list of plugins; else the plain configuration of a single one. */
  readonly isList: boolean;
}

/**
 * In the order in which containerd and CRI-O go through them, which use the first: by name, byte by byte. A folder
 * that does not exist has none, as for them. CniError UNREADABLE where it cannot be read.
 */
export function candidates(confDir: string): Candidate[] {
  let names: string[];
  try {
    names = readdirSync(confDir, { withFileTypes: true })
      .filter((entry) => !entry.isDirectory())
      .map(({ name }) => name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') {
      return [];
    }
    throw new CniError('UNREADABLE', `${confDir}: cannot be read: ${reasonOf(error)}`, { cause: error });
  }
  return names
    .filter((name) => EXTENSIONS.includes(extensionOf(name)))
    .sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
    .map((name) => ({ path: join(confDir, name), isList: extensionOf(name) === '.conflist' }));
}

/** The name of the conflist that comes before the plain configuration at `path` and so is used in its place. */
export function derivedPath(path: string): string {
  // '-' sorts before the '.' of the extension.
  return `${path.slice(0, -extensionOf(path).length)}-nodesentry.conflist`;
}

/** As Go's filepath.Ext: of `.conf` it is the whole name, unlike Node's. */
function extensionOf(name: string): string {
  const dot = name.lastIndexOf('.');
  return dot < 0 ? '' : name.slice(dot);
}
