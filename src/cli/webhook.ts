import { Command, InvalidArgumentError, Option } from 'commander';
import { steadyUnixMs } from '../base/clock.js';
import { instancesFor, LOG_LEVELS } from '../config/config.js';
import { loadConfig } from '../config/load.js';
import { KubernetesClient } from '../pods/sources/kubernetes-client.js';
import { openApiServerAccess } from '../pods/sources/kubernetes-config.js';
import { createLogger } from '../telemetry/log.js';
import { TERMS } from '../webhook/rotation.js';
import { wholeNumber } from './options.js';

interface WebhookCommandOptions {
  readonly address: string;
  readonly port: number;
  readonly proxyPort: number;
  readonly direct: string;
  readonly instancesOf?: string;
  readonly kubeconfig?: string;
  readonly namespace: string;
  readonly service: string;
  readonly serverName: readonly string[];
  readonly logLevel: string;
}

const CALL_DEADLINE_MS = 10_000;
const DIRECT = 'localhost,127.0.0.1,::1,.svc,.cluster.local';

export function webhookCommand(): Command {
  const port = wholeNumber(1, 65_535);
  return new Command('webhook')
    .description('answer the API server: set up pods in explicit mode, refuse wrong labels and annotations')
    .option('--address <ip>', 'listen here', '::')
    .option('--port <n>', 'and at this port', port, 8443)
    .option('--proxy-port <n>', "of the node's proxy, for pods in explicit mode", port, 15_001)
    .option('--direct <list>', 'what their programs reach without it (NO_PROXY)', noProxyList, DIRECT)
    .option(
      '--instances-of <config>',
      "an agent's configuration: refuse pods of apps that no instance serves",
    )
    .option('--kubeconfig <path>', 'of the API server (default: in-cluster)')
    .addOption(
      new Option('--namespace <name>', 'where it runs')
        .env('NODESENTRY_NAMESPACE')
        .default('nodesentry-system'),
    )
    .option('--service <name>', 'its name: of Service, Secret and configurations', 'nodesentry-webhook')
    .option(
      '--server-name <name>',
      'certified beside the names of the service; may be repeated',
      repeated,
      [],
    )
    .addOption(new Option('--log-level <level>').choices(LOG_LEVELS).default('info'))
    .action(run);
}

/** Until SIGTERM or SIGINT. */
async function run(options: WebhookCommandOptions): Promise<void> {
  const { namespace, service, kubeconfig } = options;
  const log = createLogger(options.logLevel).child({ part: 'webhook' });
  const config = options.instancesOf === undefined ? undefined : loadConfig(options.instancesOf);
  const access = await openApiServerAccess(kubeconfig, '--kubeconfig');
  const stop = new AbortController();
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.once(signal, () => stop.abort());
  }
  // Its libraries are for this command alone; a probe of the agent is a process of its own.
  const { runWebhook } = await import('../webhook/webhook.js');
  await runWebhook(
    {
      client: new KubernetesClient(access, CALL_DEADLINE_MS),
      cluster: { namespace, secret: service, configuration: service },
      names: [`${service}.${namespace}.svc`, `${service}.${namespace}`, ...options.serverName],
      host: options.address,
      port: options.port,
      proxy: { port: options.proxyPort, noProxy: options.direct },
      isServed: (app) => config === undefined || instancesFor(config, app).length > 0,
      terms: TERMS,
      nowMs: steadyUnixMs,
      log,
      onListening: ({ port }) => log.info({ address: options.address, port }, 'webhook running'),
    },
    stop.signal,
  );
  log.info({}, 'webhook stopped');
}

function noProxyList(text: string): string {
  if (!/^[^\s,]+(,[^\s,]+)*$/.test(text)) {
    throw new InvalidArgumentError('expected a list without spaces such as localhost,127.0.0.1,10.0.0.0/8.');
  }
  return text;
}

function repeated(text: string, before: readonly string[]): string[] {
  return [...before, text];
}
