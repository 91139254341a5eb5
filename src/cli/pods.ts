import { Command } from 'commander';
import type { WorkloadMessage } from '../api/messages.js';
import { json, type Print, printToStdout, table, yesNo } from './output.js';
import { withAgent } from './with-agent.js';

const HEADER = [
  'NAMESPACE',
  'NAME',
  'RUNTIME',
  'STATE',
  'DIRECTIONS',
  'INTERFACE',
  'TOPOLOGY',
  'IPS',
  'DESIRED',
  'PROGRAMMED',
  'VERIFIED',
  'REASON',
  'SPLICE',
];

export function podsCommand(print: Print = printToStdout): Command {
  return new Command('pods')
    .description('the pods of this node, and how far the interception of each has come')
    .option('--json', 'print JSON')
    .action((options: { json?: true }, command: Command) =>
      withAgent(command, async (client) => {
        const answer = await client.workloads();
        if (options.json) {
          print(json(answer));
        } else if (answer.workloads.length === 0) {
          print('No pods: no source names any.');
        } else {
          print(table(HEADER, answer.workloads.map(row)));
        }
      }),
    );
}

function row({ namespace, podName, runtime, ips, interception }: WorkloadMessage): string[] {
  const {
    state,
    directions,
    topology,
    interfaces,
    desired,
    programmed,
    verified,
    reason,
    problems,
    openFlows,
    splice,
  } = interception;
  const told = problems.filter((problem) => !reason.includes(problem));
  return [
    namespace,
    podName,
    runtime,
    state,
    directions,
    interfaces.map(({ name }) => name).join(','),
    topology,
    ips.join(','),
    yesNo(desired),
    yesNo(programmed),
    yesNo(verified),
    [reason, ...(openFlows === undefined ? [] : [`${openFlows} still open`]), ...told]
      .filter((text) => text !== '')
      .join('; '),
    splice.used ? yesNo(true) : `no: ${splice.reason}`,
  ];
}
