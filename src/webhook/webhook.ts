/** The admission webhook, put together. */

import { once } from 'node:events';
import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import type { KubernetesClient } from '../pods/sources/kubernetes-client.js';
import type { Generation } from './certificates.js';
import { type ClusterNames, WebhookCluster } from './cluster.js';
import { type ExplicitProxy, explicitProxyPatch } from './explicit-proxy.js';
import { CertificateKeeper } from './keeper.js';
import { meshRequestsPatch } from './mesh-requests.js';
import type { RotationTerms } from './rotation.js';
import { startWebhookServer, type WebhookServer } from './server.js';
import { type IsServed, refusalOf } from './validation.js';

export interface WebhookOptions {
  readonly client: Pick<KubernetesClient, 'get' | 'write'>;
  readonly cluster: ClusterNames;
  /** Under which the API server calls. */
  readonly names: readonly string[];
  readonly host: string;
  readonly port: number;
  readonly proxy: ExplicitProxy;
  readonly isServed: IsServed;
  readonly terms: RotationTerms;
  readonly nowMs: Clock;
  readonly log: Log;
  readonly onListening: (server: Pick<WebhookServer, 'port'>) => void;
}

/** Serves until `signal` aborts; listens as soon as it has a certificate that the API server knows. */
export async function runWebhook(options: WebhookOptions, signal: AbortSignal): Promise<void> {
  const { proxy, isServed, onListening } = options;
  let current: Generation | undefined;
  let server: WebhookServer | undefined;
  let haveFirst: () => void = () => undefined;
  const first = new Promise<void>((resolve) => {
    haveFirst = resolve;
  });
  const keeper = new CertificateKeeper({
    ...options,
    cluster: new WebhookCluster(options.client, options.cluster),
    onServed: (generation) => {
      current = generation;
      server?.serve(generation);
      haveFirst();
    },
  });
  const rounds = keeper.run(signal);
  try {
    await Promise.race([first, rounds]);
    if (current === undefined) {
      return; // stopped before there was one
    }
    server = await startWebhookServer({
      ...options,
      first: current,
      mutate: ({ object }) => ({
        patch: [...explicitProxyPatch(object, proxy), ...meshRequestsPatch(object)],
      }),
      validate: (request) => ({ refusal: refusalOf(request, isServed) }),
      ready: () => keeper.ready,
    });
    onListening(server);
    await (signal.aborted ? undefined : once(signal, 'abort'));
  } finally {
    await server?.close();
  }
  await rounds;
}
