/** The configured sources, made for `agent.ts`. */

import { join } from 'node:path';
import type { Logger } from 'pino';
import type { Config } from '../config/config.js';
import type { PodUid } from '../pods/pod.js';
import type { PodSource, PodStore } from '../pods/pod-store.js';
import { CniSource } from '../pods/sources/cni.js';
import { CriSource } from '../pods/sources/cri.js';
import { KubernetesSource } from '../pods/sources/kubernetes.js';
import { KubernetesMemory } from '../pods/sources/kubernetes-memory.js';
import { StaticSource } from '../pods/sources/static.js';

export type Source = PodSource & { poke?(): void };

export function openSources(config: Config, runDir: string, store: PodStore, log: Logger): Source[] {
  const sources: Source[] = [];
  if (config.sources.static !== undefined) {
    sources.push(
      new StaticSource({ file: config.sources.static.file, store, log: log.child({ part: 'static' }) }),
    );
  }
  if (config.sources.cri !== undefined) {
    sources.push(
      new CriSource({
        endpoint: config.sources.cri.endpoint,
        handlers: config.runtimes.handlers,
        store,
        log: log.child({ part: 'cri' }),
      }),
    );
  }
  if (config.sources.kubernetes !== undefined) {
    const kubernetesLog = log.child({ part: 'kubernetes' });
    sources.push(
      new KubernetesSource({
        kubeconfig: config.sources.kubernetes.kubeconfig,
        node: config.node,
        handlers: config.runtimes.handlers,
        store,
        memory: new KubernetesMemory({ path: join(runDir, 'kubernetes.json'), log: kubernetesLog }),
        log: kubernetesLog,
      }),
    );
  }
  if (config.sources.cni !== undefined) {
    sources.push(new CniSource({ directory: join(runDir, 'cni'), store, log: log.child({ part: 'cni' }) }));
  }
  return sources;
}

/**
 * Why it is not known yet what the pod with this UID is: where the API server is asked for pods, what another source
 * knows of one (its network, but not its labels) decides nothing.
 */
export function confirmation(store: PodStore, sources: readonly Source[]) {
  const kubernetes = sources.find((source) => source instanceof KubernetesSource);
  return async (uid: PodUid, signal: AbortSignal): Promise<string | undefined> => {
    const isConfirmed = () =>
      store.get(uid)?.sources.some((name) => name === 'kubernetes' || name === 'static');
    const pod = store.get(uid);
    if (kubernetes === undefined || pod === undefined || isConfirmed()) {
      return undefined;
    }
    try {
      await kubernetes.lookup(uid, pod.namespace, pod.name, signal);
    } catch (error) {
      return `NOT_SYNCED: ${error instanceof Error ? error.message : String(error)}`;
    }
    return isConfirmed() ? undefined : 'NOT_SYNCED: the API server has not told of this pod yet';
  };
}
