import { setTimeout as delay } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { Command } from 'commander';
import type { ApiClient, DrainTarget } from '../api/client.js';
import type { DrainMessage, DrainsMessage } from '../api/messages.js';
import { seconds } from './options.js';
import { json, oneLine, type Print, printToStdout } from './output.js';
import { progress } from './progress.js';
import { withAgent } from './with-agent.js';

/** Of `--wait`. */
const LOOK_MS = 250;

interface TargetOptions {
  readonly app?: string;
  readonly all?: true;
  readonly json?: true;
}

interface DrainOptions extends TargetOptions {
  readonly to?: string;
  readonly deadline?: number;
  readonly wait?: true;
}

export function drainCommand(
  print: Print = printToStdout,
  terminal: NodeJS.WriteStream | undefined = process.stdout.isTTY ? process.stdout : undefined,
): Command {
  return targeted(
    new Command('drain').description(
      'new connections of pods go past their proxy from now on, or to another instance; open ones go on',
    ),
  )
    .option('--to <instance>', 'where new connections go; without it, straight through')
    .option(
      '--deadline <time>',
      'end what is open still after this time, such as 30s or 5m; without it, it may take as long as it wants',
      seconds,
    )
    .option('--wait', 'return when nothing is open any more')
    .option('--json', 'print JSON')
    .action((pod: string | undefined, options: DrainOptions, command: Command) => {
      const target = targetOf(pod, options, command);
      const { to, deadline, wait } = options;
      return withAgent(command, async (client) => {
        let drain = await client.drain({
          ...target,
          ...(to !== undefined && { to }),
          ...(deadline !== undefined && { deadlineSeconds: deadline }),
        });
        const say = options.json ? () => undefined : print;
        say(`${podsText(drain)} drained${drain.to === '' ? '' : ` to ${oneLine(drain.to)}`}`);
        if (wait) {
          drain = await waited(client, drain, say, options.json ? undefined : terminal);
        }
        if (options.json) {
          print(json(drain));
        } else if (!wait) {
          print(openText(drain));
        }
      });
    });
}

export function resumeCommand(print: Print = printToStdout): Command {
  return targeted(
    new Command('resume').description('ends a drain of exactly this pod or app, or with --all every one'),
  )
    .option('--json', 'print JSON')
    .action((pod: string | undefined, options: TargetOptions, command: Command) => {
      const target = targetOf(pod, options, command);
      return withAgent(command, async (client) => {
        const answer = await client.resume(target);
        if (options.json) {
          print(json(answer));
        } else {
          print(
            answer.resumed === 0
              ? 'Nothing of the kind was drained.'
              : `${counted(answer.resumed, 'drain')} ended`,
          );
        }
      });
    });
}

function targeted(command: Command): Command {
  return command
    .argument('[pod]', 'name, namespace/name or UID of a pod')
    .option('--app <app>', 'every pod of this app, also those to come')
    .option('--all', 'every pod of the node, also those to come');
}

function targetOf(pod: string | undefined, { app, all }: TargetOptions, command: Command): DrainTarget {
  const targets: readonly DrainTarget[] = [
    ...(pod === undefined ? [] : [{ pod }]),
    ...(app === undefined ? [] : [{ app }]),
    ...(all === undefined ? [] : [{ all }]),
  ];
  const [target, other] = targets;
  if (target === undefined || other !== undefined) {
    command.error('error: name one pod, or --app, or --all');
  }
  return target;
}

/** As it is when nothing is open any more, or when somebody has resumed it. */
async function waited(
  client: ApiClient,
  ordered: DrainMessage,
  print: Print,
  terminal: NodeJS.WriteStream | undefined,
): Promise<DrainMessage> {
  const shown = progress(terminal, print);
  let most = 0;
  try {
    for (;;) {
      const answer = await client.drains();
      const drain = answer.drains.find(
        ({ scope, since }) => isDeepStrictEqual(scope, ordered.scope) && since === ordered.since,
      );
      if (drain === undefined) {
        throw new Error('the drain was resumed, or ordered anew, before its end');
      }
      const open = openOf(drain);
      most = Math.max(most, open);
      shown.reached(most - open, most, openText(drain));
      if (open === 0) {
        return drain;
      }
      refuseProblem(answer);
      await delay(LOOK_MS);
    }
  } finally {
    shown.end();
  }
}

function refuseProblem({ problem }: DrainsMessage): void {
  if (problem !== '') {
    throw new Error(problem);
  }
}

function openOf({ pods }: DrainMessage): number {
  return pods.reduce((sum, { openFlows }) => sum + openFlows, 0);
}

function openText(drain: DrainMessage): string {
  const open = openOf(drain);
  return open === 0 ? 'nothing open any more' : `${counted(open, 'connection')} still open`;
}

function podsText({ pods }: DrainMessage): string {
  const [first, ...more] = pods;
  return first !== undefined && more.length === 0
    ? oneLine(`${first.namespace}/${first.podName}`)
    : counted(pods.length, 'pod');
}

function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}
