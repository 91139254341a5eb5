/** The text of a network configuration with and without our plugin in its chain. Nothing in here touches a file. */

import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { CniError, reasonOf } from './errors.js';
import { elementSpans, memberSpan, replaceSpan, type Span } from './json-text.js';

export const PLUGIN_TYPE = 'nodesentry-cni';

export interface PluginOptions {
  /** Absolute path of the agent's socket. */
  readonly socket: string;
  readonly failure: 'closed' | 'open';
  /** For a whole ADD. */
  readonly timeoutMs: number;
  /** Absolute path of the folder that outlives a boot; what the agent leaves for the time without it is kept there. */
  readonly stateDir: string;
}

/** Beside the originals: goes with them. */
export function rulePath(stateDir: string): string {
  return join(stateDir, 'rule.json');
}

/** What the plugin speaks; before 0.3.0 there is no result to hand on. */
const SPOKEN = ['0.3.1', '0.4.0', '1.0.0', '1.1.0'];

/** Our element of `plugins`. */
export function pluginEntry({ socket, failure, timeoutMs, stateDir }: PluginOptions): object {
  return {
    type: PLUGIN_TYPE,
    socket,
    failure,
    timeoutMs,
    rule: rulePath(stateDir),
    // containerd hands the pod's annotations to plugins that ask for them so.
    capabilities: { 'io.kubernetes.cri.pod-annotations': true },
  };
}

/**
 * The conflist with our entry last in the chain, all else as it was, byte for byte; the very same buffer where the
 * entry is there already. Throws CniError with `file` and field.
 */
export function withPlugin(bytes: Buffer, options: PluginOptions, file: string): Buffer {
  const entry = pluginEntry(options);
  const list = parseConflist(bytes, file);
  const ours = list.plugins.flatMap((plugin, index) => (typeOf(plugin) === PLUGIN_TYPE ? [index] : []));
  if (ours.length === list.plugins.length) {
    const only = list.plugins.length === 0 ? 'is empty' : `has no plugin but ${PLUGIN_TYPE}`;
    throw invalid(file, 'plugins', `${only}: there is no network to chain to`);
  }
  checkVersions(list.value, file);
  const [index] = ours;
  if (index !== undefined && index > 0 && ours.length === 1) {
    if (isDeepStrictEqual(list.plugins[index], entry)) {
      return bytes;
    }
    const span = list.elements[index] as Span;
    return Buffer.from(replaceSpan(list.text, span, latin1(entry)), 'latin1');
  }
  return append(withoutPlugin(bytes, file), entry, file);
}

/**
 * The conflist without our entry; the very same buffer where there is none. Throws CniError where it is no conflist.
 */
export function withoutPlugin(bytes: Buffer, file: string): Buffer {
  const list = parseConflist(bytes, file);
  const index = list.plugins.findIndex((plugin) => typeOf(plugin) === PLUGIN_TYPE);
  return index < 0 ? bytes : withoutPlugin(withoutEntry(list, index), file);
}

/** Our entry of the chain, the first where there are several. Throws CniError where it is no conflist. */
export function pluginIn(bytes: Buffer, file: string): Readonly<Record<string, unknown>> | undefined {
  const found = parseConflist(bytes, file).plugins.find((plugin) => typeOf(plugin) === PLUGIN_TYPE);
  return found as Readonly<Record<string, unknown>> | undefined;
}

/**
 * What makes the primary CNI leave the file alone, where it is one that writes it anew after each of our edits; undefined
 * of all others, and of what is no conflist.
 */
export function howToKeep(bytes: Buffer, file: string): string | undefined {
  try {
    const isCilium = parseConflist(bytes, file).plugins.some((plugin) => typeOf(plugin) === 'cilium-cni');
    return isCilium
      ? "set Cilium's cni.exclusive to false (Helm; cni-exclusive in its config map)"
      : undefined;
  } catch (error) {
    if (error instanceof CniError) {
      return undefined;
    }
    throw error;
  }
}

/**
 * A conflist of the one plugin that a plain .conf or .json describes, and ours. Throws CniError INVALID_CONFIGURATION.
 */
export function fromPlainConf(bytes: Buffer, options: PluginOptions, file: string): Buffer {
  const value = parseObject(bytes, file);
  if (Array.isArray(value.plugins)) {
    throw invalid(file, 'plugins', 'a list of plugins belongs into a file named *.conflist');
  }
  for (const key of ['type', 'name']) {
    if (typeof value[key] !== 'string' || value[key] === '') {
      throw invalid(file, key, 'missing, or not a string');
    }
  }
  checkVersions(value, file);
  const head = latin1({ cniVersion: value.cniVersion, name: value.name }).slice(0, -1);
  const plain = bytes.toString('latin1').trim();
  const text = `${head},"plugins":[\n${plain},\n${latin1(pluginEntry(options))}\n]}\n`;
  return Buffer.from(text, 'latin1');
}

interface Conflist {
  readonly text: string;
  readonly value: Record<string, unknown>;
  readonly plugins: readonly unknown[];
  readonly elements: readonly Span[];
}

function parseConflist(bytes: Buffer, file: string): Conflist {
  const value = parseObject(bytes, file);
  if (typeof value.name !== 'string' || value.name === '') {
    throw invalid(file, 'name', 'missing, or not a string');
  }
  if (!Array.isArray(value.plugins)) {
    throw invalid(file, 'plugins', value.plugins === undefined ? 'missing' : 'expected a list');
  }
  const plugins: readonly unknown[] = value.plugins;
  plugins.forEach((plugin, index) => {
    if (typeOf(plugin) === undefined) {
      throw invalid(file, `plugins[${index}].type`, 'missing, or not a string');
    }
  });
  const text = bytes.toString('latin1');
  const span = memberSpan(text, 'plugins');
  return { text, value, plugins, elements: span === undefined ? [] : elementSpans(text, span) };
}

function parseObject(bytes: Buffer, file: string): Record<string, unknown> {
  if (bytes.length === 0) {
    throw new CniError('INVALID_CONFIGURATION', `${file}: the file is empty`);
  }
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString('utf8'));
  } catch (error) {
    throw new CniError('INVALID_CONFIGURATION', `${file}: not JSON: ${reasonOf(error)}`, { cause: error });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new CniError('INVALID_CONFIGURATION', `${file}: not a JSON object`);
  }
  return value as Record<string, unknown>;
}

/** Every version that a runtime may choose: older ones take cniVersion, newer ones the highest of both keys. */
function checkVersions(value: Record<string, unknown>, file: string): void {
  const { cniVersion, cniVersions } = value;
  if (cniVersion === undefined && Array.isArray(cniVersions)) {
    if (!cniVersions.some((version) => SPOKEN.includes(version as string))) {
      throw invalid(file, 'cniVersions', `${PLUGIN_TYPE} speaks ${SPOKEN.join(', ')}`);
    }
    return;
  }
  if (typeof cniVersion !== 'string' || !SPOKEN.includes(cniVersion)) {
    const got = cniVersion === undefined ? 'missing' : JSON.stringify(cniVersion);
    const advice = 'set one of them where the primary CNI is configured';
    throw invalid(file, 'cniVersion', `${got}, but ${PLUGIN_TYPE} speaks ${SPOKEN.join(', ')}: ${advice}`);
  }
}

/** With the comma and the space to its neighbour: what is left is as if the entry had never been added. */
function withoutEntry({ text, elements }: Conflist, index: number): Buffer {
  const { start, end } = elements[index] as Span;
  const before = elements[index - 1];
  const span = before !== undefined ? { start: before.end, end } : { start, end: elements[1]?.start ?? end };
  return Buffer.from(replaceSpan(text, span, ''), 'latin1');
}

function append(bytes: Buffer, entry: object, file: string): Buffer {
  const { text, elements } = parseConflist(bytes, file);
  const last = elements.at(-1) as Span;
  // The line break and indentation before the last element serve ours as well.
  const before = /[ \t\r\n]*$/.exec(text.slice(0, last.start))?.[0] ?? '';
  return Buffer.from(
    replaceSpan(text, { start: last.end, end: last.end }, `,${before}${latin1(entry)}`),
    'latin1',
  );
}

function typeOf(plugin: unknown): string | undefined {
  const type = (plugin as { type?: unknown } | null)?.type;
  return typeof type === 'string' && type !== '' ? type : undefined;
}

/** JSON in the bytes of UTF-8, as a latin1 string. */
function latin1(value: object): string {
  return Buffer.from(JSON.stringify(value), 'utf8').toString('latin1');
}

function invalid(file: string, field: string, message: string): CniError {
  return new CniError('INVALID_CONFIGURATION', `${file}: ${field}: ${message}`);
}
