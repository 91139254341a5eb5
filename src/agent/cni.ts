/** The CNI plugin's counterpart, put together for `agent.ts`: its socket, and its place in the node's chain. */

import type { Logger } from 'pino';
import { startCniServer } from '../api/cni-server.js';
import type { Opened } from '../base/opened.js';
import { ConflistKeeper } from '../cni/keeper.js';
import { builtPlugin } from '../cni/plugin.js';
import type { Config } from '../config/config.js';
import { peerCredentials } from '../native/sockets.js';
import type { CniSource } from '../pods/sources/cni.js';
import type { Admissions } from '../reconcile/admission.js';
import type { Metrics } from '../telemetry/metrics.js';

/**
 * Opens the socket, then sees to the chain where the configuration says so. Rejects where the socket cannot be opened.
 */
export async function startCni(parts: {
  readonly config: Config;
  readonly runDir: string;
  readonly source: CniSource;
  readonly admissions: Admissions;
  readonly blockers: () => readonly string[];
  readonly metrics: Metrics;
  readonly opened: Opened;
  readonly signal: AbortSignal;
  readonly log: Logger;
}): Promise<void> {
  const { config, runDir, source, admissions, blockers, metrics, opened, signal } = parts;
  const log = parts.log.child({ part: 'cni' });
  const server = await startCniServer({
    runDir,
    source,
    admit: (uidOf, timeoutMs) => admissions.admit(uidOf, timeoutMs),
    blockers,
    credentials: peerCredentials,
    observeAdd: (result, seconds) => metrics.observeCniAdd(result, seconds),
    log,
  });
  opened.add(server, (handle) => handle.close());
  const { cni } = config.sources;
  // After the socket: from the moment that the plugin is in the chain, pods wait for an answer.
  if (cni?.install === true) {
    const keeper = new ConflistKeeper({ ...cni, plugin: builtPlugin(), socket: server.path, log });
    source.explainBy(() => keeper.problem);
    keeper.start(signal);
  }
}
