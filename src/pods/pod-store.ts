/** The one truth about the pods of this node: what every source says, joined by pod UID. */

import { randomUUID } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import type { Clock } from '../base/clock.js';
import type { Pod, PodUid, SourceName } from './pod.js';

export interface Revision {
  readonly epoch: string;
  readonly revision: number;
}

export type PodChange = { readonly kind: 'upsert' | 'remove'; readonly pod: Pod };

export interface RemovedPod {
  readonly pod: Pod;
  /** Unix time, milliseconds. */
  readonly atMs: number;
}

/** How long a pod that has gone is remembered: its name here, its row in the kernel, its flows by identity. */
export const REMEMBERED_MS = 60_000;

/** Where no source is asked that would know. */
const UNKNOWN_SERVICE_ACCOUNT = 'default';

/** Weakest first: where two sources disagree about a field, the later one is believed. */
const PRECEDENCE: readonly SourceName[] = ['static', 'cni', 'cri', 'kubernetes'];

export class PodStore {
  /** Random per store, that is per start of the agent. */
  readonly epoch: string;
  readonly #nowMs: Clock;
  readonly #sources = new Map<SourceName, Map<PodUid, Pod>>();
  /** What a source told before this start, until it tells again. */
  readonly #remembered = new Map<SourceName, ReadonlyMap<PodUid, Pod>>();
  readonly #pods = new Map<PodUid, Pod>();
  readonly #byIp = new Map<string, Pod[]>();
  readonly #tombstones = new Map<PodUid, RemovedPod>();
  readonly #departures = new Map<PodUid, RemovedPod>();
  readonly #listeners = new Set<(changes: readonly PodChange[]) => void>();
  #revision = 0;

  /** `nowMs` is the clock that tombstones run by. */
  constructor(options: { nowMs?: Clock; epoch?: string } = {}) {
    this.#nowMs = options.nowMs ?? Date.now;
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
    const before = this.#sources.get(source) ?? this.#remembered.get(source) ?? new Map<PodUid, Pod>();
    // A source hands the same object over again where nothing has changed: most pods, most of the time.
    const uids = [...new Set([...before.keys(), ...next.keys()])].filter(
      (uid) => before.get(uid) !== next.get(uid),
    );
    this.#sources.set(source, next);
    this.#remembered.delete(source);
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
    if (this.#sources.has(source)) {
      return;
    }
    const before = this.#remembered.get(source);
    this.#remembered.set(source, remembered);
    this.#publish([...new Set([...(before?.keys() ?? []), ...remembered.keys()])]);
  }

  /** What has changed at one source that has delivered its whole before, or delivers it bit by bit. */
  updateSource(source: SourceName, changes: { upsert?: readonly Pod[]; remove?: readonly PodUid[] }): void {
    const { upsert = [], remove = [] } = changes;
    const pods = this.#sources.get(source) ?? new Map<PodUid, Pod>();
    const remembered = this.#remembered.get(source)?.keys() ?? [];
    this.#remembered.delete(source);
    for (const pod of upsert) {
      pods.set(pod.uid, pod);
    }
    for (const uid of remove) {
      pods.delete(uid);
    }
    this.#sources.set(source, pods);
    this.#publish([...new Set([...upsert.map((pod) => pod.uid), ...remove, ...remembered])]);
  }

  #publish(uids: readonly PodUid[]): void {
    const changes = uids.flatMap((uid) => this.#rejoin(uid) ?? []);
    this.#forgetOldTombstones();
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
    return new Set(this.#sources.keys());
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

  /** A pod that went less than 60 s ago and did not come back. */
  removed(uid: PodUid): RemovedPod | undefined {
    this.#forgetOldTombstones();
    return this.#tombstones.get(uid);
  }

  /** A live pod as it was before one of its sources dropped it, less than 60 s ago. */
  departed(uid: PodUid): RemovedPod | undefined {
    this.#forgetOldTombstones();
    return this.#departures.get(uid);
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
    const after = joinPods(this.#partsOf(uid));
    if (isDeepStrictEqual(before, after)) {
      return undefined;
    }
    if (before !== undefined) {
      this.#unindex(before);
      this.#pods.delete(uid);
    }
    if (after !== undefined) {
      this.#index(after);
      this.#pods.set(uid, after);
      this.#tombstones.delete(uid);
      this.#noteDeparture(before, after);
      return { kind: 'upsert', pod: after };
    }
    if (before !== undefined) {
      // What the last source to let go of it knew can be the least: the network, and no name.
      const pod = this.#departures.get(uid)?.pod ?? before;
      this.#departures.delete(uid);
      this.#tombstones.set(uid, { pod, atMs: this.#nowMs() });
      return { kind: 'remove', pod: before };
    }
    return undefined;
  }

  /** What every source says of the pod, weakest first. What is only remembered names no pod by itself. */
  #partsOf(uid: PodUid): { source: SourceName; pod: Pod }[] {
    const isLive = [...this.#sources.values()].some((pods) => pods.has(uid));
    return PRECEDENCE.flatMap((source) => {
      const pod =
        this.#sources.get(source)?.get(uid) ?? (isLive ? this.#remembered.get(source)?.get(uid) : undefined);
      return pod === undefined ? [] : [{ source, pod }];
    });
  }

  #noteDeparture(before: Pod | undefined, after: Pod): void {
    const back = this.#departures.get(after.uid)?.pod.sources.every((name) => after.sources.includes(name));
    if (back === true) {
      this.#departures.delete(after.uid);
      return;
    }
    const dropped = before?.sources.some((name) => !after.sources.includes(name)) === true;
    // The first departure has most to say; it is forgotten when all are back.
    if (before !== undefined && dropped && !this.#departures.has(after.uid)) {
      this.#departures.set(after.uid, { pod: before, atMs: this.#nowMs() });
    }
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

  /** They stand in the order of their removal, so the first young one ends the search. */
  #forgetOldTombstones(): void {
    const oldest = this.#nowMs() - REMEMBERED_MS;
    for (const removed of [this.#tombstones, this.#departures]) {
      for (const [uid, { atMs }] of removed) {
        if (atMs > oldest) {
          break;
        }
        removed.delete(uid);
      }
    }
  }
}

/**
 * One frozen pod out of what several sources say, weakest first. An empty field is one the source does not know;
 * addresses are united, the strongest source's first; a pod is on the host's network if any source says so.
 */
function joinPods(parts: readonly { source: SourceName; pod: Pod }[]): Pod | undefined {
  const strongest = parts.at(-1)?.pod;
  if (strongest === undefined) {
    return undefined;
  }
  const strongestFirst = parts.map((part) => part.pod).reverse();
  const text = (pick: (pod: Pod) => string | undefined): string | undefined =>
    strongestFirst.map(pick).find((value) => value !== undefined && value !== '');
  // Kubernetes knows all labels: none there means that the last one was taken away, and the copy in the CRI is old.
  const mapsFrom = parts.at(-1)?.source === 'kubernetes' ? [strongest] : strongestFirst;
  const map = (pick: (pod: Pod) => Readonly<Record<string, string>>): Readonly<Record<string, string>> =>
    Object.freeze({ ...mapsFrom.map(pick).find((value) => Object.keys(value).length > 0) });
  const netns = text((pod) => pod.netns);
  const hostInterface = text((pod) => pod.interface);
  const owner = strongestFirst.find((pod) => pod.owner !== undefined)?.owner;
  return Object.freeze({
    uid: strongest.uid,
    namespace: text((pod) => pod.namespace) ?? '',
    name: text((pod) => pod.name) ?? '',
    serviceAccount: serviceAccountOf(parts),
    labels: map((pod) => pod.labels),
    annotations: map((pod) => pod.annotations),
    ips: Object.freeze([...new Set(strongestFirst.flatMap((pod) => pod.ips))]),
    runtime: strongestFirst.find((pod) => pod.runtime !== 'unknown')?.runtime ?? 'unknown',
    runtimeHandler: text((pod) => pod.runtimeHandler) ?? '',
    sandboxId: text((pod) => pod.sandboxId) ?? '',
    hostNetwork: strongestFirst.some((pod) => pod.hostNetwork),
    ...(netns === undefined ? {} : { netns }),
    ...(hostInterface === undefined ? {} : { interface: hostInterface }),
    ...(owner === undefined ? {} : { owner: Object.freeze({ ...owner }) }),
    sources: Object.freeze(parts.map((part) => part.source)),
  });
}

/**
 * What Kubernetes says of a pod that it knows, even that it has none: the API server writes `default` where a pod names
 * none, but not into mirror pods, which it forbids to have any (plugin/pkg/admission/serviceaccount). A label that the
 * runtime was given does not change that; the administrator's static file does.
 */
function serviceAccountOf(parts: readonly { source: SourceName; pod: Pod }[]): string {
  const isKnown = parts.some(({ source }) => source === 'kubernetes');
  const told = parts
    .filter(({ source }) => !isKnown || source === 'kubernetes' || source === 'static')
    .findLast(({ pod }) => pod.serviceAccount !== '');
  return told?.pod.serviceAccount ?? (isKnown ? '' : UNKNOWN_SERVICE_ACCOUNT);
}
