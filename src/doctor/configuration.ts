/** Whether what the configuration names is there: sources that answer, proxies that listen. */

import { accessSync, constants } from 'node:fs';
import { connect } from 'node:net';
import type { Config } from '../config/config.js';
import { loadConfig } from '../config/load.js';
import { tcpListeners } from '../native/kernel.js';
import { type Check, fail, ok, warn } from './check.js';

const WILDCARD = '::';

/** The configuration where it is valid, for the checks after it. */
export function readConfig(path: string): { config: Config | undefined; check: Check } {
  try {
    const config = loadConfig(path);
    return { config, check: { name: 'configuration', run: () => [ok(path)] } };
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    const lines = message.split('\n').map((line) => fail(line, 'see docs/configuration.md'));
    return { config: undefined, check: { name: 'configuration', run: () => lines } };
  }
}

export function configurationChecks(config: Config): Check[] {
  const { sources } = config;
  const checks: Check[] = [];
  if (sources.cri !== undefined) {
    const path = sources.cri.endpoint.replace(/^unix:\/\//, '');
    checks.push({ name: 'CRI', run: () => cri(path) });
  }
  if (sources.static !== undefined) {
    const { file } = sources.static;
    checks.push({ name: 'static pods', run: () => [readable(file)] });
  }
  checks.push({ name: 'listeners', run: () => listeners(config) });
  return checks;
}

function cri(path: string) {
  return new Promise<ReturnType<typeof ok>[]>((resolve) => {
    const socket = connect(path);
    socket.setTimeout(2_000, () => socket.destroy(new Error('no answer within 2 s')));
    socket.once('connect', () => {
      socket.destroy();
      resolve([ok(`${path} accepts connections`)]);
    });
    socket.once('error', (error) =>
      resolve([
        fail(`${path}: ${error.message}`, 'start the container runtime, or correct sources.cri.endpoint'),
      ]),
    );
  });
}

function readable(file: string) {
  try {
    accessSync(file, constants.R_OK);
    return ok(file);
  } catch (error) {
    return fail(error instanceof Error ? error.message : String(error), 'correct sources.static.file');
  }
}

/** Every instance and family: who listens, or which policy new connections meet. */
function listeners(config: Config) {
  const sockets = tcpListeners();
  const policy =
    config.interception.failure === 'closed'
      ? 'connections are reset (failure: closed)'
      : 'connections go straight through (failure: open)';
  return config.instances.flatMap(({ name, outbound }) =>
    ([4, 6] as const).map((family) => {
      const wanted =
        outbound.find((address) => address.family === family) ??
        (family === 4 ? outbound.find(({ host }) => host === WILDCARD) : undefined);
      if (wanted === undefined) {
        return warn(
          `${name}: no IPv${family} address`,
          `name one in instances.outbound; until then ${policy}`,
        );
      }
      const found = sockets.some(
        (socket) =>
          socket.port === wanted.port &&
          socket.address === wanted.host &&
          (socket.family === family || (family === 4 && !socket.v6only)),
      );
      return found
        ? ok(`${name}: IPv${family} at ${wanted.text}`)
        : warn(
            `${name}: nobody listens at ${wanted.text} for IPv${family}`,
            `start the proxy; until then ${policy}`,
          );
    }),
  );
}
