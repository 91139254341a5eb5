import { Command } from 'commander';
import type { ExplanationMessage } from '../api/messages.js';
import { formatSocketAddress, type SocketAddress } from '../net/socket-address.js';
import { socketAddress } from './options.js';
import { fields, json, type Print, printToStdout } from './output.js';
import { withAgent } from './with-agent.js';

interface ExplainOptions {
  readonly dst?: SocketAddress;
  readonly src?: SocketAddress;
  readonly udp?: true;
  readonly json?: true;
}

export function explainCommand(print: Print = printToStdout): Command {
  return new Command('explain')
    .description('what would become of a new flow of a pod, and by which rule')
    .argument('<pod>', 'namespace/name, a name that one pod alone has, or a UID')
    .option('--dst <address:port>', 'what the pod dials, such as 10.200.1.1:443', socketAddress)
    .option(
      '--src <address:port>',
      'who dials the pod, and the port of the pod that is dialled',
      socketAddress,
    )
    .option('--udp', 'a datagram; without it, a TCP connection')
    .option('--json', 'print JSON')
    .action((pod: string, { dst, src, udp, json: asJson }: ExplainOptions, command: Command) => {
      if ((dst === undefined) === (src === undefined)) {
        command.error('error: exactly one of --dst and --src is expected');
      }
      return withAgent(command, async (client) => {
        const flow = dst === undefined ? { src: src as SocketAddress } : { dst };
        const answer = await client.explain(pod, { ...flow, ...(udp && { protocol: 'udp' }) });
        print(asJson ? json(answer) : describe(answer));
      });
    });
}

function describe(answer: ExplanationMessage): string {
  const { namespace, podName, protocol, direction, far, port, outcome, instance, rule, inForce } = answer;
  const address = formatSocketAddress({ ip: far, port });
  return fields([
    ['Pod', `${namespace}/${podName}`],
    ['Flow', direction === 'EGRESS' ? `EGRESS to ${address}` : `INGRESS from ${far} to port ${port}`],
    ...(protocol === 'udp' ? [['Protocol', 'UDP'] as const] : []),
    ['Outcome', inForce ? outcome : `${outcome}, once it is in place`],
    ['Instance', instance],
    ['Rule', rule],
  ]);
}
