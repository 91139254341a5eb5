import { setTimeout as delay } from 'node:timers/promises';
import { Command, InvalidArgumentError } from 'commander';
import type { ApiClient, UpgradeBody } from '../api/client.js';
import type { InstanceMessage, ListenerMessage } from '../api/messages.js';
import { seconds } from './options.js';
import { json, oneLine, type Print, printToStdout, table } from './output.js';
import { withAgent } from './with-agent.js';

const HEADER = [
  'NAME',
  'APPS',
  'OWNER',
  'OUTBOUND',
  'INBOUND',
  'GEN',
  'HEALTH',
  'PODS',
  'INTERCEPTED',
  'OPEN',
  'MEMORY',
  'SAVED',
];
const PROCESS_HEADER = ['STATE', 'RESTARTS'];
const LOOK_MS = 200;
/** In the place of an address. */
const NO_ADDRESS = ['not configured', 'none announced'];

export function instancesCommand(print: Print = printToStdout): Command {
  return new Command('instances')
    .description('the proxy instances of this node: whose apps they serve, and who listens for them')
    .option('--json', 'print JSON')
    .action((options: { json?: true }, command: Command) =>
      withAgent(command, async (client) => {
        const answer = await client.instances();
        if (options.json) {
          print(json(answer));
          return;
        }
        const started = answer.instances.some(({ process }) => process !== null);
        print(
          table(
            [...HEADER, ...(started ? PROCESS_HEADER : [])],
            answer.instances.map((instance) => [
              ...row(instance),
              ...(started ? processRow(instance.process) : []),
            ]),
          ),
        );
        for (const { name, health, upgrade, process } of answer.instances) {
          if (process !== null && process.problem !== '') {
            const what = process.pid === null ? 'is not started' : 'goes on as it was';
            print(`\n${name} ${what}: ${oneLine(process.problem)}`);
          }
          if (health.reason !== '') {
            print(`\n${name}: ${oneLine(health.reason)}`);
          }
          if (upgrade !== null) {
            print(`\n${name}: upgrade ${upgrade.phase}${upgrade.detail && `: ${oneLine(upgrade.detail)}`}`);
          }
        }
        if (answer.problem !== '') {
          print(`\nNot taken over: ${oneLine(answer.problem)}`);
        }
      }),
    )
    .addCommand(upgradeCommand(print));
}

interface UpgradeOptions {
  readonly outbound?: string[];
  readonly inbound?: string[];
  readonly ownerUid?: number;
  readonly canary?: string;
  readonly check: number;
  readonly observe: number;
  readonly deadline: number;
  readonly stop: boolean;
  readonly wait: boolean;
  readonly abort?: true;
  readonly json?: true;
}

function upgradeCommand(print: Print): Command {
  return new Command('upgrade')
    .description('bring a new proxy of an instance into service, beside the old one and without a loss')
    .argument('<name>', 'of the instance')
    .option('--outbound <address...>', 'where the new one listens, one address per family')
    .option('--inbound <address...>', 'the same for what pods are sent')
    .option('--owner-uid <uid>', 'whose the new one is; default as it is', integer)
    .option('--canary <share>', 'give it only a share of new flows at first, such as 10%')
    .option('--check <time>', 'how long it has to listen and accept', seconds, 10)
    .option('--observe <time>', 'how long it is a canary', seconds, 30)
    .option('--deadline <time>', 'how long the old one keeps what it has open', seconds, 600)
    .option('--no-stop', 'do not send SIGTERM to the old one at the end')
    .option('--no-wait', 'return at once; "nodesentry instances" tells how it goes on')
    .option('--abort', 'call the upgrade that is under way off')
    .option('--json', 'print JSON')
    .action((name: string, options: UpgradeOptions, command: Command) =>
      withAgent(command, async (client) => {
        if (options.abort) {
          const status = await client.abortUpgrade(name);
          print(options.json ? json(status) : `upgrade of ${name} called off`);
          return;
        }
        const status = await client.upgradeInstance(name, bodyOf(options));
        if (!options.wait) {
          print(options.json ? json(status) : `upgrade of ${name} begun`);
          return;
        }
        await follow(client, name, options, print);
      }),
    );
}

function bodyOf(options: UpgradeOptions): UpgradeBody {
  const { outbound, inbound, ownerUid, canary } = options;
  return {
    ...(outbound && { outbound }),
    ...(inbound && { inbound }),
    ...(ownerUid !== undefined && { owner: { uid: ownerUid } }),
    ...(canary !== undefined && { canary }),
    checkSeconds: options.check,
    observeSeconds: options.observe,
    deadlineSeconds: options.deadline,
    stop: options.stop,
  };
}

/** Prints what changes of it, until it is over. Throws where it failed. */
async function follow(client: ApiClient, name: string, options: UpgradeOptions, print: Print): Promise<void> {
  let last = '';
  for (;;) {
    const { instances } = await client.instances();
    const upgrade = instances.find((instance) => instance.name === name)?.upgrade;
    if (upgrade === undefined || upgrade === null) {
      throw new Error(`the agent does not know of an upgrade of ${name} any more: it has been restarted`);
    }
    const line = oneLine(`${upgrade.phase}${upgrade.detail && `: ${upgrade.detail}`}`);
    if (line !== last && !options.json) {
      print(line);
    }
    last = line;
    if (upgrade.phase === 'FAILED') {
      throw new Error(`${name} is not upgraded, and stays as it was: ${oneLine(upgrade.detail)}`);
    }
    if (upgrade.phase === 'DONE') {
      if (options.json) {
        print(json(upgrade));
      }
      return;
    }
    await delay(LOOK_MS);
  }
}

function integer(text: string): number {
  if (!/^\d{1,10}$/.test(text)) {
    throw new InvalidArgumentError('expected a whole number');
  }
  return Number(text);
}

function row(instance: InstanceMessage): string[] {
  const { name, apps, owner, listeners, pods, generation, health, openFlows } = instance;
  const intercepted = pods.filter(({ state }) => state === 'INTERCEPTED').length;
  return [
    name,
    apps?.join(',') ?? 'all others',
    Object.entries(owner)
      .map(([key, value]) => `${key} ${value}`)
      .join(', '),
    said(listeners, 'outbound'),
    said(listeners, 'inbound'),
    String(generation),
    health.state,
    String(pods.length),
    String(intercepted),
    String(openFlows),
    mebibytes(instance.memoryBytes),
    mebibytes(instance.memorySavedBytes),
  ];
}

function processRow(process: InstanceMessage['process']): string[] {
  return process === null ? [] : [process.state, String(process.restarts)];
}

function mebibytes(bytes: number | null): string {
  return bytes === null ? '' : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

/** Such as `haproxy (4711), 4 sockets`, or who does not listen where. */
function said(listeners: readonly ListenerMessage[], direction: ListenerMessage['direction']): string {
  const wanted = listeners.filter(
    (listener) => listener.direction === direction && !NO_ADDRESS.includes(listener.address),
  );
  const texts = wanted.map(
    ({ protocol, family, address, adopted, announced, process, pid, sockets, refused }) => {
      const name = `${protocol === 'udp' ? 'UDP ' : ''}IPv${family}`;
      return adopted
        ? `${name} ${process} (${pid})${sockets.all > 1 ? ` ${sockets.all} sockets` : ''}${announced ? ' announced' : ''}`
        : `${name} ${refused === undefined ? `nobody at ${address}` : 'refused'}`;
    },
  );
  return texts.length === 0 ? '-' : texts.join(', ');
}
