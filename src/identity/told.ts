/**
 * What proxies tell of flows that they have: the names that a pod has looked up, and where a pod that dials its proxy by itself
 * has asked to go. It is for those who read: nothing is decided by it, and no identity rests on it. In memory, bounded.
 */

import type { FlowRecord } from '../datapath/flows.js';
import { formatSocketAddress } from '../net/socket-address.js';
import type { PodUid } from '../pods/pod.js';

/** An address that a name had, by the answer to a pod. */
export interface LookedUp {
  readonly name: string;
  /** Canonical text. */
  readonly ip: string;
  /** Of the answer's record. */
  readonly ttlSeconds: number;
}

interface Known {
  readonly ip: string;
  readonly name: string;
  /** Unix times, milliseconds: flows that begin in between may be to this name. */
  readonly fromMs: number;
  readonly untilMs: number;
}

export interface ToldOptions {
  /** Unix time. Default Date.now. */
  readonly nowMs?: () => number;
  /** Addresses of names at most: of a pod, and of all. Defaults 512 and 65,536. */
  readonly namesOfPod?: number;
  readonly names?: number;
  /** Flows at most. Default 16,384. */
  readonly flows?: number;
}

/** Who has been told may go on for a moment with what has run out, and the proxy tells when it has answered. */
const GRACE_MS = 5_000;
const MAX_TTL_SECONDS = 86_400;
/** The kernel's clock is put into Unix time at each look, and that one may be set a little meanwhile. */
const SAME_MS = 1_000;

type Flow = Pick<FlowRecord, 'protocol' | 'src' | 'dst' | 'startedMs'>;

export class Told {
  readonly #options: Required<ToldOptions>;
  /** The pod that was told of last comes last; of each the same of its names. */
  readonly #names = new Map<PodUid, Map<string, Known>>();
  #count = 0;
  /** Where a flow was asked to go; the newest last. */
  readonly #asked = new Map<string, { readonly destination: string; readonly startedMs: number }>();

  constructor(options: ToldOptions = {}) {
    this.#options = { nowMs: Date.now, namesOfPod: 512, names: 65_536, flows: 16_384, ...options };
  }

  lookedUp(uid: PodUid, answers: readonly LookedUp[]): void {
    const { nowMs, namesOfPod, names: most } = this.#options;
    const now = nowMs();
    const names = this.#names.get(uid) ?? new Map<string, Known>();
    this.#names.delete(uid);
    this.#names.set(uid, names);
    for (const { name, ip, ttlSeconds } of answers) {
      const key = `${ip} ${name}`;
      const before = names.get(key);
      const goesOn = before !== undefined && before.untilMs >= now;
      this.#count += before === undefined ? 1 : 0;
      names.delete(key);
      names.set(key, {
        ip,
        name,
        fromMs: goesOn ? before.fromMs : now - GRACE_MS,
        untilMs: now + Math.min(ttlSeconds, MAX_TTL_SECONDS) * 1_000 + GRACE_MS,
      });
      this.#shrink(names, namesOfPod);
    }
    while (this.#count > most) {
      const [oldest] = this.#names.keys();
      this.#count -= this.#names.get(oldest as PodUid)?.size ?? 0;
      this.#names.delete(oldest as PodUid);
    }
  }

  /** Under which name the pod knew the address at that time (Unix, milliseconds): of more, the one that was looked up last. */
  nameOf(uid: PodUid, ip: string, atMs: number): string | undefined {
    const known = [...(this.#names.get(uid)?.values() ?? [])];
    return known.findLast((one) => one.ip === ip && one.fromMs <= atMs && atMs <= one.untilMs)?.name;
  }

  /** `destination`: a name or an address, and a port. */
  asks(flow: Flow, destination: string): void {
    const key = keyOf(flow);
    this.#asked.delete(key);
    this.#asked.set(key, { destination, startedMs: flow.startedMs });
    if (this.#asked.size > this.#options.flows) {
      const [oldest] = this.#asked.keys();
      this.#asked.delete(oldest as string);
    }
  }

  askedBy(flow: Flow): string | undefined {
    const asked = this.#asked.get(keyOf(flow));
    const isSame = asked !== undefined && Math.abs(asked.startedMs - flow.startedMs) < SAME_MS;
    return isSame ? asked.destination : undefined;
  }

  #shrink(names: Map<string, Known>, most: number): void {
    if (names.size > most) {
      const [oldest] = names.keys();
      names.delete(oldest as string);
      this.#count -= 1;
    }
  }
}

function keyOf({ protocol, src, dst }: Flow): string {
  return `${protocol} ${formatSocketAddress(src)} ${formatSocketAddress(dst)}`;
}
