/**
 * Pods as the CNI plugin announces them, before their first process starts. What it tells is kept in files below the
 * run directory, which lives as long as the pods' namespaces do: until the node is booted again.
 */

import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  type Stats,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import type { Log } from '../../base/log.js';
import type { Pod, PodUid } from '../pod.js';
import type { PodStore } from '../pod-store.js';
import type { PodSource } from '../source.js';
import { type CniAttachment, readAttachment, standInOf } from './cni-attachment.js';

export interface CniSourceOptions {
  /** Folder for the files, such as /run/nodesentry/cni. */
  readonly directory: string;
  readonly store: PodStore;
  readonly log: Log;
  /** How often attachments are dropped whose namespace has gone without a DEL. Default 30 000. */
  readonly pruneMs?: number;
}

export class CniSource implements PodSource {
  readonly name = 'cni';
  readonly #options: CniSourceOptions;
  readonly #attachments = new Map<string, CniAttachment>();
  /** Containers whose ADD is under way. */
  readonly #starting = new Set<string>();
  /** What had no namespace at the last look for it. */
  #lost: ReadonlySet<string> = new Set();
  #problem: () => string | undefined = () => undefined;

  constructor(options: CniSourceOptions) {
    this.#options = options;
  }

  get lastError(): string | undefined {
    return this.#problem();
  }

  /** Who knows why pods may start without being announced here. */
  explainBy(problem: () => string | undefined): void {
    this.#problem = problem;
  }

  async start(signal: AbortSignal): Promise<void> {
    const { directory, store } = this.#options;
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    for (const path of oldestFirst(readdirSync(directory).map((file) => join(directory, file)))) {
      this.#load(path);
    }
    this.prune();
    // After the others have heard of the change that is being told.
    const unsubscribe = store.subscribe(() => queueMicrotask(() => this.#adoptKnown()));
    const uids = new Set([...this.#attachments.values()].map(({ podUid }) => podUid));
    store.replaceSource(
      this.name,
      [...uids].flatMap((uid) => this.#podOf(uid) ?? []),
    );
    const timer = setInterval(() => this.prune(), this.#options.pruneMs ?? 30_000).unref();
    const stop = (): void => {
      clearInterval(timer);
      unsubscribe();
    };
    signal.addEventListener('abort', stop, { once: true });
  }

  /**
   * Remembered first, then told: an agent that dies in between tells it when it starts again. Returns the UID that it is
   * told under, which may be another once `adopt` was called: see `uidOf`.
   */
  add(given: CniAttachment): PodUid {
    const attachment = isNameless(given)
      ? { ...given, podUid: this.#uidKnownOf(given) ?? given.podUid }
      : given;
    this.#starting.add(attachment.containerId);
    this.#write(attachment);
    // Last, also where it was known before: the newest sandbox counts.
    const before = this.#attachments.get(keyOf(attachment));
    this.#attachments.delete(keyOf(attachment));
    this.#attachments.set(keyOf(attachment), attachment);
    this.#publish(attachment.podUid);
    if (before !== undefined && before.podUid !== attachment.podUid) {
      this.#publish(before.podUid);
    }
    return attachment.podUid as PodUid;
  }

  /** The ADD has been answered: from now on the name alone says nothing, another pod may have it by then. */
  settled({ containerId }: Pick<CniAttachment, 'containerId'>): void {
    this.#starting.delete(containerId);
  }

  awaitsUid(uid: PodUid): boolean {
    return this.#nameless().some(
      ({ podUid, containerId }) => podUid === uid && this.#starting.has(containerId),
    );
  }

  /** The sandbox is that of the pod with this UID from now on, and for good. */
  adopt(standIn: PodUid, uid: PodUid): void {
    const own = this.#nameless().filter(({ podUid }) => podUid === standIn);
    for (const attachment of own) {
      const named = { ...attachment, podUid: uid };
      this.#rewrite(named);
      this.#attachments.set(keyOf(named), named);
    }
    const pod = this.#podOf(uid);
    if (own.length > 0 && pod !== undefined) {
      this.#options.store.updateSource(this.name, { upsert: [pod], remove: [standIn] });
      this.#options.log.info(
        { ...nameOf(own[0] as CniAttachment), uid },
        'cni: the UID of a pod is known now',
      );
    }
  }

  uidOf(which: Pick<CniAttachment, 'containerId' | 'ifname'>): PodUid | undefined {
    return this.get(which)?.podUid as PodUid | undefined;
  }

  /** False where nothing was known of it. */
  remove(which: Pick<CniAttachment, 'containerId' | 'ifname'>): boolean {
    const known = this.#attachments.get(keyOf(which));
    if (known === undefined) {
      return false;
    }
    this.#attachments.delete(keyOf(which));
    try {
      rmSync(this.#path(known), { force: true });
    } catch (error) {
      // It has gone all the same; the next agent finds that its namespace has.
      this.#options.log.warn(
        { ...nameOf(known), err: error },
        'cni: the file of an attachment cannot be removed',
      );
    }
    this.#publish(known.podUid);
    return true;
  }

  get(which: Pick<CniAttachment, 'containerId' | 'ifname'>): CniAttachment | undefined {
    return this.#attachments.get(keyOf(which));
  }

  /** Drops all but these; returns how many. */
  keep(valid: readonly Pick<CniAttachment, 'containerId' | 'ifname'>[]): number {
    const keys = new Set(valid.map(keyOf));
    const gone = [...this.#attachments].filter(([key]) => !keys.has(key));
    for (const [, attachment] of gone) {
      this.remove(attachment);
    }
    return gone.length;
  }

  /**
   * Drops what has lost its namespace: its DEL came while no agent ran, or never. Only what had lost it the last time too:
   * a path that is not there for a moment is not the pod's end.
   */
  prune(): void {
    const lost = [...this.#attachments.values()].filter(({ netns }) => !existsSync(netns));
    for (const attachment of lost.filter((one) => this.#lost.has(keyOf(one)))) {
      this.remove(attachment);
      this.#options.log.info({ ...nameOf(attachment) }, 'cni: an attachment has gone without a DEL');
    }
    this.#lost = new Set(lost.map(keyOf));
  }

  #nameless(): CniAttachment[] {
    return [...this.#attachments.values()].filter(isNameless);
  }

  #adoptKnown(): void {
    for (const attachment of this.#nameless()) {
      const uid = this.#uidKnownOf(attachment);
      if (uid !== undefined) {
        this.adopt(attachment.podUid as PodUid, uid);
      }
    }
  }

  /** From another interface of the sandbox, or from a source that names this very sandbox or its namespace. */
  #uidKnownOf({ containerId, netns, podNamespace, podName, podUid }: CniAttachment): PodUid | undefined {
    const sibling = [...this.#attachments.values()].find(
      (other) => other.containerId === containerId && !isNameless(other),
    );
    const told = this.#options.store
      .list()
      .find(
        (pod) =>
          pod.uid !== podUid &&
          pod.sources.some((source) => source !== this.name) &&
          (podName === '' || (pod.namespace === podNamespace && pod.name === podName)) &&
          (pod.sandboxId === containerId || pod.netns === netns),
      );
    return (sibling?.podUid as PodUid | undefined) ?? told?.uid;
  }

  /** Never throws: the next agent learns the UID as this one did, where it cannot be written down. */
  #rewrite(named: CniAttachment): void {
    try {
      this.#write(named, statSync(this.#path(named)));
    } catch (error) {
      this.#options.log.warn(
        { ...nameOf(named), err: error },
        'cni: the UID of a pod cannot be written down',
      );
    }
  }

  /** `times`: those of the file that it takes the place of. */
  #write(attachment: CniAttachment, times?: Stats): void {
    const path = this.#path(attachment);
    writeFileSync(`${path}.new`, JSON.stringify(attachment));
    if (times !== undefined) {
      utimesSync(`${path}.new`, times.atime, times.mtime);
    }
    renameSync(`${path}.new`, path);
  }

  #load(path: string): void {
    try {
      const attachment = readAttachment(readFileSync(path, 'utf8'));
      if (path !== this.#path(attachment)) {
        throw new Error('the file is not what its name says');
      }
      this.#attachments.set(keyOf(attachment), attachment);
    } catch (error) {
      // Half written by an agent that died, and never told anybody: the runtime has seen its ADD fail.
      this.#options.log.warn({ err: error, path }, 'cni: a file that cannot be read is removed');
      rmSync(path, { force: true, recursive: true });
    }
  }

  #publish(uid: string): void {
    const pod = this.#podOf(uid);
    this.#options.store.updateSource(
      this.name,
      pod === undefined ? { remove: [uid as PodUid] } : { upsert: [pod] },
    );
  }

  /** The newest sandbox of the pod: an older one may wait for its DEL while the pod has been restarted. */
  #podOf(uid: string): Pod | undefined {
    const own = [...this.#attachments.values()].filter((attachment) => attachment.podUid === uid);
    const newest = own.at(-1);
    if (newest === undefined) {
      return undefined;
    }
    const inSandbox = own.filter(({ netns }) => netns === newest.netns);
    return {
      uid: uid as PodUid,
      namespace: newest.podNamespace,
      name: newest.podName,
      serviceAccount: '',
      labels: {},
      annotations: newest.annotations,
      ips: [...new Set(inSandbox.flatMap((attachment) => attachment.ips))],
      interfaceIps: Object.fromEntries(inSandbox.map(({ ifname, ips }) => [ifname, ips])),
      runtime: 'unknown',
      runtimeHandler: '',
      sandboxId: newest.containerId,
      hostNetwork: false,
      netns: newest.netns,
      sources: [this.name],
    };
  }

  #path({ containerId, ifname }: Pick<CniAttachment, 'containerId' | 'ifname'>): string {
    return join(this.#options.directory, `${containerId}@${ifname}`);
  }
}

function keyOf({ containerId, ifname }: Pick<CniAttachment, 'containerId' | 'ifname'>): string {
  return `${containerId}@${ifname}`;
}

/** The runtime told no UID, and nobody has since. */
function isNameless(attachment: CniAttachment): boolean {
  return attachment.podUid === standInOf(attachment);
}

/** In the order in which they were added: a file that is written anew keeps its time. */
function oldestFirst(paths: readonly string[]): string[] {
  const times = new Map(paths.map((path) => [path, lstatSync(path, { bigint: true }).mtimeNs]));
  const timeOf = (path: string) => times.get(path) ?? 0n;
  return [...paths].sort((a, b) => (timeOf(a) < timeOf(b) ? -1 : timeOf(a) > timeOf(b) ? 1 : 0));
}

function nameOf({ podNamespace, podName, containerId, ifname }: CniAttachment): object {
  return { pod: `${podNamespace}/${podName}`, containerId, ifname };
}
