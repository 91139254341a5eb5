/** Instances that have a command: started by the agent itself, or by `nodesentry supervise` in another process. */

import type { Log } from '../base/log.js';
import { type Config, type Instance, instancesFor } from '../config/config.js';
import { interceptionOf } from '../pods/annotations.js';
import { appOf } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { Renewal } from '../supervise/instance-process.js';
import { type ProcessMessage, readMessages } from '../supervise/state.js';
import { instancesFolder, Supervisor } from '../supervise/supervisor.js';
import { takeLock } from './run-lock.js';

/** Who has the lock of the folder of instances: never two, who would start them twice. */
export const SUPERVISOR = 'a supervisor of instances';

export interface SupervisionOptions {
  readonly config: Pick<Config, 'interception' | 'supervision'>;
  readonly runDir: string;
  readonly instances: () => readonly Instance[];
  readonly store: Pick<PodStore, 'list' | 'revision' | 'subscribe'>;
  /** Whether the store knows all pods. */
  readonly synced: () => boolean;
  /** Called when listeners were opened. */
  readonly listening: () => void;
  readonly log: Log;
}

export interface Supervision {
  /** Walks /proc. */
  messages(): ProcessMessage[];
  /** Starts what a list asks for before it holds. */
  prepare(instances: readonly Instance[]): void;
  /** Another process in the place of the present one: see InstanceProcess.renew. */
  renew(name: string, deadlineMs: number): string | undefined;
  renewalOf(name: string): Renewal | undefined;
  /** The processes go on. */
  close(): void;
}

/** Throws AlreadyRunningError while another process supervises, and RunDirError. */
export function startSupervision({
  config,
  runDir,
  instances,
  store,
  synced,
  listening,
  log,
}: SupervisionOptions): Supervision {
  const folder = instancesFolder(runDir);
  if (config.supervision.by === 'separate') {
    return {
      messages: () => readMessages(folder),
      prepare: () => undefined,
      renew: () => 'it is supervised by another process: change its command there',
      renewalOf: () => undefined,
      close: () => undefined,
    };
  }
  const lock = takeLock(folder, SUPERVISOR);
  const served = servedInstances(store, config);
  const supervisor = new Supervisor({
    folder,
    instances,
    wanted: (list) => (synced() ? served(list) : undefined),
    nowMs: () => performance.now(),
    listening,
    log,
  });
  // A pod's instance listens before the pod is sent there.
  const unsubscribe = store.subscribe(() => supervisor.look());
  supervisor.start();
  return {
    messages: () => supervisor.messages(),
    prepare: (list) => supervisor.look(list),
    renew: (name, deadlineMs) => supervisor.renew(name, deadlineMs),
    renewalOf: (name) => supervisor.renewalOf(name),
    close: () => {
      unsubscribe();
      supervisor.close();
      lock.release();
    },
  };
}

/** Names of those whose apps have a pod that is to be intercepted; found anew only where pods or the list have changed. */
function servedInstances(
  store: Pick<PodStore, 'list' | 'revision'>,
  { interception }: Pick<Config, 'interception'>,
): (instances: readonly Instance[]) => ReadonlySet<string> {
  let known: { revision: number; instances: readonly Instance[]; names: ReadonlySet<string> } | undefined;
  return (instances) => {
    const { revision } = store;
    if (known?.revision !== revision || known.instances !== instances) {
      const names = store
        .list()
        .filter((pod) => !pod.hostNetwork && interceptionOf(pod, interception).enrolled)
        .flatMap((pod) => instancesFor({ instances }, appOf(pod)))
        .map(({ name }) => name);
      known = { revision, instances, names: new Set(names) };
    }
    return known.names;
  };
}
