import { join } from 'node:path';
import { Command, InvalidArgumentError, Option } from 'commander';
import type { Logger } from 'pino';
import { IdentityClient } from '../client/identity-client.js';
import { LOG_LEVELS } from '../config/config.js';
import { DatagramSender, listenForDatagrams } from '../native/datagrams.js';
import { socketFrom } from '../native/sockets.js';
import { formatSocketAddress, parseSocketAddress, type SocketAddress } from '../net/socket-address.js';
import { startDatagramProxy } from '../proxy/datagrams.js';
import { DNS_PORT, namesIn } from '../proxy/names.js';
import { type ProxiedFlow, startProxy } from '../proxy/proxy.js';
import { DEFAULT_TYPES, proxyV2Header } from '../proxy/proxy-v2.js';
import { recordedAt } from '../proxy/who.js';
import { createLogger } from '../telemetry/log.js';
import { globalOptions, wholeNumber } from './options.js';

interface ProxyCommandOptions {
  readonly outbound?: SocketAddress;
  readonly outbound6?: SocketAddress;
  readonly inbound?: SocketAddress;
  readonly inbound6?: SocketAddress;
  readonly listen: readonly SocketAddress[];
  readonly listenUdp: readonly SocketAddress[];
  readonly keepSource?: true;
  readonly sendProxyV2?: true;
  readonly proxyV2Id: number;
  readonly proxyV2Pod: number;
  readonly allowUnidentified?: true;
  readonly connectTimeoutMs: number;
  readonly resolveTimeoutMs: number;
  readonly idleTimeoutMs: number;
  readonly udpIdleTimeoutMs: number;
  readonly logLevel: string;
}

const DEFAULT_OUTBOUND: SocketAddress = { ip: '127.0.0.1', port: 15_001 };
const DAY_MS = 86_400_000;
/** That are told at once: as many as the agent takes. */
const MOST_NAMES = 64;

export function proxyCommand(): Command {
  const milliseconds = wholeNumber(1, DAY_MS);
  return new Command('proxy')
    .description(
      'run the reference proxy: accept, ask whose it is, log a line, pass on to the original destination',
    )
    .option(
      '--outbound <address:port>',
      'listen here (default: 127.0.0.1:15001, unless --inbound or --listen is given)',
      address,
    )
    .option('--outbound6 <[address]:port>', 'and here for IPv6, such as [::1]:15001', address)
    .option('--inbound <address:port>', 'listen here for connections to pods; none by default', address)
    .option('--inbound6 <[address]:port>', 'and here for those over IPv6', address)
    .option('--listen <address:port>', 'and here; may be repeated', repeatedAddress, [])
    .option(
      '--listen-udp <address:port>',
      'take datagrams here; may be repeated; answering needs CAP_NET_RAW',
      repeatedAddress,
      [],
    )
    .option(
      '--keep-source',
      "connect from the client's address, on a port of its own; needs CAP_NET_RAW or CAP_NET_ADMIN, and answers that are routed back here",
    )
    .option(
      '--send-proxy-v2',
      'tell each destination first, by the PROXY protocol, both addresses and who has opened the connection',
    )
    .option('--proxy-v2-id <type>', 'type of the TLV with the SPIFFE ID', tlvType, DEFAULT_TYPES.id)
    .option('--proxy-v2-pod <type>', 'type of the TLV with namespace/pod', tlvType, DEFAULT_TYPES.pod)
    .option('--allow-unidentified', 'pass flows on whose pod is not known, instead of resetting them')
    .option('--connect-timeout-ms <ms>', 'for reaching the original destination', milliseconds, 5_000)
    .option('--resolve-timeout-ms <ms>', 'for an answer of the agent, restarts included', milliseconds, 5_000)
    .option(
      '--idle-timeout-ms <ms>',
      'for flows on which nothing is said; 0: none',
      wholeNumber(0, DAY_MS),
      3_600_000,
    )
    .option('--udp-idle-timeout-ms <ms>', 'the same for flows of UDP', milliseconds, 60_000)
    .addOption(
      new Option('--log-level <level>', 'info: one line per flow; debug: another at its end')
        .choices(LOG_LEVELS)
        .default('info'),
    )
    .action(run);
}

/** Until SIGTERM or SIGINT. */
async function run(options: ProxyCommandOptions, command: Command): Promise<void> {
  const log = createLogger(options.logLevel).child({ part: 'proxy' });
  const client = new IdentityClient({ socket: join(globalOptions(command).runDir, 'http.sock') });
  const stopped = new Promise<NodeJS.Signals>((resolve) => {
    process.once('SIGTERM', resolve);
    process.once('SIGINT', resolve);
  });
  const answers = new DatagramSender();
  try {
    const proxy = await startProxy({
      listen: listenAddresses(options),
      client,
      log,
      recordedAt,
      ...(options.keepSource ? { socketFrom } : {}),
      ...(options.sendProxyV2 ? { headerOf: proxyV2(options) } : {}),
      allowUnidentified: options.allowUnidentified ?? false,
      connectTimeoutMs: options.connectTimeoutMs,
      resolveTimeoutMs: options.resolveTimeoutMs,
      idleTimeoutMs: options.idleTimeoutMs,
    });
    const datagrams = startDatagramProxy({
      listen: options.listenUdp,
      sockets: {
        listen: listenForDatagrams,
        send: (from, to, data) => answers.send(from, to, data),
      },
      onAnswer: (flow, answer) => tellNames(client, log, flow, answer),
      client,
      log,
      allowUnidentified: options.allowUnidentified ?? false,
      resolveTimeoutMs: options.resolveTimeoutMs,
      idleTimeoutMs: options.udpIdleTimeoutMs,
    });
    log.info({ addresses: proxy.addresses, udp: datagrams.addresses }, 'proxy running');
    const active = { signal: await stopped, active: proxy.active(), activeUdp: datagrams.active() };
    log.info(active, 'proxy stopping');
    datagrams.close();
    await proxy.close();
  } finally {
    answers.close();
    await client.close();
  }
}

/** Only for those who read it: what cannot be told is left out. */
function tellNames(
  client: IdentityClient,
  log: Logger,
  { client: src, server: dst }: { readonly client: SocketAddress; readonly server: SocketAddress },
  answer: Buffer,
): void {
  const names = dst.port === DNS_PORT ? namesIn(answer) : [];
  if (names.length > 0) {
    const flow = { proto: 'udp', src: formatSocketAddress(src), dst: formatSocketAddress(dst) } as const;
    client
      .tell({ ...flow, answers: names.slice(0, MOST_NAMES) })
      .catch((error: unknown) => log.debug({ err: error }, 'names not told'));
  }
}

function proxyV2({ proxyV2Id: id, proxyV2Pod: pod }: ProxyCommandOptions) {
  return ({ peer, destination, sender }: ProxiedFlow) =>
    proxyV2Header(peer, destination, sender, { id, pod });
}

/** In decimal or as 0xE0. */
function tlvType(text: string): number {
  const type = /^(?:\d{1,3}|0x[\da-f]{1,2})$/i.test(text) ? Number(text) : 0;
  if (type < 1 || type > 255) {
    throw new InvalidArgumentError('expected a number from 1 to 255, such as 0xE0.');
  }
  return type;
}

function listenAddresses(options: ProxyCommandOptions): SocketAddress[] {
  const { outbound, outbound6, inbound, inbound6, listen } = options;
  const others = [inbound, inbound6, ...listen].filter((given) => given !== undefined);
  const first = outbound ?? (others.length === 0 ? DEFAULT_OUTBOUND : undefined);
  return [first, outbound6, ...others].filter((given) => given !== undefined);
}

function address(text: string): SocketAddress {
  const parsed = parseSocketAddress(text);
  if (parsed === undefined) {
    throw new InvalidArgumentError('expected an address and port such as 127.0.0.1:15001 or [::1]:15001.');
  }
  return parsed;
}

function repeatedAddress(text: string, before: readonly SocketAddress[]): SocketAddress[] {
  return [...before, address(text)];
}
