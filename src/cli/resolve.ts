import { Command, Option } from 'commander';
import { ASSURANCES } from '../api/client.js';
import type { Assurance, Party, Resolution } from '../identity/resolve.js';
import type { SocketAddress } from '../net/socket-address.js';
import { socketAddress } from './options.js';
import { fields, json, type Print, printToStdout } from './output.js';
import { withAgent } from './with-agent.js';

interface ResolveOptions {
  readonly src: SocketAddress;
  readonly dst: SocketAddress;
  readonly minAssurance?: Assurance;
  readonly udp?: true;
  readonly json?: true;
}

export function resolveCommand(print: Print = printToStdout): Command {
  return new Command('resolve')
    .description('which pod a flow belongs to')
    .requiredOption(
      '--src <address:port>',
      'where the flow comes from, such as 10.66.0.3:41886',
      socketAddress,
    )
    .requiredOption('--dst <address:port>', 'where it was going, such as [fd00::1]:80', socketAddress)
    .addOption(
      new Option(
        '--min-assurance <assurance>',
        'refuse what rests on less; without it, DATAPATH_RECORDED',
      ).choices(ASSURANCES),
    )
    .option('--udp', 'a flow of UDP; without it, of TCP')
    .option('--json', 'print JSON')
    .action(({ src, dst, minAssurance, udp, json: asJson }: ResolveOptions, command: Command) =>
      withAgent(command, async (client) => {
        const resolution = await client.resolve({
          proto: udp ? 'udp' : 'tcp',
          src,
          dst,
          ...(minAssurance === undefined ? {} : { minAssurance }),
        });
        print(asJson ? json(resolution) : describe(resolution));
      }),
    );
}

function describe(resolution: Resolution): string {
  const { workload, source, destination, direction, original, instance, assurance } = resolution;
  const other = direction === 'EGRESS' ? destination : source;
  return fields([
    ['Pod', `${workload.namespace}/${workload.podName}`],
    ['SPIFFE ID', workload.spiffeId],
    ['App', workload.app],
    ['Runtime', [workload.runtime, workload.runtimeHandler].filter((text) => text !== '').join(', handler ')],
    ['UID', `${workload.podUid} (generation ${workload.generation})`],
    ['State', workload.state],
    ['Flow', `${direction} ${original.src} -> ${original.dst}`],
    [direction === 'EGRESS' ? 'To' : 'From', partyText(other)],
    ['Instance', instance],
    ['Assurance', assurance],
  ]);
}

function partyText(party: Party): string {
  if (party.workload === null) {
    return party.reason === 'WORKLOAD_NOT_FOUND' ? 'no pod of this node' : `not told (${party.reason})`;
  }
  return `${party.workload.namespace}/${party.workload.podName} (${party.assurance})`;
}
