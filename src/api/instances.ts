/** The instances of this node: what the configuration says of each, and what there is of it. */

import type { Instance } from '../config/config.js';
import type { ProcessMessage } from '../supervise/state.js';
import type { InstanceMessage, InstancesMessage, ListenerMessage, WorkloadMessage } from './messages.js';

export type InstanceState = Omit<
  InstanceMessage,
  'name' | 'apps' | 'owner' | 'listeners' | 'pods' | 'memorySavedBytes' | 'process'
>;

/** How the list came about: src/agent/live-instances.ts; what there is of each: src/agent/instances.ts. */
export interface InstancesView {
  readonly current: readonly Instance[];
  servedBy(app: string): Instance | undefined;
  /** That and those that take certain ports. */
  allServing(app: string): readonly Instance[];
  status(): { readonly applied: number; readonly problem: string | undefined };
  /** Of each, by its name. */
  states(): Promise<ReadonlyMap<string, InstanceState>>;
}

export async function instancesOf(
  view: InstancesView,
  processes: readonly ProcessMessage[],
  listeners: readonly ListenerMessage[],
  workloads: readonly WorkloadMessage[],
): Promise<InstancesMessage> {
  const { applied, problem } = view.status();
  const states = await view.states();
  const served = workloads.filter(({ interception }) => interception.state !== 'NOT_ENROLLED');
  const instances = view.current.flatMap((instance): InstanceMessage[] => {
    const state = states.get(instance.name);
    const pods = served.filter(({ app }) => view.allServing(app).includes(instance));
    // One that was added meanwhile is told the next time.
    return state === undefined
      ? []
      : [
          {
            name: instance.name,
            apps: instance.apps ?? null,
            owner: instance.owner,
            listeners: listeners.filter((listener) => listener.instance === instance.name),
            pods: pods.map(({ namespace, podName, app, interception }) => ({
              namespace,
              podName,
              app,
              state: interception.state,
            })),
            ...state,
            process:
              instance.run === undefined
                ? null
                : (processes.find(({ name }) => name === instance.name) ?? notYet(instance.name)),
            memorySavedBytes:
              state.memoryBytes === null ? null : Math.max(0, pods.length - 1) * state.memoryBytes,
          },
        ];
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
