/** A pod as people name it: by its UID, its namespace and name, or its name alone. */

import { IdentityError } from '../identity/errors.js';
import type { Pod } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import { podUidOf } from './checks.js';

/** Throws IdentityError, which names the key `pod`. `synced`: whether every source has delivered. */
export function podNamed(
  given: unknown,
  { store, synced }: { readonly store: Pick<PodStore, 'list' | 'get'>; readonly synced: () => boolean },
): Pod {
  const text = podUidOf(given, 'pod');
  const known = store.get(text);
  if (known !== undefined) {
    return known;
  }
  const [namespace, name] = text.includes('/') ? text.split('/', 2) : [undefined, text];
  const found = store
    .list()
    .filter((pod) => pod.name === name && (namespace === undefined || pod.namespace === namespace));
  const [first, ...others] = found;
  if (first === undefined) {
    if (!synced()) {
      throw new IdentityError('NOT_SYNCED', 'pod: not every source has delivered its pods yet');
    }
    throw new IdentityError('WORKLOAD_NOT_FOUND', `pod: no pod of this node is ${text}`);
  }
  if (others.length > 0) {
    const places = found.map((pod) => `${pod.namespace}/${pod.name} (${pod.uid})`).join(', ');
    throw new IdentityError('AMBIGUOUS', `pod: more than one is ${text}: ${places}`);
  }
  return first;
}
