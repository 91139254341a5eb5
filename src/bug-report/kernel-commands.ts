/** What the node's own tools say of the kernel. The agent's container has nft alone: kernel-view.ts needs none of them. */

import { TABLE } from '../kernel/notrack-table.js';
import { runCommand } from './command.js';
import type { Part, Taken } from './part.js';

const COMMANDS: readonly (readonly [name: string, ...words: [string, ...string[]]])[] = [
  ['nft.txt', 'nft', 'list', 'table', 'inet', TABLE],
  ['ip-rule-4.txt', 'ip', '-4', '-details', 'rule'],
  ['ip-rule-6.txt', 'ip', '-6', '-details', 'rule'],
  ['ip-route-4.txt', 'ip', '-4', 'route', 'show', 'table', 'all'],
  ['ip-route-6.txt', 'ip', '-6', 'route', 'show', 'table', 'all'],
  ['ip-address.txt', 'ip', '-details', 'address'],
  ['bpftool-prog.txt', 'bpftool', 'prog', 'show'],
  ['bpftool-map.txt', 'bpftool', 'map', 'show'],
  ['bpftool-link.txt', 'bpftool', 'link', 'show'],
  ['bpftool-net.txt', 'bpftool', 'net', 'show'],
];

/** Of all interfaces together, milliseconds. */
const FILTERS_MS = 30_000;
const ONE_MS = 5_000;

/** `attached`: names of the interfaces that our programs are at. */
export function kernelCommands(attached: () => Promise<readonly string[]>): Part[] {
  return [
    ...COMMANDS.map(
      ([name, command, ...args]): Part => ({
        name: `kernel/${name}`,
        from: [command, ...args].join(' '),
        format: 'text',
        take: () => runCommand(command, args),
      }),
    ),
    {
      name: 'kernel/tc.txt',
      from: 'tc -s filter show dev …, of the interfaces that we are attached to',
      format: 'text',
      take: async () => filters(await attached()),
    },
  ];
}

async function filters(interfaces: readonly string[]): Promise<Taken> {
  const until = performance.now() + FILTERS_MS;
  let text = '';
  for (const [index, name] of interfaces.entries()) {
    if (performance.now() > until) {
      return { text, note: `ended after ${index} of ${interfaces.length} interfaces` };
    }
    for (const direction of ['ingress', 'egress']) {
      const words = ['-s', 'filter', 'show', 'dev', name, direction];
      const { text: shown, note } = await runCommand('tc', words, { timeoutMs: ONE_MS });
      text += `# tc ${words.join(' ')}${note === '' ? '' : ` (${note})`}\n${shown}\n`;
    }
  }
  return interfaces.length === 0 ? { text: '\n', note: 'attached to no interface' } : { text, note: '' };
}
