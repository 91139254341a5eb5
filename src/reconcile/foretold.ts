/** Reasons that are known from a pod's own object alone, before it has an address or a node: the agent's words. */

import { type InterceptionDefaults, interceptionOf } from '../pods/annotations.js';
import { appOf, type Pod } from '../pods/pod.js';
import { refuseHostNetwork } from '../runtimes/locate.js';
import type { Refusal } from '../runtimes/location.js';

export type WrittenPod = Pick<Pod, 'labels' | 'annotations' | 'owner' | 'hostNetwork'>;

export function refusalText({ code, reason }: Pick<Refusal, 'code' | 'reason'>): string {
  return `${code}: ${reason}`;
}

export function noInstanceText(app: string | undefined): string {
  return `NO_INSTANCE: no instance is configured for app ${app ?? '(none)'}`;
}

/** Undefined where there is none. */
export function problemsText(problems: readonly string[]): string | undefined {
  return problems.length === 0 ? undefined : problems.join('; ');
}

/** What the agent will say of the pod as it is written; undefined: nothing that can be known yet. */
export function foretold(
  pod: WrittenPod,
  defaults: InterceptionDefaults,
  isServed: (app: string | undefined) => boolean,
): string | undefined {
  const { enrolled, problems } = interceptionOf(pod, defaults);
  if (enrolled) {
    const refused = refuseHostNetwork(pod);
    if (refused !== undefined) {
      return refusalText(refused);
    }
    const app = appOf(pod);
    if (!isServed(app)) {
      return noInstanceText(app);
    }
  }
  return problemsText(problems);
}
