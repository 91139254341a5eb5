/** Our plugin out of every chain, and off the node. */

import { join } from 'node:path';
import { candidates } from './conf-dir.js';
import { PLUGIN_TYPE } from './conflist.js';
import { behindLinks, readIfThere, removeFile, sha256 } from './files.js';
import { type Restored, removeEntry, restoreFile } from './restore.js';
import { StateStore } from './state.js';

export interface UninstallOptions {
  readonly confDir: string;
  readonly binDir: string;
  readonly stateDir: string;
  /** The plugin as it was built: a copy of it is known as ours even where the state is lost. */
  readonly plugin: string;
}

export interface UninstallReport {
  readonly files: readonly Restored[];
  readonly binary: {
    readonly path: string;
    /** kept: it is not the one that was installed. */
    readonly change: 'removed' | 'kept' | 'gone';
  };
}

/** Throws CniError where something cannot be written; calling it again goes on from there. */
export function uninstall({ confDir, binDir, stateDir, plugin }: UninstallOptions): UninstallReport {
  const store = new StateStore(stateDir);
  const state = store.load();
  const known = state.files.map((file) => restoreFile(file, store));
  // Entries that no state tells of: it was lost, or another state folder was used.
  const others = candidates(confDir)
    .filter(({ path, isList }) => isList && !known.some((file) => file.path === behindLinks(path)))
    .flatMap(({ path }) => {
      const bytes = readIfThere(path);
      return bytes === undefined ? [] : [removeEntry(behindLinks(path), bytes)];
    })
    .filter(({ change }) => change !== 'left');
  // The chain no longer calls the binary: now it can go.
  const path = state.binary?.path ?? join(binDir, PLUGIN_TYPE);
  const ours = [state.binary?.sha256, digestOf(plugin)];
  const there = digestOf(path);
  const change = there === undefined ? 'gone' : ours.includes(there) ? 'removed' : 'kept';
  if (change === 'removed') {
    removeFile(path);
  }
  store.clear();
  return { files: [...known, ...others], binary: { path, change } };
}

function digestOf(path: string): string | undefined {
  const bytes = readIfThere(path);
  return bytes === undefined ? undefined : sha256(bytes);
}
