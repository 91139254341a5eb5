/** Whether what the configuration names is there: sources that answer, proxies that listen. */

import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { type Config, type ListenerAddress, takesDatagramsOnly } from '../config/config.js';
import { loadConfig } from '../config/load.js';
import { type OwnerRule, opensAs } from '../datapath/listener-owner.js';
import { addressFor, serves } from '../datapath/listener-slots.js';
import { type ListeningSocket, tcpListeners, udpListeners } from '../native/sockets.js';
import type { Family } from '../net/family.js';
import { type Check, type Finding, fail, ok, warn } from './check.js';

const FAMILIES: readonly Family[] = [4, 6];

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

/** Nothing is looked at before a check is run. */
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
  checks.push({ name: 'listeners', run: () => [...listeners(config), ...datagramListeners(config)] });
  return checks;
}

function cri(path: string): Promise<Finding[]> {
  return new Promise((resolve) => {
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

function readable(file: string): Finding {
  try {
    readFileSync(file);
    return ok(file);
  } catch (error) {
    return fail(error instanceof Error ? error.message : String(error), 'correct sources.static.file');
  }
}

/** Every instance, direction and family: who listens, or which policy new connections meet. */
export function listeners(config: Config, sockets: readonly ListeningSocket[] = tcpListeners()): Finding[] {
  const policy =
    config.interception.failure === 'closed'
      ? 'connections are reset (failure: closed)'
      : 'connections go straight through (failure: open)';
  const ofTcp = config.instances.filter((instance) => !takesDatagramsOnly(instance));
  return ofTcp.flatMap(({ name, outbound, inbound, owner, announced = [] }) => [
    ...(outbound.length === 0 && announced.includes('outbound')
      ? [ok(`${name}: outbound is announced by its proxy (nodesentry instances)`)]
      : FAMILIES.map((family) =>
          listener(`${name}: outbound`, family, addressFor(outbound, family), sockets, policy, owner),
        )),
    ...(inbound.length === 0
      ? [
          announced.includes('inbound')
            ? ok(`${name}: inbound is announced by its proxy (nodesentry instances)`)
            : ok(`${name}: outbound only, for instances.inbound names no address`),
        ]
      : FAMILIES.map((family) =>
          listener(`${name}: inbound`, family, addressFor(inbound, family), sockets, policy, owner),
        )),
  ]);
}

/** The same of those that take datagrams, where an instance has any. */
export function datagramListeners(
  config: Config,
  sockets: () => readonly ListeningSocket[] = udpListeners,
): Finding[] {
  const policy =
    config.interception.failure === 'closed'
      ? 'datagrams are answered "port unreachable" (failure: closed)'
      : 'datagrams go straight through (failure: open)';
  return config.instances.flatMap(({ name, owner, ...instance }) =>
    (['outboundUdp', 'inboundUdp'] as const).flatMap((key) => {
      const addresses = instance[key];
      if (addresses === undefined) {
        return [];
      }
      const { udp } = config.interception.selection;
      const direction = key === 'outboundUdp' ? 'outbound' : 'inbound';
      const named =
        udp[direction].ports.length > 0
          ? []
          : [
              warn(
                `${name}: ${key}, and no port is named for it`,
                `name the ports in interception.${key}; until then no datagram comes there`,
              ),
            ];
      const found = FAMILIES.map((family) =>
        listener(`${name}: ${key}`, family, addressFor(addresses, family), sockets(), policy, owner),
      );
      return [...named, ...found];
    }),
  );
}

/** `what`: instance and direction. */
function listener(
  what: string,
  family: Family,
  wanted: ListenerAddress | undefined,
  sockets: readonly ListeningSocket[],
  policy: string,
  owner: OwnerRule,
): Finding {
  if (wanted === undefined) {
    return warn(
      `${what}: no IPv${family} address`,
      `name one in the instance; until then IPv${family} ${policy}`,
    );
  }
  const there = sockets.filter((socket) => serves(socket, wanted, family));
  const foreign = there.find((socket) => !opensAs(owner, socket));
  if (foreign !== undefined) {
    return fail(
      `${what}: ${wanted.text} is held by uid ${foreign.uid}, who is not its owner; ${policy}`,
      `if that is the proxy, set "owner: {uid: ${foreign.uid}}" in the instance`,
    );
  }
  return there.length > 0
    ? ok(`${what} IPv${family} at ${wanted.text}`)
    : warn(`${what} IPv${family}: nobody listens at ${wanted.text}`, `start the proxy; until then ${policy}`);
}
