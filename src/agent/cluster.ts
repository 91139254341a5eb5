/** What the agent tells the API server, made for `agent.ts`. */

import { join } from 'node:path';
import type { Logger } from 'pino';
import { steadyUnixMs } from '../base/clock.js';
import { Duty } from '../cluster/duty.js';
import { EventMemory } from '../cluster/event-memory.js';
import { NodeAnnotation } from '../cluster/node-annotation.js';
import { OwnNode } from '../cluster/own-node.js';
import { PodEvents } from '../cluster/pod-events.js';
import { StartupTaint } from '../cluster/startup-taint.js';
import type { Config } from '../config/config.js';
import type { PodStore } from '../pods/pod-store.js';
import { KubernetesClient } from '../pods/sources/kubernetes-client.js';
import { openApiServerAccess } from '../pods/sources/kubernetes-config.js';
import type { EndpointStatus } from '../reconcile/status.js';

const DEADLINE_MS = 10_000;

export interface ClusterParts {
  readonly config: Config;
  readonly runDir: string;
  readonly store: PodStore;
  readonly statuses: () => readonly EndpointStatus[];
  readonly blockers: () => readonly string[];
  readonly version: string;
  readonly log: Logger;
}

export class Cluster {
  readonly #parts: ClusterParts;
  #duties: readonly Duty[] = [];

  constructor(parts: ClusterParts) {
    this.#parts = parts;
  }

  /** What fails; undefined where nothing does. */
  get problem(): string | undefined {
    const problems = this.#duties.flatMap(({ problem }) => problem ?? []);
    return problems.length === 0 ? undefined : problems.join('; ');
  }

  /** Does nothing without the `kubernetes` source; goes on until `signal` aborts. Throws KubeconfigError. */
  async start(signal: AbortSignal): Promise<void> {
    const { config, runDir, store, statuses, blockers, version } = this.#parts;
    const { kubernetes } = config.sources;
    if (kubernetes === undefined) {
      return;
    }
    const log = this.#parts.log.child({ part: 'kubernetes' });
    const client = new KubernetesClient(await openApiServerAccess(kubernetes.kubeconfig), DEADLINE_MS);
    const node = new OwnNode(client, config.node);
    const shared = {
      client,
      node,
      store,
      statuses,
      version,
      ready: () => blockers().length === 0,
      nowMs: steadyUnixMs,
      log,
    };
    const duties: Duty[] = [];
    if (kubernetes.removeStartupTaint) {
      const taint = new StartupTaint(shared);
      duties.push(new Duty({ what: 'the startup taint', step: (abort) => taint.step(abort), log }));
    }
    if (kubernetes.events) {
      const memory = new EventMemory(join(runDir, 'events.json'), log);
      const events = new PodEvents({ ...shared, node: config.node, memory, unixMs: Date.now });
      duties.push(new Duty({ what: 'looking at pods', step: async () => events.look(), log }));
      duties.push(new Duty({ what: 'events on pods', step: (abort) => events.send(abort), log }));
    }
    if (kubernetes.annotateNode) {
      const annotation = new NodeAnnotation(shared);
      duties.push(new Duty({ what: "the node's annotation", step: (abort) => annotation.step(abort), log }));
    }
    this.#duties = duties;
    for (const duty of duties) {
      void duty.run(signal);
    }
  }
}
