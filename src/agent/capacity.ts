/** What the pods say that the node's proxy needs, and who sees to it, put together for `agent.ts`. */

import type { Logger } from 'pino';
import { steadyUnixMs } from '../base/clock.js';
import { Capacity } from '../capacity/capacity.js';
import { processesOf } from '../capacity/container-processes.js';
import { Resizer } from '../capacity/resizer.js';
import { TargetApi } from '../capacity/target.js';
import { Duty } from '../cluster/duty.js';
import type { Config } from '../config/config.js';
import { memoryOf } from '../instances/memory.js';
import type { PodStore } from '../pods/pod-store.js';
import { KubernetesClient } from '../pods/sources/kubernetes-client.js';
import { openApiServerAccess } from '../pods/sources/kubernetes-config.js';

const DEADLINE_MS = 10_000;
/** A pod that a source names is to find its share there before it is ready. */
const LOOK_MS = 200;
const BACKOFF_MAX_MS = 10_000;

/** Looks at the target until `signal` aborts. Throws KubeconfigError. */
export async function openCapacity(parts: {
  readonly config: Config;
  readonly store: PodStore;
  readonly synced: () => boolean;
  readonly signal: AbortSignal;
  readonly log: Logger;
}): Promise<Capacity> {
  const { config, store, synced, signal, log } = parts;
  const { target } = config.capacity;
  const { kubernetes } = config.sources;
  if (target === undefined || kubernetes === undefined) {
    return new Capacity({ config, store });
  }
  const client = new KubernetesClient(await openApiServerAccess(kubernetes.kubeconfig), DEADLINE_MS);
  const resizer: Resizer = new Resizer({
    config: { ...config.capacity, target },
    api: new TargetApi(client, target, config.node),
    sum: () => (synced() ? capacity.total().sum : undefined),
    usedBytes: (containerId) => memoryOf(processesOf(containerId)),
    nowMs: steadyUnixMs,
    unixMs: Date.now,
    log,
  });
  const capacity: Capacity = new Capacity({ config, store, target: resizer });
  const step = (abort: AbortSignal) => resizer.step(abort);
  const duty = new Duty({ what: 'capacity', step, log, everyMs: LOOK_MS, backoffMaxMs: BACKOFF_MAX_MS });
  void duty.run(signal);
  return capacity;
}
