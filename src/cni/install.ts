/** Our plugin into the chain that the runtime uses. Calling it again changes only what is not as it should be. */

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { candidates, derivedPath } from './conf-dir.js';
import { fromPlainConf, PLUGIN_TYPE, type PluginOptions, withoutPlugin, withPlugin } from './conflist.js';
import { CniError, reasonOf } from './errors.js';
import { behindLinks, ownershipOf, readIfThere, replaceFile, sha256 } from './files.js';
import { type Restored, restoreFile } from './restore.js';
import { type EditedFile, type InstalledState, StateStore } from './state.js';

export interface InstallOptions extends PluginOptions {
  readonly confDir: string;
  readonly binDir: string;
  readonly stateDir: string;
  /** The plugin as it was built. */
  readonly plugin: string;
}

export interface InstallReport {
  /** The configuration that has our plugin in its chain. */
  readonly file: string;
  /** derived: `file` is ours, made from the plain configuration `source`, which stays as it is. */
  readonly change: 'added' | 'derived' | 'unchanged';
  readonly source?: string;
  readonly binary: { readonly path: string; readonly change: 'copied' | 'unchanged' };
  /** Configurations that were used before `file` came first, now without our plugin. */
  readonly released: readonly Restored[];
}

/** The edit that is due, worked out before anything is touched. */
interface Plan {
  readonly path: string;
  readonly kind: EditedFile['kind'];
  readonly source: string;
  readonly sourceBytes: Buffer;
  /** What is at `path` now. */
  readonly current: Buffer | undefined;
  readonly wanted: Buffer;
}

/** Throws CniError that names the file and its field; the chain was not changed then. */
export function install(options: InstallOptions): InstallReport {
  const store = new StateStore(options.stateDir);
  const state = withoutOrphans(store, store.load());
  const plan = planFor(options, state);
  const binary = installBinary(options);
  const changed = plan.current === undefined || !plan.current.equals(plan.wanted);
  const others = state.files.filter(({ path }) => path !== plan.path);
  // What undoes the edit is on disk before the edit, and what served before goes after it.
  const files = [...others, ...recordOf(plan, changed, store, state)];
  const next: InstalledState = { version: 1, files, binary: { path: binary.path, sha256: binary.digest } };
  if (JSON.stringify(next) !== JSON.stringify(state)) {
    store.save(next);
  }
  if (changed) {
    write(plan);
  }
  const released = others.map((file) => restoreFile(file, store));
  if (others.length > 0) {
    store.save({ ...next, files: files.filter(({ path }) => path === plan.path) });
  }
  return {
    file: plan.path,
    change: !changed ? 'unchanged' : plan.kind === 'derived' ? 'derived' : 'added',
    ...(plan.kind === 'derived' ? { source: plan.source } : {}),
    binary: { path: binary.path, change: binary.change },
    released,
  };
}

/**
 * A conflist that we made from a plain configuration goes with it: a runtime would go on using a network that the
 * primary CNI has taken away.
 */
function withoutOrphans(store: StateStore, state: InstalledState): InstalledState {
  const orphans = state.files.filter(
    ({ kind, source }) => kind === 'derived' && readIfThere(source ?? '') === undefined,
  );
  if (orphans.length === 0) {
    return state;
  }
  for (const orphan of orphans) {
    restoreFile(orphan, store);
  }
  const rest = { ...state, files: state.files.filter((file) => !orphans.includes(file)) };
  store.save(rest);
  return rest;
}

function planFor(options: InstallOptions, state: InstalledState): Plan {
  const ours = new Set(state.files.flatMap(({ kind, path }) => (kind === 'derived' ? [path] : [])));
  const [first] = candidates(options.confDir).filter(({ path }) => !ours.has(path));
  if (first === undefined) {
    const message = `${options.confDir}: no *.conflist, *.conf or *.json: install the primary CNI first`;
    throw new CniError('NO_CONFIGURATION', message);
  }
  const source = first.isList ? behindLinks(first.path) : first.path;
  const sourceBytes = readIfThere(source);
  if (sourceBytes === undefined) {
    throw new CniError('UNREADABLE', `${first.path}: a link that leads nowhere, or just removed`);
  }
  if (first.isList) {
    const wanted = withPlugin(sourceBytes, options, first.path);
    return { path: source, kind: 'edited', source, sourceBytes, current: sourceBytes, wanted };
  }
  const path = derivedPath(source);
  const wanted = fromPlainConf(sourceBytes, options, source);
  return { path, kind: 'derived', source, sourceBytes, current: readIfThere(path), wanted };
}

/** An unchanged file keeps its record; one that has our entry without a record has no original to go back to. */
function recordOf(plan: Plan, changed: boolean, store: StateStore, state: InstalledState): EditedFile[] {
  if (!changed) {
    return state.files.filter(({ path }) => path === plan.path);
  }
  const before = state.files.find(({ path }) => path === plan.path);
  // An entry of ours with other options is replaced: the original is still the one from before the first edit.
  const own =
    plan.kind === 'edited' && before !== undefined && before.written === sha256(plan.sourceBytes)
      ? before.original
      : store.keepOriginal(
          plan.kind === 'edited' ? withoutPlugin(plan.sourceBytes, plan.path) : plan.sourceBytes,
        );
  return [
    {
      path: plan.path,
      kind: plan.kind,
      ...(plan.kind === 'derived' ? { source: plan.source } : {}),
      original: own,
      written: sha256(plan.wanted),
    },
  ];
}

function write({ path, source, sourceBytes, current, wanted }: Plan): void {
  const same = (at: string, bytes: Buffer | undefined): boolean => {
    const now = readIfThere(at);
    return now === undefined || bytes === undefined ? now === bytes : now.equals(bytes);
  };
  replaceFile(path, wanted, ownershipOf(source), () => same(path, current) && same(source, sourceBytes));
}

function installBinary({ plugin, binDir }: InstallOptions): {
  path: string;
  digest: string;
  change: 'copied' | 'unchanged';
} {
  const bytes = readIfThere(plugin);
  if (bytes === undefined) {
    throw new CniError('UNREADABLE', `${plugin}: the CNI plugin is not built: run "make build"`);
  }
  const path = join(binDir, PLUGIN_TYPE);
  const digest = sha256(bytes);
  const there = readIfThere(path);
  if (there?.equals(bytes) === true && (ownershipOf(path).mode & 0o755) === 0o755) {
    return { path, digest, change: 'unchanged' };
  }
  try {
    mkdirSync(binDir, { recursive: true, mode: 0o755 });
  } catch (error) {
    throw new CniError('UNWRITABLE', `${binDir}: cannot be made: ${reasonOf(error)}`, { cause: error });
  }
  replaceFile(path, bytes, { mode: 0o755, uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 });
  return { path, digest, change: 'copied' };
}
