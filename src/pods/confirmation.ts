/**
 * Whose word a pod needs. Where the API server is asked for pods, what another source knows of one (its network, but
 * neither its labels nor its service account) decides nothing; a pod that the static file names needs no other word.
 */

import type { Pod, PodUid, SourceName } from './pod.js';
import type { PodStore } from './pod-store.js';
import type { PodSource } from './source.js';

const AUTHORITIES: ReadonlySet<SourceName> = new Set(['kubernetes']);

/** Of these sources, those without whose word nothing is decided. */
export function authoritiesAmong<S extends Pick<PodSource, 'name'>>(sources: readonly S[]): S[] {
  return sources.filter(({ name }) => AUTHORITIES.has(name));
}

/** Whether the pod is known by whoever has the last word on it. */
export function isConfirmed(pod: Pod, authorities: readonly Pick<PodSource, 'name'>[]): boolean {
  return (
    authorities.length === 0 ||
    pod.sources.includes('static') ||
    authorities.some(({ name }) => pod.sources.includes(name))
  );
}

/** Whether the pod has an identity that may be told: the last word has been said, and names a service account. */
export function isNamed(pod: Pod, authorities: readonly Pick<PodSource, 'name'>[]): boolean {
  return isConfirmed(pod, authorities) && pod.serviceAccount !== '';
}

/**
 * Sources that drop a pod only where somebody said so: who edits the file, the runtime by DEL. From the others a pod is
 * missing also where one answer was incomplete.
 */
const EXPLICIT: ReadonlySet<SourceName> = new Set(['static', 'cni']);

/** Whether a pod that was like this when its last source dropped it was dropped on purpose. */
export function isDroppedExplicitly(last: Pick<Pod, 'sources'>): boolean {
  return last.sources.every((name) => EXPLICIT.has(name));
}

const NOT_TOLD = 'NOT_SYNCED: the API server has not told of this pod yet';

/**
 * Asks the authorities for a pod that none of them has told of yet: by namespace and name alone where nobody knows its
 * UID, which its source is told then. The function returned gives the reason why it is not known what the pod is,
 * undefined where it is; it never rejects.
 */
export function confirmation(
  store: Pick<PodStore, 'get'>,
  sources: readonly PodSource[],
): (uid: PodUid, signal: AbortSignal) => Promise<string | undefined> {
  const authorities = authoritiesAmong(sources);
  return async (uid, signal) => {
    const pod = store.get(uid);
    if (pod === undefined || isConfirmed(pod, authorities)) {
      return undefined;
    }
    const nameless = sources.find((source) => source.awaitsUid?.(uid) === true);
    const asked = nameless === undefined ? uid : undefined;
    let found: PodUid | undefined;
    try {
      const pods = await Promise.all(
        authorities.map((source) => source.lookup?.(asked, pod.namespace, pod.name, signal)),
      );
      found = pods.find((one) => one !== undefined)?.uid;
    } catch (error) {
      // Whoever asked has no more time: the call that was under way then says nothing of the API server.
      const why = error instanceof Error ? error.message : String(error);
      return signal.aborted ? NOT_TOLD : `NOT_SYNCED: ${why}`;
    }
    if (nameless !== undefined && found !== undefined) {
      nameless.adopt?.(uid, found);
    }
    const now = store.get(found ?? uid);
    return now !== undefined && isConfirmed(now, authorities) ? undefined : NOT_TOLD;
  };
}
