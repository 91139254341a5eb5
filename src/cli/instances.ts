import { Command } from 'commander';
import type { InstanceMessage, ListenerMessage } from '../api/messages.js';
import { json, oneLine, type Print, printToStdout, table } from './output.js';
import { withAgent } from './with-agent.js';

const HEADER = ['NAME', 'APPS', 'OWNER', 'OUTBOUND', 'INBOUND', 'PODS', 'INTERCEPTED'];
const PROCESS_HEADER = ['STATE', 'RESTARTS', 'MEMORY'];
const MIB = 1024 * 1024;

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
        for (const { name, process } of answer.instances) {
          if (process !== null && process.problem !== '') {
            print(`\n${name} is not started: ${oneLine(process.problem)}`);
          }
        }
        if (answer.problem !== '') {
          print(`\nNot taken over: ${oneLine(answer.problem)}`);
        }
      }),
    );
}

function row({ name, apps, owner, listeners, pods }: InstanceMessage): string[] {
  const intercepted = pods.filter(({ state }) => state === 'INTERCEPTED').length;
  return [
    name,
    apps?.join(',') ?? 'all others',
    Object.entries(owner)
      .map(([key, value]) => `${key} ${value}`)
      .join(', '),
    said(listeners, 'outbound'),
    said(listeners, 'inbound'),
    String(pods.length),
    String(intercepted),
  ];
}

function processRow(process: InstanceMessage['process']): string[] {
  return process === null
    ? ['-', '-', '-']
    : [process.state, String(process.restarts), `${(process.memoryBytes / MIB).toFixed(1)} MiB`];
}

/** Such as `haproxy (4711), 4 sockets`, or who does not listen where. */
function said(listeners: readonly ListenerMessage[], direction: ListenerMessage['direction']): string {
  const wanted = listeners.filter(
    (listener) => listener.direction === direction && listener.address !== 'not configured',
  );
  const texts = wanted.map(({ family, address, adopted, process, pid, sockets, refused }) =>
    adopted
      ? `IPv${family} ${process} (${pid})${sockets.all > 1 ? ` ${sockets.all} sockets` : ''}`
      : `IPv${family} ${refused === undefined ? `nobody at ${address}` : 'refused'}`,
  );
  return texts.length === 0 ? '-' : texts.join(', ');
}
