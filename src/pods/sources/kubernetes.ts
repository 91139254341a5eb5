/** Pods of this node from the Kubernetes API server, with what their namespaces add. */

import type { Clock } from '../../base/clock.js';
import type { Log } from '../../base/log.js';
import type { Pod, PodUid } from '../pod.js';
import type { PodStore } from '../pod-store.js';
import type { HandlerTable } from '../runtime-kind.js';
import type { PodSource, SourceStats } from '../source.js';
import { KubernetesClient, KubernetesError } from './kubernetes-client.js';
import { openApiServerAccess } from './kubernetes-config.js';
import type { KubernetesMemory } from './kubernetes-memory.js';
import {
  type ApiNamespace,
  type ApiPod,
  escapeSelector,
  inherit,
  readNamespace,
  readPod,
} from './kubernetes-objects.js';
import { Reflector, type ReflectorTimes } from './kubernetes-reflector.js';

export interface KubernetesSourceOptions extends Partial<ReflectorTimes> {
  /** Absolute path; undefined: in-cluster. */
  readonly kubeconfig?: string | undefined;
  /** As in a pod's `spec.nodeName`. */
  readonly node: string;
  /** What the configuration adds to the built-in handler names. */
  readonly handlers: HandlerTable;
  readonly store: PodStore;
  /** What is known from before until the API server answers; undefined: nothing is. */
  readonly memory?: Pick<KubernetesMemory, 'recall' | 'note' | 'close'>;
  readonly log: Log;
  /** Time limit of one call. Default 10 000. */
  readonly deadlineMs?: number;
  /** Unix time, milliseconds. */
  readonly nowMs?: Clock;
}

const DEFAULT_TIMES: ReflectorTimes = {
  stallMs: 90_000,
  relistMs: 300_000,
  backoffFirstMs: 250,
  backoffMaxMs: 10_000,
};

type State =
  /** Not started, or without an access that can work. */
  | { readonly kind: 'idle' }
  /** Until `signal` aborts, and whether or not the API server answers. */
  | {
      readonly kind: 'following';
      readonly pods: Reflector<ApiPod>;
      readonly namespaces: Reflector<ApiNamespace>;
      readonly signal: AbortSignal;
    };

/** A pod as it was put together last: the same object again while nothing of it changed. */
interface Made {
  readonly from: ApiPod;
  readonly namespace: ApiNamespace;
  readonly pod: Pod;
}

export class KubernetesSource implements PodSource {
  readonly name = 'kubernetes';
  readonly #options: KubernetesSourceOptions;
  #state: State = { kind: 'idle' };
  #made: ReadonlyMap<ApiPod, Made> = new Map();
  /** By name, those that the pods above have. */
  #namespacesInUse: ReadonlyMap<string, ApiNamespace> = new Map();
  #contested: ReadonlySet<PodUid> = new Set();

  constructor(options: KubernetesSourceOptions) {
    this.#options = options;
  }

  get lastError(): string | undefined {
    return this.#reflectors().find(({ lastError }) => lastError !== undefined)?.lastError;
  }

  get stats(): SourceStats {
    const stats = this.#reflectors().map((reflector) => reflector.stats);
    const times = stats.map(({ lastEventAtMs }) => lastEventAtMs).filter((time) => time !== undefined);
    const watchRestarts: Record<string, number> = {};
    for (const [reason, count] of stats.flatMap((one) => Object.entries(one.watchRestarts))) {
      watchRestarts[reason] = (watchRestarts[reason] ?? 0) + count;
    }
    return {
      // Of the two watches the one that has been silent for longer.
      lastEventAtMs: times.length < 2 ? undefined : Math.min(...times),
      relists: stats.reduce((sum, { relists }) => sum + relists, 0),
      watchRestarts,
    };
  }

  /** What the namespaces of the cluster give to their pods, by name; undefined before they were listed. */
  get namespaces(): ReadonlyMap<string, ApiNamespace['inherited']> | undefined {
    const state = this.#state;
    return state.kind === 'idle' || !state.namespaces.synced
      ? undefined
      : new Map(state.namespaces.values().map(({ name, inherited }) => [name, inherited]));
  }

  /** Rejects with KubeconfigError where the access is not configured in a way that can work. */
  async start(signal: AbortSignal): Promise<void> {
    const { kubeconfig, node, handlers, log, deadlineMs, memory, nowMs = Date.now } = this.#options;
    if (memory !== undefined) {
      this.#options.store.rememberSource(this.name, memory.recall());
      signal.addEventListener('abort', () => memory.close(), { once: true });
    }
    const access = await openApiServerAccess(kubeconfig);
    const client = new KubernetesClient(access, deadlineMs ?? 10_000);
    const times = { ...DEFAULT_TIMES, ...definedOnly(this.#options) };
    const shared = { client, times, log, nowMs, onChange: () => this.#publish() };
    const pods = new Reflector({
      ...shared,
      resource: 'pods',
      query: { fieldSelector: `spec.nodeName=${escapeSelector(node)}` },
      read: (object) => readPod(object, handlers),
    });
    const namespaces = new Reflector({ ...shared, resource: 'namespaces', query: {}, read: readNamespace });
    this.#state = { kind: 'following', pods, namespaces, signal };
    if (signal.aborted) {
      return;
    }
    log.info({ server: access.server, node }, 'kubernetes: following pods of this node, and namespaces');
    // The first failure ends the wait, not the following: see `lastError`.
    await Promise.all([pods.start(signal), namespaces.start(signal)]).catch(() => undefined);
  }

  /**
   * See PodSource. Throws KubernetesError. Before the first list the pod is returned, and published with the list:
   * a snapshot of one pod would take all others for gone.
   */
  async lookup(
    uid: PodUid | undefined,
    namespace: string,
    name: string,
    signal: AbortSignal,
  ): Promise<Pod | undefined> {
    const state = this.#state;
    if (state.kind === 'idle') {
      throw new KubernetesError('UNAVAILABLE', 'the Kubernetes source has not started yet');
    }
    const [ns, pod] = [namespace, name].map(encodeURIComponent);
    const scope = AbortSignal.any([signal, state.signal]);
    const found = await state.pods.lookup(
      `/api/v1/namespaces/${ns}/pods/${pod}`,
      `get pods ${namespace}/${name}`,
      scope,
    );
    if (found === undefined || !this.#isOurs(found)) {
      return undefined;
    }
    // Of a StatefulSet's pod that is replaced the old one has the name until it has gone.
    if (uid === undefined ? found.going : found.pod.uid !== uid) {
      return undefined;
    }
    const place =
      state.namespaces.values().find((known) => known.name === found.pod.namespace) ??
      (await state.namespaces.lookup(`/api/v1/namespaces/${ns}`, `get namespaces ${namespace}`, scope));
    return place === undefined || this.#contested.has(found.pod.uid)
      ? undefined
      : this.#make(found, place).pod;
  }

  #reflectors(): readonly Pick<Reflector<unknown>, 'lastError' | 'stats'>[] {
    return this.#state.kind === 'idle' ? [] : [this.#state.pods, this.#state.namespaces];
  }

  /** The pods as of now, into the store: each with its namespace, or not at all. */
  #publish(): void {
    const state = this.#state;
    if (state.kind === 'idle' || state.signal.aborted || !state.pods.synced || !state.namespaces.synced) {
      return;
    }
    const namespaces = new Map(state.namespaces.values().map((value) => [value.name, value]));
    const made = state.pods.values().flatMap((value) => {
      // A namespace goes last of all: where the news of that came first, its last form still holds for its pods.
      const namespace = namespaces.get(value.pod.namespace) ?? this.#namespacesInUse.get(value.pod.namespace);
      return namespace === undefined || !this.#isOurs(value) ? [] : [this.#make(value, namespace)];
    });
    this.#made = new Map(made.map((one) => [one.from, one]));
    this.#namespacesInUse = new Map(made.map(({ namespace }) => [namespace.name, namespace]));
    const pods = this.#uncontested(made);
    this.#options.store.replaceSource(this.name, pods);
    this.#options.memory?.note(pods);
  }

  #isOurs({ nodeName, over }: ApiPod): boolean {
    return nodeName === this.#options.node && !over;
  }

  #make(from: ApiPod, namespace: ApiNamespace): Made {
    const before = this.#made.get(from);
    return before?.namespace === namespace ? before : { from, namespace, pod: inherit(from.pod, namespace) };
  }

  /**
   * A pod can claim by annotation to mirror a static pod, and anybody who may create pods can write it. The pod whose
   * own UID it is comes first; of several claims none is believed.
   */
  #uncontested(made: readonly Made[]): Pod[] {
    const own = new Set(made.filter(({ from }) => !from.mirror).map(({ pod }) => pod.uid));
    const claims = new Map<PodUid, Made[]>();
    for (const one of made.filter(({ from }) => from.mirror)) {
      claims.set(one.pod.uid, [...(claims.get(one.pod.uid) ?? []), one]);
    }
    const contested = [...claims].filter(([uid, claimants]) => claimants.length > 1 || own.has(uid));
    for (const [uid, claimants] of contested.filter(([uid]) => !this.#contested.has(uid))) {
      const pods = claimants.map(({ pod }) => `${pod.namespace}/${pod.name}`);
      this.#options.log.error(
        { uid, pods },
        'kubernetes: mirror pods that claim the UID of another are left out',
      );
    }
    this.#contested = new Set(contested.map(([uid]) => uid));
    return made
      .filter(({ from, pod }) => !from.mirror || !this.#contested.has(pod.uid))
      .map(({ pod }) => pod);
  }
}

function definedOnly({
  stallMs,
  relistMs,
  backoffFirstMs,
  backoffMaxMs,
}: Partial<ReflectorTimes>): Partial<ReflectorTimes> {
  return Object.fromEntries(
    Object.entries({ stallMs, relistMs, backoffFirstMs, backoffMaxMs }).filter(
      ([, value]) => value !== undefined,
    ),
  );
}
