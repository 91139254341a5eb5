/**
 * Which pod had which address when: for as long as is configured, and across a restart of the agent. While no agent runs
 * nobody looks: only a pod that has its address before and after had it in between.
 */

import { isDeepStrictEqual } from 'node:util';
import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import type { PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import { HistoryFile } from './history-file.js';
import { firstLine, formatLine, type HistoryLine, type PastWorkload, parseLine } from './history-lines.js';
import type { IdentityService } from './resolve.js';
import type { Workload } from './workload.js';

export interface AddressHistoryOptions {
  readonly store: Pick<PodStore, 'subscribe' | 'list'>;
  readonly identity: Pick<IdentityService, 'live'>;
  /** Whether every configured source has delivered at least once. */
  readonly synced: () => boolean;
  readonly onEndpoint?: (listener: (uid: PodUid) => void) => () => void;
  /** How long what has ended is kept, and how many at most. */
  readonly seconds: number;
  readonly entries: number;
  /** Such as /run/nodesentry/addresses.ndjson: gone with the next boot, as the pods are. */
  readonly path: string;
  /** Of that file. Default 16 MiB. */
  readonly maxBytes?: number;
  readonly log: Pick<Log, 'warn' | 'info'>;
  /** Unix time. Default Date.now. */
  readonly nowMs?: Clock;
  /** How often the file is told that the agent lives. Default 5 s. */
  readonly tickMs?: number;
}

/** A pod that had the address from `from` and before `until`; Unix times, milliseconds. */
export interface Holding {
  readonly ip: string;
  readonly from: number;
  /** Undefined: it has it still. */
  readonly until: number | undefined;
  readonly workload: PastWorkload;
}

type Kept = { -readonly [K in keyof Holding]: Holding[K] };

const MAX_BYTES = 16 << 20;
const TICK_MS = 5_000;

export class AddressHistory {
  readonly #options: AddressHistoryOptions;
  readonly #nowMs: Clock;
  readonly #file: HistoryFile;
  readonly #byIp = new Map<string, Kept[]>();
  /** Of each pod, by address. */
  readonly #open = new Map<string, Map<string, Kept>>();
  /** In the order of their ends. */
  readonly #closed = new Set<Kept>();
  /** Open when the last agent ended: goes on where the pod turns up with the address again before all sources have told. */
  readonly #recalled = new Set<Kept>();
  readonly #unsubscribe: readonly (() => void)[];
  readonly #timer: NodeJS.Timeout;
  /** Unix time since when this agent looks. */
  readonly startedMs: number;
  #since: number;

  constructor(options: AddressHistoryOptions) {
    const {
      store,
      onEndpoint,
      path,
      log,
      maxBytes = MAX_BYTES,
      nowMs = Date.now,
      tickMs = TICK_MS,
    } = options;
    this.#options = options;
    this.#nowMs = nowMs;
    this.startedMs = nowMs();
    this.#since = this.startedMs;
    this.#file = new HistoryFile({ path, maxBytes, log });
    this.#recall();
    this.#note(store.list().map(({ uid }) => uid));
    this.#rewrite();
    this.#unsubscribe = [
      store.subscribe((changes) => this.#changed(changes.map(({ pod }) => pod.uid))),
      ...(onEndpoint === undefined ? [] : [onEndpoint((uid) => this.#changed([uid]))]),
    ];
    this.#timer = setInterval(() => this.#tick(), tickMs).unref();
  }

  /** What ended before is not known any more, so nobody is named of it. */
  keptSince(): number {
    return Math.max(this.#since, this.#nowMs() - this.#options.seconds * 1_000);
  }

  /** Who had the address (canonical text) then, one entry a pod. */
  at(ip: string, atMs: number): readonly Holding[] {
    const held = (this.#byIp.get(ip) ?? []).filter(
      ({ from, until }) => from <= atMs && (until === undefined || atMs < until),
    );
    return [...new Map(held.map((one) => [one.workload.uid, one])).values()];
  }

  close(): void {
    clearInterval(this.#timer);
    for (const unsubscribe of this.#unsubscribe) {
      unsubscribe();
    }
    this.#file.touch(this.#nowMs());
    this.#file.close();
  }

  #changed(uids: readonly PodUid[]): void {
    const lines = this.#note(uids);
    if (lines.length > 0) {
      this.#file.append(lines.map(formatLine).join(''));
    }
    if (this.#file.isFull) {
      this.#rewrite();
    }
  }

  #note(uids: readonly PodUid[]): HistoryLine[] {
    const now = this.#nowMs();
    const lines = uids.flatMap((uid) => this.#noteOne(uid, now));
    this.#forget(now);
    return lines;
  }

  #noteOne(uid: PodUid, now: number): HistoryLine[] {
    const workload = this.#options.identity.live(uid);
    const open = this.#open.get(uid) ?? new Map<string, Kept>();
    const ended = [...open.values()].filter(({ ip }) => workload?.ips.includes(ip) !== true);
    const lines: HistoryLine[] = ended.map((kept) => {
      const until = Math.max(now, kept.from);
      this.#end(kept, until);
      return { ip: kept.ip, uid, until };
    });
    if (workload === undefined) {
      return lines;
    }
    for (const ip of new Set(workload.ips)) {
      const kept = open.get(ip) ?? this.#goOn(uid, ip);
      const known = pastOf(workload, kept?.workload);
      const goesOn = kept !== undefined && this.#recalled.delete(kept);
      if (kept === undefined || goesOn || !isDeepStrictEqual(kept.workload, known)) {
        const one = kept ?? this.#add({ ip, from: now, until: undefined, workload: known });
        one.workload = known;
        lines.push({ ip, from: one.from, workload: known });
      }
    }
    return lines;
  }

  #add(kept: Kept): Kept {
    this.#byIp.set(kept.ip, [...(this.#byIp.get(kept.ip) ?? []), kept]);
    if (kept.until === undefined) {
      this.#openOf(kept.workload.uid).set(kept.ip, kept);
    } else {
      this.#closed.add(kept);
    }
    return kept;
  }

  #openOf(uid: string): Map<string, Kept> {
    const open = this.#open.get(uid) ?? new Map<string, Kept>();
    this.#open.set(uid, open);
    return open;
  }

  #end(kept: Kept, until: number): void {
    kept.until = until;
    this.#closed.add(kept);
    const open = this.#openOf(kept.workload.uid);
    open.delete(kept.ip);
    if (open.size === 0) {
      this.#open.delete(kept.workload.uid);
    }
  }

  #goOn(uid: string, ip: string): Kept | undefined {
    const kept = [...this.#recalled].find((one) => one.ip === ip && one.workload.uid === uid);
    if (kept !== undefined) {
      kept.until = undefined;
      this.#closed.delete(kept);
      this.#openOf(uid).set(ip, kept);
    }
    return kept;
  }

  /** What ended too long ago, and of what is too much that which ended first; never what goes on. */
  #forget(now: number): void {
    const { seconds, entries } = this.#options;
    let count = this.#closed.size + [...this.#open.values()].reduce((sum, { size }) => sum + size, 0);
    for (const kept of this.#closed) {
      const { ip, until = now } = kept;
      if (count <= entries && until > now - seconds * 1_000) {
        break;
      }
      count -= 1;
      this.#since = Math.max(this.#since, until);
      this.#closed.delete(kept);
      this.#recalled.delete(kept);
      const rest = (this.#byIp.get(ip) ?? []).filter((other) => other !== kept);
      if (rest.length === 0) {
        this.#byIp.delete(ip);
      } else {
        this.#byIp.set(ip, rest);
      }
    }
  }

  #tick(): void {
    const now = this.#nowMs();
    this.#forget(now);
    if (this.#options.synced()) {
      this.#recalled.clear();
    }
    if (this.#file.isBroken) {
      this.#rewrite();
    }
    this.#file.touch(now);
  }

  #recall(): void {
    const { log, path } = this.#options;
    const found = this.#file.read();
    const lines = found?.lines.map(parseLine) ?? [];
    const [first] = lines;
    if (found === undefined || first === undefined || !('since' in first)) {
      if (found !== undefined && found.lines.length > 0) {
        log.warn({ path }, 'who had which address before this start is of another version and is not used');
      }
      return;
    }
    this.#since = Math.min(first.since, this.startedMs);
    for (const line of lines) {
      if (line !== undefined && !('since' in line)) {
        this.#recallOne(line);
      }
    }
    const unknown = lines.filter((line) => line === undefined).length;
    if (unknown > 0) {
      log.warn({ path, lines: unknown }, 'of who had which address before this start some cannot be read');
    }
    const aliveMs = Math.min(found.aliveMs, this.startedMs);
    for (const kept of [...this.#open.values()].flatMap((open) => [...open.values()])) {
      this.#end(kept, Math.max(aliveMs, kept.from));
      this.#recalled.add(kept);
    }
  }

  #recallOne(line: Exclude<HistoryLine, { since: number }>): void {
    if ('workload' in line) {
      const { ip, from, until, workload } = line;
      const open = this.#open.get(workload.uid)?.get(ip);
      if (open === undefined) {
        this.#add({ ip, from, until, workload });
      } else {
        open.workload = workload;
      }
      return;
    }
    const open = this.#open.get(line.uid)?.get(line.ip);
    if (open !== undefined) {
      this.#end(open, line.until);
    }
  }

  /** The newest, where all is too much for the file: half of it, so that there is room for what comes. */
  #rewrite(): void {
    const { maxBytes = MAX_BYTES } = this.#options;
    const texts: string[] = [];
    let bytes = 0;
    let since = this.keptSince();
    const open = [...this.#open.values()].flatMap((byIp) => [...byIp.values()]);
    for (const { ip, from, until, workload } of [...open, ...[...this.#closed].reverse()]) {
      const text = formatLine({ ip, from, ...(until === undefined ? {} : { until }), workload });
      bytes += Buffer.byteLength(text);
      if (bytes > maxBytes / 2) {
        since = Math.max(since, until ?? this.#nowMs());
        break;
      }
      texts.push(text);
    }
    this.#file.replace([formatLine(firstLine(since)), ...texts.reverse()].join(''));
  }
}

/** A name that is known is kept: who has the last word may forget a pod before its runtime does. */
function pastOf(
  { labels: _, state: __, ...workload }: Workload,
  known: PastWorkload | undefined,
): PastWorkload {
  return workload.spiffeId === '' && known !== undefined && known.spiffeId !== ''
    ? { ...workload, spiffeId: known.spiffeId, serviceAccount: known.serviceAccount }
    : workload;
}
