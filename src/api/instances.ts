/** The instances of this node: what the configuration says of each, and what there is of it. */

import type { Instance } from '../config/config.js';
import type { ProcessMessage } from '../supervise/state.js';
import type { InstanceMessage, InstancesMessage, ListenerMessage, WorkloadMessage } from './messages.js';

/** How the list came about: src/agent/live-instances.ts. */
export interface InstancesView {
  readonly current: readonly Instance[];
  servedBy(app: string): Instance | undefined;
  status(): { readonly applied: number; readonly problem: string | undefined };
}

export function instancesOf(
  view: InstancesView,
  processes: readonly ProcessMessage[],
  listeners: readonly ListenerMessage[],
  workloads: readonly WorkloadMessage[],
): InstancesMessage {
  const { applied, problem } = view.status();
  const served = workloads.filter(({ interception }) => interception.state !== 'NOT_ENROLLED');
  const instances = view.current.map((instance): InstanceMessage => {
    const pods = served.filter(({ app }) => view.servedBy(app) === instance);
    return {
      name: instance.name,
      apps: instance.apps ?? null,
      owner: instance.owner,
      listeners: listeners.filter((listener) => listener.instance === instance.name),
      pods: pods.map(({ namespace, podName, app, interception: { state } }) => ({
        namespace,
        podName,
        app,
        state,
      })),
      process:
        instance.run === undefined
          ? null
          : (processes.find(({ name }) => name === instance.name) ?? notYet(instance.name)),
    };
  });
  return { changes: applied, problem: problem ?? '', instances };
}

/** Of one that its supervisor has not looked at. */
function notYet(name: string): ProcessMessage {
  return {
    name,
    state: 'STOPPED',
    pid: null,
    restarts: 0,
    startedAt: null,
    memoryBytes: 0,
    lastExit: '',
    problem: '',
  };
}
