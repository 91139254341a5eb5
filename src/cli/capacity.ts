import { Command } from 'commander';
import type { CapacityReport } from '../capacity/report.js';
import { type Resources, resourcesText } from '../pods/quantity.js';
import { clockTime, json, type Print, printToStdout, table } from './output.js';
import { withAgent } from './with-agent.js';

type Target = NonNullable<CapacityReport['target']>;
type Allotment = NonNullable<Target['now']>['requests'];

export function capacityCommand(print: Print = printToStdout): Command {
  return new Command('capacity')
    .description('what the pods say that the proxy of this node needs, and what its container has')
    .option('--json', 'print JSON')
    .action((options: { json?: true }, command: Command) =>
      withAgent(command, async (client) => {
        const answer = await client.capacity();
        print(options.json ? json(answer) : capacityText(answer));
      }),
    );
}

export function capacityText({ mode, apps, total, target }: CapacityReport): string {
  const rows = apps.map(({ namespace, app, pods, shared, perPod, sum, problem }) => [
    namespace,
    app,
    String(pods),
    ...[shared, perPod, sum].map(resourcesText),
    problem,
  ]);
  const all = ['', 'all', String(total.pods), ...[total.shared, total.perPod, total.sum].map(resourcesText)];
  const header = ['NAMESPACE', 'APP', 'PODS', 'SHARED', 'PER POD', 'SUM', 'REMARK'];
  return [table(header, [...rows, all]), '', `mode: ${mode}`, ...targetLines(target)].join('\n');
}

function targetLines(target: CapacityReport['target']): string[] {
  if (target === null) {
    return ['target: none is configured'];
  }
  const { namespace, podName, selector, container, state, reason, now, actual, lastResize, wanted } = target;
  const pod = podName === '' ? `(${selector})` : podName;
  return [
    `target: ${namespace}/${pod}, container ${container}: ${state}${reason === '' ? '' : `: ${reason}`}`,
    `wanted: ${resourcesText(wanted)}`,
    ...(now === null ? [] : [`now:    ${said(now)}`]),
    ...(actual === null ? [] : [`actual: ${said(actual)}`]),
    ...(target.usedMemoryBytes === null ? [] : [`in use: ${mebibytes(target.usedMemoryBytes)}`]),
    ...(lastResize === null ? [] : [`resized at ${clockTime(lastResize.atMs)}: ${said(lastResize)}`]),
  ];
}

function said({ requests, limits }: NonNullable<Target['now']>): string {
  return `requests ${allotment(requests)}; limits ${allotment(limits)}`;
}

function allotment({ cpuMillis, memoryBytes }: Allotment): string {
  return `${cpuMillis === null ? 'no CPU' : `${cpuMillis}m`}, ${memoryBytes === null ? 'no memory' : mebibytes(memoryBytes)}`;
}

function mebibytes(bytes: Resources['memoryBytes']): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
