import { Command } from 'commander';
import type { FlowMessage } from '../api/messages.js';
import { globalOptions, wholeNumber } from './options.js';
import { clockTime, json, oneLine, type Print, padded, printToStdout, table } from './output.js';
import { withAgent } from './with-agent.js';

const HEADER = ['TIME', 'POD', 'DIRECTION', 'SRC', 'DST', 'INSTANCE', 'VERDICT'];
/** Of a line that is printed before the next one is known; longer cells push their line to the right. */
const WIDTHS = [12, 28, 10, 21, 21, 10, 0];

interface FlowsOptions {
  readonly json?: true;
  readonly follow?: true;
  readonly limit: number;
}

export function flowsCommand(print: Print = printToStdout): Command {
  return new Command('flows')
    .description('the flows that were intercepted, the newest first; with --follow, flows as they happen')
    .option('-f, --follow', 'print flows and refusals as they happen, until interrupted')
    .option('-n, --limit <count>', 'at most so many', wholeNumber(1, 10_000), 100)
    .option('--json', 'print JSON; with --follow, one object a line')
    .action((options: FlowsOptions, command: Command) =>
      options.follow ? follow(options, command, print) : list(options, command, print),
    );
}

function list(options: FlowsOptions, command: Command, print: Print): Promise<void> {
  return withAgent(command, async (client) => {
    const flows = await client.flows(options.limit);
    if (options.json) {
      print(json({ flows }));
    } else if (flows.length === 0) {
      print(`No flows yet: the agent at ${globalOptions(command).runDir} has intercepted none.`);
    } else {
      print(table(HEADER, flows.map(cells)));
    }
  });
}

async function follow(options: FlowsOptions, command: Command, print: Print): Promise<void> {
  const stop = new AbortController();
  const interrupt = (): void => stop.abort();
  process.once('SIGINT', interrupt);
  process.once('SIGTERM', interrupt);
  try {
    await withAgent(command, async (client) => {
      const opened = (): void => {
        if (!options.json) {
          print(padded(HEADER, WIDTHS));
        }
      };
      for await (const line of client.followFlows(stop.signal, opened)) {
        if (options.json) {
          print(JSON.stringify(line));
        } else if ('lost' in line) {
          print(`(${line.lost} more flows, left out: more than can be told)`);
        } else {
          print(padded(cells(line).map(oneLine), WIDTHS));
        }
      }
    });
  } finally {
    process.off('SIGINT', interrupt);
    process.off('SIGTERM', interrupt);
  }
}

function cells({
  startedMs,
  namespace,
  podName,
  protocol,
  direction,
  src,
  dst,
  name,
  asked,
  instance,
  verdict,
}: FlowMessage): string[] {
  const pod = podName === '' ? '(gone)' : `${namespace}/${podName}`;
  const told = protocol === 'udp' ? `${direction} UDP` : direction;
  const to = asked ?? name;
  return [clockTime(startedMs), pod, told, src, to === undefined ? dst : `${dst} (${to})`, instance, verdict];
}
