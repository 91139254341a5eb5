/** Whether the CNI plugin is where the runtime finds it, is ours, and finds the agent. */

import { accessSync, constants } from 'node:fs';
import { connect } from 'node:net';
import { isAbsolute, join } from 'node:path';
import { candidates } from '../cni/conf-dir.js';
import { fromPlainConf, howToKeep, PLUGIN_TYPE, pluginIn, withPlugin } from '../cni/conflist.js';
import { CniError } from '../cni/errors.js';
import { readIfThere } from '../cni/files.js';
import type { Config } from '../config/config.js';
import { type Check, type Finding, fail, ok, warn } from './check.js';

type CniConfig = NonNullable<Config['sources']['cni']>;

export interface CniPlaces {
  /** The agent's socket: absolute path. */
  readonly socket: string;
  /** The plugin as it was built. */
  readonly plugin: string;
}

const STATUS_TIMEOUT_MS = 2_000;
/** An answer is a line; one that never ends is none. */
const ANSWER_BYTES = 1 << 20;

/** Nothing is looked at before a check is run. */
export function cniChecks(cni: CniConfig | undefined, places: CniPlaces): Check[] {
  return cni === undefined
    ? []
    : [
        { name: 'CNI chain', run: () => [chain(cni, places)] },
        { name: 'CNI plugin', run: () => [binary(cni, places)] },
        { name: 'CNI socket', run: async () => [await agent(cni, places)] },
      ];
}

const byHand = 'run "nodesentry cni install"';

function howTo({ install }: CniConfig): string {
  return install ? `start the agent, which installs it, or ${byHand}` : byHand;
}

/** What the runtime uses of `confDir`, as containerd and CRI-O choose it. */
function chain(cni: CniConfig, { socket }: CniPlaces): Finding {
  const { failure, timeoutMs, stateDir } = cni;
  const wanted = { socket, failure, timeoutMs, stateDir };
  try {
    const [first] = candidates(cni.confDir);
    const bytes = first === undefined ? undefined : readIfThere(first.path);
    if (first === undefined || bytes === undefined) {
      return fail(`${cni.confDir} has no network configuration`, 'install the primary CNI first');
    }
    if (!first.isList) {
      fromPlainConf(bytes, wanted, first.path);
      return absent(cni, first.path);
    }
    const placed = withPlugin(bytes, wanted, first.path);
    const entry = pluginIn(bytes, first.path);
    if (entry === undefined) {
      return absent(cni, first.path, howToKeep(bytes, first.path));
    }
    if (entry.socket !== undefined && entry.socket !== socket) {
      return fail(
        `${first.path}: ${PLUGIN_TYPE}.socket is ${JSON.stringify(entry.socket)}, but the agent listens at ${socket}`,
        howTo(cni),
      );
    }
    return placed === bytes
      ? ok(`${first.path} ends in ${PLUGIN_TYPE}`)
      : warn(`${first.path}: ${PLUGIN_TYPE} stands there otherwise than configured`, howTo(cni));
  } catch (error) {
    if (error instanceof CniError) {
      return fail(error.message, 'correct the file where the primary CNI takes it from');
    }
    throw error;
  }
}

/** `keep`: without it the primary CNI would take it out again. */
function absent(cni: CniConfig, path: string, keep?: string): Finding {
  return warn(
    `${path}: ${PLUGIN_TYPE} is not in the chain: first packets of new pods escape`,
    keep === undefined ? howTo(cni) : `${keep}, then ${howTo(cni)}`,
  );
}

function binary(cni: CniConfig, { plugin }: CniPlaces): Finding {
  const path = join(cni.binDir, PLUGIN_TYPE);
  const there = readIfThere(path);
  if (there === undefined) {
    // In the chain without it, no pod starts; else nobody calls it.
    return isChained(cni)
      ? fail(`${path} does not exist, but is in the chain: no pod can start`, howTo(cni))
      : warn(`${path} does not exist`, howTo(cni));
  }
  try {
    accessSync(path, constants.X_OK);
  } catch {
    return fail(`${path} is not executable`, howTo(cni));
  }
  const built = readIfThere(plugin);
  if (built === undefined) {
    return warn(`${path}: ${plugin} is not built, so its version cannot be told`, 'run "make build"');
  }
  return built.equals(there) ? ok(path) : warn(`${path} is not the one of this version`, howTo(cni));
}

function isChained({ confDir }: CniConfig): boolean {
  try {
    const [first] = candidates(confDir);
    const bytes = first?.isList === true ? readIfThere(first.path) : undefined;
    return bytes !== undefined && pluginIn(bytes, first?.path ?? '') !== undefined;
  } catch {
    return false; // the check of the chain has said why
  }
}

async function agent(cni: CniConfig, { socket }: CniPlaces): Promise<Finding> {
  if (!isAbsolute(socket) || Buffer.byteLength(socket) > 107) {
    return fail(`${socket} cannot be a socket`, 'choose a shorter, absolute --run-dir');
  }
  let answer: string;
  try {
    answer = await ask(socket, { version: 1, command: 'STATUS', timeoutMs: STATUS_TIMEOUT_MS });
  } catch (error) {
    const why = `no agent answers at ${socket}: ${error instanceof Error ? error.message : String(error)}`;
    return isChained(cni) && cni.failure === 'closed'
      ? fail(
          `${why}; until then no pod starts that is enrolled, or may be (failure: closed)`,
          'start the agent',
        )
      : warn(why, 'start the agent');
  }
  const { ok: isReady, msg } = parse(answer);
  return isReady === true
    ? ok(`the agent at ${socket} is ready`)
    : warn(
        `${socket}: ${typeof msg === 'string' ? msg : `an answer that makes no sense: ${answer.slice(0, 100)}`}`,
        'see "nodesentry status"',
      );
}

function parse(answer: string): { readonly ok?: unknown; readonly msg?: unknown } {
  try {
    return Object(JSON.parse(answer)) as object;
  } catch {
    return {};
  }
}

function ask(path: string, request: object): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({ path, allowHalfOpen: true });
    const timer = setTimeout(
      () => socket.destroy(new Error(`no answer within ${STATUS_TIMEOUT_MS / 1_000} s`)),
      STATUS_TIMEOUT_MS,
    );
    let answer = '';
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => {
      answer += text;
      if (answer.length > ANSWER_BYTES) {
        socket.destroy(new Error(`an answer of more than ${ANSWER_BYTES} bytes`));
      }
    });
    socket.once('end', () => {
      socket.destroy();
      resolve(answer);
    });
    socket.once('error', reject);
    socket.once('close', () => {
      clearTimeout(timer);
      reject(new Error('the connection was closed'));
    });
    socket.end(JSON.stringify(request));
  });
}
