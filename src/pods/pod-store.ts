/** The one truth about the pods of this node: what every source says, joined by pod UID. */

import { randomUUID } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import type { Clock } from '../base/clock.js';
import { type GonePod, GonePods } from './gone-pods.js';
import { joinPods } from './join.js';
import type { Pod, PodUid, SourceName } from './pod.js';

export interface Revision {
  readonly epoch: string;
  readonly revision: number;
}

export type PodChange = { readonly kind: 'upsert' | 'remove'; readonly pod: Pod };

/** What one source tells. `before`: told before this start of the agent, and not yet again. */
type Told =
  | { readonly kind: 'before'; readonly pods: ReadonlyMap<PodUid, Pod> }
  | { readonly kind: 'now'; readonly pods: Map<PodUid, Pod> };

export class PodStore {
  /** Random per store, that is per start of the agent. */
  readonly epoch: string;
  readonly #told = new Map<SourceName, Told>();
  readonly #pods = new Map<PodUid, Pod>();
  readonly #byIp = new Map<string, Pod[]>();
  readonly #gone: GonePods;
  readonly #criServiceAccount: string | undefined;
  readonly #listeners = new Set<(changes: readonly PodChange[]) => void>();
  #revision = 0;

  /**
   * `nowMs` is the clock that pods which went are forgotten by, after `rememberMs`; `criServiceAccount` the account of pods
   * whose own no source knows, where the CRI tells of them. Default: such a pod has none.
   */
  constructor(
    options: {
      nowMs?: Clock;
      rememberMs?: number;
      epoch?: string;
      criServiceAccount?: string | undefined;
    } = {},
  ) {
    this.#criServiceAccount = options.criServiceAccount;
    this.#gone = new GonePods(options.nowMs ?? Date.now, options.rememberMs);
    this.epoch = options.epoch ?? randomUUID();
  }

  get revision(): number {
    return this.#revision;
  }

  /**
   * The whole of what one source knows now. The revision grows by one if that makes any difference, whatever the
   * number of pods. RangeError where one UID stands twice.
   */
  replaceSource(source: SourceName, pods: readonly Pod[]): void {
    const next = new Map(pods.map((pod) => [pod.uid, pod]));
    if (next.size !== pods.length) {
      throw new RangeError(`source ${source} lists one pod UID twice`);
    }
    const before = this.#told.get(source)?.pods ?? new Map<PodUid, Pod>();
    // A source hands the same object over again where nothing has changed: most pods, most of the time.
    const uids = [...new Set([...before.keys(), ...next.keys()])].filter(
      (uid) => before.get(uid) !== next.get(uid),
    );
    this.#tell(source, next);
    this.#publish(uids);
  }

  /**
   * What a source told before the agent was started anew; nothing where it has told of pods since. Believed of a pod
   * that another source names now, and only until this source delivers. It does not count as synced by this, and no
   * address is taken from it: a sandbox that was made anew has another, and the runtime knows which. RangeError where
   * one UID stands twice.
   */
  rememberSource(source: SourceName, pods: readonly Pod[]): void {
    const remembered = new Map(pods.map((pod) => [pod.uid, Object.freeze({ ...pod, ips: [] })]));
    if (remembered.size !== pods.length) {
      throw new RangeError(`source ${source} remembers one pod UID twice`);
    }
    const before = this.#told.get(source);
    if (before?.kind === 'now') {
      return;
    }
    this.#told.set(source, { kind: 'before', pods: remembered });
    this.#publish([...new Set([...(before?.pods.keys() ?? []), ...remembered.keys()])]);
  }

  /** What has changed at one source that has delivered its whole before, or delivers it bit by bit. */
  updateSource(source: SourceName, changes: { upsert?: readonly Pod[]; remove?: readonly PodUid[] }): void {
    const { upsert = [], remove = [] } = changes;
    const told = this.#told.get(source);
    const pods = told?.kind === 'now' ? told.pods : new Map<PodUid, Pod>();
    const before = told?.kind === 'before' ? told.pods.keys() : [];
    for (const pod of upsert) {
      pods.set(pod.uid, pod);
    }
    for (const uid of remove) {
      pods.delete(uid);
    }
    this.#tell(source, pods);
    this.#publish([...new Set([...upsert.map((pod) => pod.uid), ...remove, ...before])]);
  }

  /** In the order in which sources first told something themselves. */
  #tell(source: SourceName, pods: Map<PodUid, Pod>): void {
    if (this.#told.get(source)?.kind === 'before') {
      this.#told.delete(source);
    }
    this.#told.set(source, { kind: 'now', pods });
  }

  #publish(uids: readonly PodUid[]): void {
    const changes = uids.flatMap((uid) => this.#rejoin(uid) ?? []);
    this.#gone.forgetOld();
    if (changes.length === 0) {
      return;
    }
    this.#revision += 1;
    for (const listener of [...this.#listeners]) {
      listener(changes);
    }
  }

  /** Sources that have delivered a snapshot. */
  syncedSources(): ReadonlySet<SourceName> {
    return new Set([...this.#told].filter(([, { kind }]) => kind === 'now').map(([source]) => source));
  }

  get(uid: PodUid): Pod | undefined {
    return this.#pods.get(uid);
  }

  list(): readonly Pod[] {
    return [...this.#pods.values()];
  }

  /** Every live pod that claims the address (canonical text); never a pod on the host's network. */
  byIp(ip: string): readonly Pod[] {
    return [...(this.#byIp.get(ip) ?? [])];
  }

  /** A pod that went, is remembered and did not come back. */
  removed(uid: PodUid): GonePod | undefined {
    return this.#gone.removed(uid);
  }

  /** A live pod as it was before one of its sources dropped it, while that is remembered. */
  departed(uid: PodUid): GonePod | undefined {
    return this.#gone.departed(uid);
  }

  /** Called once per revision, in order. The function returned ends it. */
  subscribe(listener: (changes: readonly PodChange[]) => void): () => void {
    const own = (changes: readonly PodChange[]): void => listener(changes);
    this.#listeners.add(own);
    return () => {
      this.#listeners.delete(own);
    };
  }

  #rejoin(uid: PodUid): PodChange | undefined {
    const before = this.#pods.get(uid);
    const after = joinPods(this.#saidOf(uid), this.#criServiceAccount);
    if (isDeepStrictEqual(before, after)) {
      return undefined;
    }
    this.#gone.note(uid, before, after);
    if (before !== undefined) {
      this.#unindex(before);
      this.#pods.delete(uid);
    }
    if (after !== undefined) {
      this.#index(after);
      this.#pods.set(uid, after);
      return { kind: 'upsert', pod: after };
    }
    return before === undefined ? undefined : { kind: 'remove', pod: before };
  }

  /** What was only told before this start names no pod by itself. */
  #saidOf(uid: PodUid): ReadonlyMap<SourceName, Pod> {
    const told = [...this.#told];
    const isLive = told.some(([, { kind, pods }]) => kind === 'now' && pods.has(uid));
    return new Map(
      told.flatMap(([source, { pods }]): [SourceName, Pod][] => {
        const pod = isLive ? pods.get(uid) : undefined;
        return pod === undefined ? [] : [[source, pod]];
      }),
    );
  }

  #index(pod: Pod): void {
    for (const ip of pod.hostNetwork ? [] : pod.ips) {
      this.#byIp.set(ip, [...(this.#byIp.get(ip) ?? []), pod]);
    }
  }

  #unindex(pod: Pod): void {
    for (const ip of pod.hostNetwork ? [] : pod.ips) {
      const rest = (this.#byIp.get(ip) ?? []).filter((other) => other.uid !== pod.uid);
      if (rest.length === 0) {
        this.#byIp.delete(ip);
      } else {
        this.#byIp.set(ip, rest);
      }
    }
  }
}
