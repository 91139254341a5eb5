/** What to do about a pod that is not intercepted as it should be. */

import type { ToldState } from './pod-event.js';

/** By the code that a reason begins with. */
const BY_CODE: Readonly<Record<string, string>> = {
  NO_INSTANCE:
    'Add an instance for this app to the configuration of the agent, or one without apps, which serves all of them',
  HOST_NETWORK:
    "A pod on the host's network cannot be told apart from the node: take nodesentry.io/intercept away from it, or hostNetwork",
  UNSUPPORTED_INTERFACE: 'Give the pod a network whose interfaces are veth or tap; see docs/runtimes.md',
  NO_INTERFACE: 'See whether the CNI plugin of the node has given the pod an interface',
  NO_ADDRESS: 'See whether the CNI plugin of the node has given the pod an address',
};

export function adviceFor(state: ToldState, reason: string, node: string): string {
  if (state === 'INTERCEPTED') {
    return '';
  }
  const code = /^[A-Z_]+(?=:)/.exec(reason)?.[0] ?? '';
  const own = Object.hasOwn(BY_CODE, code) ? BY_CODE[code] : undefined;
  const what = own ?? `Run "nodesentry doctor" in the agent's container on node ${node}`;
  return state === 'REFUSED' ? `Its connections go past the proxy. ${what}` : what;
}
