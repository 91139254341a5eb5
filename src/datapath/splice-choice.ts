/** Whether a pod's connections are spliced, and why not: what node, pod, runtime and kernel have to say to it. */

import type { SpliceChoice } from '../pods/annotations.js';
import type { Pod } from '../pods/pod.js';

export interface SpliceGround {
  readonly mode: 'disabled' | 'auto' | 'enabled';
  /** What this kernel gets wrong, in words; empty where it gets all right. */
  readonly flaws: readonly string[];
  /** Why nothing is spliced on this node, whoever asks; undefined: it can be. */
  readonly problem: string | undefined;
}

export interface SpliceStatus {
  readonly used: boolean;
  /** Why not; empty where it is. */
  readonly reason: string;
}

const USED: SpliceStatus = { used: true, reason: '' };

/** `asked`: by the pod's annotation. The stricter of node and pod counts; only a pod answers for its kernel's flaws. */
export function spliceStatus(
  pod: Pick<Pod, 'runtime' | 'netns'>,
  isIntercepted: boolean,
  asked: SpliceChoice | undefined,
  { mode, flaws, problem }: SpliceGround,
): SpliceStatus {
  if (mode === 'disabled') {
    return not('the node has it disabled');
  }
  if (asked === 'disabled') {
    return not('the pod has it disabled');
  }
  if (pod.runtime !== 'runc') {
    return not(`the node's kernel does not have the sockets of ${pod.runtime}`);
  }
  if (!isIntercepted) {
    return not('the pod is not intercepted');
  }
  if (problem !== undefined) {
    return not(problem);
  }
  if (mode === 'auto' && asked === undefined && flaws.length > 0) {
    return not('this kernel does not do all of it right, and the pod does not ask for it');
  }
  return pod.netns === undefined ? not('no source tells its network namespace') : USED;
}

function not(reason: string): SpliceStatus {
  return { used: false, reason };
}
