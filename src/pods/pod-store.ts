/** The one truth about the pods of this node: what every source says, joined by pod UID. */

import { randomUUID } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
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

/** Something that keeps one source's snapshot in the store up to date. */
export interface PodSource {
  readonly name: SourceName;
  /**
   * Resolves after the first snapshot is in the store, or once its first failure is being retried; goes on until
   * `signal` aborts. Rejects where retrying cannot help.
   */
  start(signal: AbortSignal): Promise<void>;
  /** Why the store may be behind this source; undefined while it follows. */
  readonly lastError: string | undefined;
}

/** What a source needs of a logger: pino's own form. */
export interface SourceLogger {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

/** How long a removed pod is remembered. */
export const TOMBSTONE_MS = 60_000;

const UNKNOWN_SERVICE_ACCOUNT = 'default';

/** Weakest first: where two sources disagree about a field, the later one is believed. */
const PRECEDENCE: readonly SourceName[] = ['static', 'cni', 'cri', 'kubernetes'];

export class PodStore {
  /** Random per store, that is per start of the agent. */
  readonly epoch: string;
  readonly #nowMs: () => number;
  readonly #sources = new Map<SourceName, Map<PodUid, Pod>>();
  readonly #pods = new Map<PodUid, Pod>();
  readonly #byIp = new Map<string, Pod[]>();
  readonly #tombstones = new Map<PodUid, RemovedPod>();
  readonly #listeners = new Set<(changes: readonly PodChange[]) => void>();
  #revision = 0;

  /** `nowMs` is the clock that tombstones run by. */
  constructor(options: { nowMs?: () => number; epoch?: string } = {}) {
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
    const before = this.#sources.get(source) ?? new Map<PodUid, Pod>();
    // A source hands the same object over again where nothing has changed: most pods, most of the time.
    const uids = [...new Set([...before.keys(), ...next.keys()])].filter(
      (uid) => before.get(uid) !== next.get(uid),
    );
    this.#sources.set(source, next);
    this.#publish(uids);
  }

  /** What has changed at one source that has delivered its whole before, or delivers it bit by bit. */
  updateSource(source: SourceName, changes: { upsert?: readonly Pod[]; remove?: readonly PodUid[] }): void {
    const { upsert = [], remove = [] } = changes;
    const pods = this.#sources.get(source) ?? new Map<PodUid, Pod>();
    for (const pod of upsert) {
      pods.set(pod.uid, pod);
    }
    for (const uid of remove) {
      pods.delete(uid);
    }
    this.#sources.set(source, pods);
    this.#publish([...upsert.map((pod) => pod.uid), ...remove]);
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
    const after = joinPods(
      PRECEDENCE.flatMap((source) => {
        const pod = this.#sources.get(source)?.get(uid);
        return pod === undefined ? [] : [{ source, pod }];
      }),
    );
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
      return { kind: 'upsert', pod: after };
    }
    if (before !== undefined) {
      this.#tombstones.set(uid, { pod: before, atMs: this.#nowMs() });
      return { kind: 'remove', pod: before };
    }
    return undefined;
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
    const oldest = this.#nowMs() - TOMBSTONE_MS;
    for (const [uid, { atMs }] of this.#tombstones) {
      if (atMs > oldest) {
        return;
      }
      this.#tombstones.delete(uid);
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
  const map = (pick: (pod: Pod) => Readonly<Record<string, string>>): Readonly<Record<string, string>> =>
    Object.freeze({ ...strongestFirst.map(pick).find((value) => Object.keys(value).length > 0) });
  const netns = text((pod) => pod.netns);
  const hostInterface = text((pod) => pod.interface);
  return Object.freeze({
    uid: strongest.uid,
    namespace: text((pod) => pod.namespace) ?? '',
    name: text((pod) => pod.name) ?? '',
    serviceAccount: text((pod) => pod.serviceAccount) ?? UNKNOWN_SERVICE_ACCOUNT,
    labels: map((pod) => pod.labels),
    annotations: map((pod) => pod.annotations),
    ips: Object.freeze([...new Set(strongestFirst.flatMap((pod) => pod.ips))]),
    runtime: strongestFirst.find((pod) => pod.runtime !== 'unknown')?.runtime ?? 'unknown',
    runtimeHandler: text((pod) => pod.runtimeHandler) ?? '',
    sandboxId: text((pod) => pod.sandboxId) ?? '',
    hostNetwork: strongestFirst.some((pod) => pod.hostNetwork),
    ...(netns === undefined ? {} : { netns }),
    ...(hostInterface === undefined ? {} : { interface: hostInterface }),
    sources: Object.freeze(parts.map((part) => part.source)),
  });
}
