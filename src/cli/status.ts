import { Command, Option } from 'commander';
import type { ListenerMessage, StatusMessage } from '../api/messages.js';
import { duration, json, oneLine, type Print, printToStdout, table } from './output.js';
import { withAgent } from './with-agent.js';

export function statusCommand(print: Print = printToStdout): Command {
  return new Command('status')
    .description('what the agent knows, what it has in place, and what is missing')
    .option('--json', 'print JSON')
    .addOption(
      new Option('--check <what>', 'say nothing but whether it is so, by the exit code: for probes').choices([
        'live',
        'ready',
      ]),
    )
    .action((options: { json?: true; check?: 'live' | 'ready' }, command: Command) =>
      withAgent(command, async (client) => {
        if (options.check !== undefined) {
          await client.check(options.check);
          print(options.json ? json({ status: options.check }) : options.check);
          return;
        }
        const status = await client.status();
        print(options.json ? json(status) : describe(status));
      }),
    );
}

function describe(status: StatusMessage): string {
  const ready = status.ready ? 'yes' : `NO: ${status.blockers.join('; ')}`;
  const { kernel, agent } = status.eventsLost;
  const lost =
    kernel + agent === 0
      ? 'none'
      : `${kernel} (the kernel's buffer was full), ${agent} (the agent was behind)`;
  return [
    `Agent:       nodesentry ${status.version}, pid ${status.pid}, up ${duration(status.uptimeMs)}`,
    `Node:        ${status.node}`,
    `Ready:       ${oneLine(ready)}`,
    ...status.familiesOff.map(
      ({ family, reason }) => `IPv${family}:        off on this node (${reason}), not intercepted`,
    ),
    `Revision:    ${status.revision} of epoch ${status.epoch}`,
    `Events lost: ${lost}`,
    ...(status.socketOption.problem === ''
      ? []
      : [`getsockopt:  proxies cannot ask by it: ${status.socketOption.problem}`]),
    `Splice:      ${oneLine(splice(status.splice))}`,
    ...(status.podsLate === undefined ? [] : [`Late pods:   ${late(status.podsLate)}`]),
    ...section('Sources', table(['NAME', 'SYNCED', 'LAST ERROR'], status.sources.map(sourceRow))),
    ...section('Listeners', table(LISTENER_HEADER, listenerRows(status.listeners))),
    ...section('Pods by state', table(['STATE', 'PODS'], countRows(status.endpoints))),
    ...section('Repairs', repairs(status.repairs)),
    ...section('Packets from pods by verdict', packets(status.packets)),
    ...section('Packets to pods by verdict', packets(status.packetsReceived)),
  ].join('\n');
}

function splice({ mode, pods, problem, flaws, messages, bytes, leftToTcp }: StatusMessage['splice']): string {
  if (mode === 'disabled') {
    return 'disabled on this node';
  }
  if (problem !== '') {
    return `not to be had: ${problem}`;
  }
  if (pods > 0) {
    return `${pods} pods; ${messages} messages with ${bytes} bytes, ${leftToTcp} messages by TCP`;
  }
  return mode === 'auto' && flaws.length > 0
    ? `no pod asks for it, and this kernel would not do all of it right: ${flaws.join(', ')}`
    : 'no pod has it';
}

function late(count: number): string {
  return count === 0
    ? 'none'
    : `${count} not announced by the CNI plugin: their first connections may have gone past the proxy`;
}

const LISTENER_HEADER = ['INSTANCE', 'DIRECTION', 'FAMILY', 'ADDRESS', 'ADOPTED', 'NEW CONNECTIONS'];

function listenerRows(listeners: readonly ListenerMessage[]): string[][] {
  const inbound = new Set(
    listeners.flatMap(({ protocol, direction, instance }) =>
      protocol === undefined && direction === 'inbound' ? [instance] : [],
    ),
  );
  const without = new Set(listeners.map(({ instance }) => instance).filter((name) => !inbound.has(name)));
  return [
    ...listeners.map(listenerRow),
    ...[...without].map((name) => [
      name,
      'inbound',
      '',
      'not configured',
      '',
      'are not intercepted (outbound only)',
    ]),
  ];
}

function listenerRow(listener: ListenerMessage): string[] {
  const { instance, protocol, direction, family, address, adopted, pid, process: name, failure } = listener;
  const refused = protocol === 'udp' ? 'are answered "port unreachable"' : 'are reset';
  const without =
    failure === 'open' ? 'pass, not intercepted (failure: open)' : `${refused} (failure: closed)`;
  const { all, transparent } = listener.sockets;
  const ofGroup = all > 1 ? ` (${transparent} of ${all} sockets)` : '';
  const owner = [name ?? '', pid === undefined ? '' : `pid ${pid}`].filter((text) => text !== '').join(', ');
  return [
    instance,
    protocol === 'udp' ? `${direction} UDP` : direction,
    `IPv${family}`,
    address,
    adopted ? 'yes' : 'NO',
    adopted
      ? `reach ${owner === '' ? 'the proxy' : owner}${ofGroup}`
      : oneLine(listener.refused === undefined ? without : `${without}: ${listener.refused}`),
  ];
}

function sourceRow({ name, synced, lastError }: StatusMessage['sources'][number]): string[] {
  return [name, synced ? 'yes' : 'NO', lastError];
}

function repairs(counts: StatusMessage['repairs']): string {
  const rows = countRows(counts).filter(([, count]) => count !== '0');
  return rows.length === 0 ? 'none needed' : table(['KIND', 'REPAIRS'], rows);
}

function packets(totals: Readonly<Record<string, number>>): string {
  const rows = countRows(totals).filter(([, count]) => count !== '0');
  return rows.length === 0 ? 'none yet' : table(['VERDICT', 'PACKETS'], rows);
}

function countRows(counts: Readonly<Record<string, number>>): string[][] {
  return Object.entries(counts).map(([name, count]) => [name, String(count)]);
}

function section(title: string, body: string): string[] {
  return ['', `${title}:`, ...body.split('\n').map((line) => `  ${line}`)];
}
