/** The configured sources, made for `agent.ts`. */

import { join } from 'node:path';
import type { Logger } from 'pino';
import type { Config } from '../config/config.js';
import type { PodStore } from '../pods/pod-store.js';
import type { PodSource } from '../pods/source.js';
import { CniSource } from '../pods/sources/cni.js';
import { KubernetesSource } from '../pods/sources/kubernetes.js';
import { KubernetesMemory } from '../pods/sources/kubernetes-memory.js';
import { StaticSource } from '../pods/sources/static.js';

/** In the order of the configuration file; none of them has started. */
export async function openSources(
  config: Config,
  runDir: string,
  store: PodStore,
  log: Logger,
): Promise<PodSource[]> {
  const sources: PodSource[] = [];
  if (config.sources.static !== undefined) {
    sources.push(
      new StaticSource({ file: config.sources.static.file, store, log: log.child({ part: 'static' }) }),
    );
  }
  if (config.sources.cri !== undefined) {
    // Brings gRPC with it, which nothing else needs before somebody asks by it.
    const { CriSource } = await import('../pods/sources/cri.js');
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
