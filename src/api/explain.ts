/** What is asked of `explain`, checked key by key. */

import type { Pod } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { SupposedFlow } from '../reconcile/explanation.js';
import { checkedKeys, invalid, refused, socketAddress } from './checks.js';

/** `namespace/name`. */
export const MAX_POD = 253 * 2 + 1;

export interface ExplainQuestion {
  /** As it was given: a UID, `namespace/name`, or a name that one pod alone has. */
  readonly pod: string;
  readonly flow: SupposedFlow;
}

/** Throws IdentityError KEY_INVALID, which names the parameter. */
export function parseExplain(given: unknown): ExplainQuestion {
  const { pod, src, dst } = checkedKeys(given, ['pod', 'src', 'dst'], '');
  if (typeof pod !== 'string' || pod === '' || pod.length > MAX_POD) {
    throw invalid('pod', 'a UID, namespace/name or name of a pod', pod);
  }
  if ((src === undefined) === (dst === undefined)) {
    throw refused(
      'dst',
      'exactly one of dst (what the pod dials) and src (who dials it, at the pod’s port) is expected',
    );
  }
  const direction = dst === undefined ? 'inbound' : 'outbound';
  const far = dst === undefined ? socketAddress(src, 'src') : socketAddress(dst, 'dst');
  return { pod, flow: { direction, ...far } };
}

/** Undefined where there is none. Throws IdentityError KEY_INVALID where several are meant. */
export function podNamed(text: string, store: Pick<PodStore, 'list'>): Pod | undefined {
  const pods = store.list();
  const isMeant = ({ uid, namespace, name }: Pod) =>
    uid === text || `${namespace}/${name}` === text || (!text.includes('/') && name === text);
  const found = pods.find(({ uid }) => uid === text);
  const meant = found === undefined ? pods.filter(isMeant) : [found];
  if (meant.length > 1) {
    const names = meant.map(({ namespace, name, uid }) => `${namespace}/${name} (${uid})`).join(', ');
    throw refused('pod', `several are meant: ${names}`);
  }
  return meant[0];
}
