/** Refuses what the agent would, in the agent's words. */

import type { InterceptionDefaults } from '../pods/annotations.js';
import { foretold } from '../reconcile/foretold.js';
import type { AdmissionRequest } from './review.js';
import { type AdmittedPod, writtenPod } from './written-pod.js';

/** Nobody is refused for what a namespace or a node says: those can be set right without the pod. */
const OWN_WORDS_ONLY: InterceptionDefaults = { enrol: 'labelled', failure: 'closed', other: 'pass' };

export type IsServed = (app: string | undefined) => boolean;

/**
 * The reason to refuse; undefined: there is none. A pod that was wrong before may be changed in other ways, and one that
 * is going must be let go, or its finalizers could never be taken off.
 */
export function refusalOf(
  { object, oldObject }: Pick<AdmissionRequest, 'object' | 'oldObject'>,
  isServed: IsServed,
): string | undefined {
  const say = (pod: AdmittedPod) => foretold(writtenPod(pod), OWN_WORDS_ONLY, isServed);
  const reason = say(object);
  const isGoing = typeof object.metadata.deletionTimestamp === 'string';
  const wasThere = oldObject !== undefined && oldObject !== null && say(oldObject) === reason;
  return isGoing || wasThere ? undefined : reason;
}
