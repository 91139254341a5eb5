/** The CNI plugin's counterpart, put together for `agent.ts`: its socket, and its place in the node's chain. */

import { join } from 'node:path';
import type { Logger } from 'pino';
import { CNI_RULE_NAME, CniRuleFile, INTERCEPT_KEY } from '../api/cni-rule.js';
import { startCniServer } from '../api/cni-server.js';
import type { Opened } from '../base/opened.js';
import { rulePath } from '../cni/conflist.js';
import { ConflistKeeper } from '../cni/keeper.js';
import { builtPlugin } from '../cni/plugin.js';
import type { Config } from '../config/config.js';
import { peerCredentials } from '../native/sockets.js';
import { authoritiesAmong, isConfirmed } from '../pods/confirmation.js';
import type { Pod } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { PodSource } from '../pods/source.js';
import type { CniSource } from '../pods/sources/cni.js';
import { KubernetesSource } from '../pods/sources/kubernetes.js';
import type { Admissions } from '../reconcile/admission.js';
import type { Metrics } from '../telemetry/metrics.js';

/** A pod that comes in between is judged by its namespace. */
const RULE_LOOK_MS = 1_000;

/**
 * Opens the socket, leaves beside it what is to happen while no agent runs, then sees to the chain where the
 * configuration says so. Rejects where the socket cannot be opened.
 */
export async function startCni(parts: {
  readonly config: Config;
  readonly runDir: string;
  readonly store: PodStore;
  readonly sources: readonly PodSource[];
  readonly source: CniSource;
  /** Whether every source has told what it knows. */
  readonly synced: () => boolean;
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
    admissions,
    blockers,
    credentials: peerCredentials,
    observeAdd: (result, seconds) => metrics.observeCniAdd(result, seconds),
    log,
  });
  opened.add(server, (handle) => handle.close());
  const { cni } = config.sources;
  keepRule(parts, log);
  // After the socket: from the moment that the plugin is in the chain, pods wait for an answer.
  if (cni?.install === true) {
    const keeper = new ConflistKeeper({ ...cni, plugin: builtPlugin(), socket: server.path, log });
    source.explainBy(() => keeper.problem);
    keeper.start(signal);
  }
}

function keepRule(parts: Parameters<typeof startCni>[0], log: Logger): void {
  const { config, runDir, store, sources, synced, opened } = parts;
  const { cni } = config.sources;
  const { enrol, failure, other } = config.interception;
  const authorities = authoritiesAmong(sources);
  const kubernetes = sources.find((source) => source instanceof KubernetesSource);
  let listed: { readonly revision: number; readonly pods: readonly Pod[] } | undefined;
  const pods = () => {
    if (listed?.revision !== store.revision) {
      const confirmed = store.list().filter((pod) => !pod.hostNetwork && isConfirmed(pod, authorities));
      listed = { revision: store.revision, pods: confirmed };
    }
    return listed.pods;
  };
  const known = () => ({
    enrol,
    failure,
    other,
    pods: pods(),
    namespaces: kubernetes?.namespaces && wordsOf(kubernetes.namespaces),
  });
  const rule = new CniRuleFile({
    // A boot empties the run directory.
    paths: [join(runDir, CNI_RULE_NAME), ...(cni?.install === true ? [rulePath(cni.stateDir)] : [])],
    enrol,
    known: () => (synced() ? known() : undefined),
    log,
  });
  const refresh = () => rule.refresh();
  refresh();
  opened.add(refresh, (last) => last());
  opened.add(setInterval(refresh, RULE_LOOK_MS), clearInterval);
}

function wordsOf(
  namespaces: ReadonlyMap<string, Readonly<Record<string, string>>>,
): ReadonlyMap<string, string | undefined> {
  return new Map([...namespaces].map(([name, inherited]) => [name, inherited[INTERCEPT_KEY]]));
}
