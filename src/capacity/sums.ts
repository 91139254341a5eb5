/** What the node's proxy needs for the pods of this node: shared once per app, and so much per pod. */

import { type InterceptionDefaults, interceptionOf } from '../pods/annotations.js';
import { appOf, type Pod } from '../pods/pod.js';
import { largest, NOTHING, plus, type Resources } from '../pods/quantity.js';

export interface AppNeed {
  readonly namespace: string;
  /** Empty for a pod of no app, which counts by itself. */
  readonly app: string;
  readonly pods: number;
  readonly shared: Resources;
  /** Of all its pods together. */
  readonly perPod: Resources;
  readonly sum: Resources;
  /** Empty where nothing is wrong. */
  readonly problem: string;
}

export interface Need {
  readonly pods: number;
  readonly shared: Resources;
  readonly perPod: Resources;
  readonly sum: Resources;
}

/** Of the enrolled pods, by namespace and app: two namespaces' apps of one name are two. */
export function appNeeds(pods: readonly Pod[], defaults: InterceptionDefaults): readonly AppNeed[] {
  const apps = new Map<string, AppNeed>();
  for (const pod of pods) {
    const { enrolled, meshResources } = interceptionOf(pod, defaults);
    if (!enrolled || pod.hostNetwork) {
      continue;
    }
    const app = appOf(pod);
    const key = `${pod.namespace}/${app ?? `/${pod.uid}`}`;
    const before = apps.get(key);
    const { shared: said, pod: own } = meshResources ?? { shared: NOTHING, pod: NOTHING };
    const shared = largest(before?.shared ?? said, said);
    const perPod = plus(before?.perPod ?? NOTHING, own);
    const differs = before !== undefined && !(isSame(before.shared, said) && before.problem === '');
    apps.set(key, {
      namespace: pod.namespace,
      app: app ?? '',
      pods: (before?.pods ?? 0) + 1,
      shared,
      perPod,
      sum: plus(shared, perPod),
      problem: differs ? 'its pods differ in what they say of shared: the largest counts' : '',
    });
  }
  return [...apps].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, need]) => need);
}

export function needOf(apps: readonly AppNeed[]): Need {
  const shared = apps.map((app) => app.shared).reduce(plus, NOTHING);
  const perPod = apps.map((app) => app.perPod).reduce(plus, NOTHING);
  return {
    pods: apps.reduce((sum, { pods }) => sum + pods, 0),
    shared,
    perPod,
    sum: plus(shared, perPod),
  };
}

function isSame(a: Resources, b: Resources): boolean {
  return a.cpuMillis === b.cpuMillis && a.memoryBytes === b.memoryBytes;
}
