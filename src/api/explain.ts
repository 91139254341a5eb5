/** What is asked of `explain`, checked key by key. */

import type { SupposedFlow } from '../reconcile/explanation.js';
import { checkedKeys, podUidOf, protocolOf, refused, socketAddress } from './checks.js';

export interface ExplainQuestion {
  /** As it was given: a UID, `namespace/name`, or a name that one pod alone has. */
  readonly pod: string;
  readonly flow: SupposedFlow;
}

/** Throws IdentityError KEY_INVALID, which names the parameter. */
export function parseExplain(given: unknown): ExplainQuestion {
  const { pod, src, dst, proto } = checkedKeys(given, ['pod', 'src', 'dst', 'proto'], '');
  const named = podUidOf(pod, 'pod');
  if ((src === undefined) === (dst === undefined)) {
    throw refused(
      'dst',
      'exactly one of dst (what the pod dials) and src (who dials it, at the pod’s port) is expected',
    );
  }
  const direction = dst === undefined ? 'inbound' : 'outbound';
  const far = dst === undefined ? socketAddress(src, 'src') : socketAddress(dst, 'dst');
  return { pod: named, flow: { protocol: protocolOf(proto ?? 'tcp', 'proto'), direction, ...far } };
}
