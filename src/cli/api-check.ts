import { join } from 'node:path';
import { Command, InvalidArgumentError } from 'commander';
import { GRPC_SOCKET_NAME } from '../api/grpc.js';
import { SOCKET_NAME } from '../api/http.js';
import { type Context, runChecks } from '../conformance/check.js';
import { DOOR_CHECKS } from '../conformance/door-checks.js';
import { GrpcDoor } from '../conformance/grpc-door.js';
import { HttpDoor } from '../conformance/http-door.js';
import { KEY_CHECKS } from '../conformance/key-checks.js';
import { REASON_CHECKS } from '../conformance/reason-checks.js';
import { SOCKET_CHECKS } from '../conformance/socket-checks.js';
import { WATCH_CHECKS } from '../conformance/watch-checks.js';
import { formatSocketAddress, parseSocketAddress } from '../net/socket-address.js';
import { globalOptions } from './options.js';
import { json, type Print, printToStdout, table } from './output.js';

interface ApiCheckOptions {
  readonly httpSocket?: string;
  readonly grpcSocket?: string;
  readonly flow?: Context['flow'];
  readonly getsockoptListener?: Context['listener'];
  readonly fast?: true;
  readonly json?: true;
}

export function apiCheckCommand(print: Print = printToStdout): Command {
  return new Command('api-check')
    .description('whether the identity API of this node keeps what is promised of it, by its sockets alone')
    .option('--http-socket <path>', 'default: http.sock in the run directory')
    .option('--grpc-socket <path>', 'default: identity.sock in the run directory')
    .option(
      '--flow <source,destination>',
      'a flow of a pod to ask about, besides those that are listed',
      flow,
    )
    .option(
      '--getsockopt-listener <address:port>',
      'listen there as the proxy of an instance, and ask the kernel as well of the connections that come',
      listener,
    )
    .option('--fast', 'do not wait for a heartbeat')
    .option('--json', 'print JSON')
    .action(async (options: ApiCheckOptions, command: Command) => {
      const { runDir } = globalOptions(command);
      const http = new HttpDoor(options.httpSocket ?? join(runDir, SOCKET_NAME));
      const grpc = new GrpcDoor(options.grpcSocket ?? join(runDir, GRPC_SOCKET_NAME));
      try {
        const checks = [...KEY_CHECKS, ...REASON_CHECKS, ...DOOR_CHECKS, ...WATCH_CHECKS, ...SOCKET_CHECKS];
        const outcomes = await runChecks(checks, {
          http,
          grpc,
          flow: options.flow,
          fast: options.fast === true,
          listener: options.getsockoptListener,
        });
        const rows = outcomes.map(({ id, result, says, detail }) => [id, result, says, detail]);
        print(options.json ? json(outcomes) : `${table(['CHECK', 'RESULT', 'WHAT', 'WHY'], rows)}\n`);
        const failed = outcomes.filter(({ result }) => result === 'fail');
        if (failed.length > 0) {
          throw new Error(
            `${failed.length} of ${outcomes.length} checks failed: ${failed.map(({ id }) => id).join(', ')}`,
          );
        }
      } finally {
        grpc.close();
      }
    });
}

function flow(text: string): NonNullable<Context['flow']> {
  const [src, dst, ...more] = text.split(',').map(parseSocketAddress);
  if (src === undefined || dst === undefined || more.length > 0) {
    throw new InvalidArgumentError('expected two addresses and ports such as 10.66.0.3:41886,10.200.1.1:80.');
  }
  return { src: formatSocketAddress(src), dst: formatSocketAddress(dst) };
}

function listener(text: string): { readonly host: string; readonly port: number } {
  const address = parseSocketAddress(text);
  if (address === undefined || address.port === 0) {
    throw new InvalidArgumentError('expected an address and port such as 127.0.0.1:15001.');
  }
  return { host: address.ip, port: address.port };
}
