/**
 * Says on the pod itself that it is REFUSED or DEGRADED, once for each reason, and once that it is INTERCEPTED again. What
 * is to be said is found by looking at all pods; what could not be sent waits in a bounded queue.
 */

import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import { interceptionOf } from '../pods/annotations.js';
import type { Pod, PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import { type KubernetesClient, KubernetesError } from '../pods/sources/kubernetes-client.js';
import type { EndpointState, EndpointStatus } from '../reconcile/status.js';
import { adviceFor } from './advice.js';
import type { EventMemory, Told } from './event-memory.js';
import { eventObject, eventSeries, type PodEvent, podEvent, type ToldState } from './pod-event.js';

export interface PodEventsOptions {
  readonly node: string;
  readonly client: Pick<KubernetesClient, 'write'>;
  readonly store: Pick<PodStore, 'get' | 'syncedSources'>;
  readonly statuses: () => readonly EndpointStatus[];
  readonly memory: Pick<EventMemory, 'recall' | 'note'>;
  readonly log: Log;
  /** Steady. */
  readonly nowMs: Clock;
  /** Unix time, for the events. */
  readonly unixMs: Clock;
}

/** A state that does not last this long is on its way to another one. */
const SETTLED_MS = 5_000;
/** Between two warnings on one pod. */
const WARNING_GAP_MS = 60_000;
const MAX_QUEUED = 256;
/** As long as the API server keeps events by default (`--event-ttl`). */
const NEWS_MS = 3_600_000;
const PER_SECOND = 1;
const BURST = 10;
/** Of one pod, whose reasons may have any text. */
const MAX_REMEMBERED = 16;

interface Seen {
  readonly state: EndpointState;
  readonly sinceMs: number;
}

interface Queued {
  readonly event: PodEvent;
  readonly sinceMs: number;
}

export class PodEvents {
  readonly #options: PodEventsOptions;
  readonly #told: Map<PodUid, Told>;
  #seen = new Map<PodUid, Seen>();
  readonly #warnedAtMs = new Map<PodUid, number>();
  readonly #queue = new Map<string, Queued>();
  #tokens = BURST;
  #tokensAtMs: number;

  constructor(options: PodEventsOptions) {
    this.#options = options;
    this.#told = options.memory.recall();
    this.#tokensAtMs = options.nowMs();
  }

  /** Sends what waits. Throws KubernetesError where the API server did not take one; it stays in the queue. */
  async send(signal: AbortSignal): Promise<void> {
    this.#dropOld();
    this.#fillTokens();
    for (const queued of [...this.#queue.values()]) {
      if (this.#tokens < 1) {
        return;
      }
      this.#tokens -= 1;
      await this.#send(queued, signal);
      this.#queue.delete(queued.event.name);
      this.#remember(queued.event);
    }
  }

  /** Puts into the queue what there is to say now: also while the API server is away. */
  look(): void {
    const { statuses, store, nowMs } = this.#options;
    // Who only remembers a pod is no authority on its name.
    if (!store.syncedSources().has('kubernetes')) {
      return;
    }
    const seen = new Map<PodUid, Seen>();
    const waiting = [...this.#queue.values()].filter(({ event }) => event.state !== 'INTERCEPTED');
    const aboutToHear = new Set(waiting.map(({ event }) => event.pod.uid));
    for (const status of statuses()) {
      const { podUid, state } = status;
      const before = this.#seen.get(podUid);
      const now = before?.state === state ? before : { state, sinceMs: nowMs() };
      seen.set(podUid, now);
      const pod = store.get(podUid);
      if (pod !== undefined && nowMs() - now.sinceMs >= SETTLED_MS && isMeant(pod, status)) {
        this.#consider(pod, status, aboutToHear.has(podUid));
      }
    }
    this.#seen = seen;
    this.#forgetGone();
  }

  #consider(pod: Pod, { state, reason = '', generation }: EndpointStatus, willHear: boolean): void {
    const { uid } = pod;
    const warned = this.#told.get(uid)?.warned ?? [];
    if (state === 'REFUSED' || state === 'DEGRADED') {
      const event = this.#event(pod, state, reason, generation);
      const lastMs = this.#warnedAtMs.get(uid) ?? Number.NEGATIVE_INFINITY;
      if (!warned.includes(event.name) && this.#options.nowMs() - lastMs >= WARNING_GAP_MS) {
        if (this.#enqueue(event)) {
          this.#warnedAtMs.set(uid, this.#options.nowMs());
        }
      }
    } else if (state === 'INTERCEPTED' && (warned.length > 0 || willHear)) {
      this.#enqueue(this.#event(pod, state, 'Intercepted again', generation));
    }
  }

  #event(pod: Pod, state: ToldState, reason: string, generation: number | undefined): PodEvent {
    const { node, unixMs } = this.#options;
    return podEvent(pod, { state, generation, reason }, adviceFor(state, reason, node), unixMs());
  }

  /** False where it waits already, or nothing more can: then it is due again at the next look. */
  #enqueue(event: PodEvent, sinceMs = this.#options.nowMs()): boolean {
    if (this.#queue.has(event.name) || this.#queue.size >= MAX_QUEUED) {
      return false;
    }
    this.#queue.set(event.name, { event, sinceMs });
    return true;
  }

  #dropOld(): void {
    for (const [name, { sinceMs }] of this.#queue) {
      if (this.#options.nowMs() - sinceMs > NEWS_MS) {
        this.#queue.delete(name);
      }
    }
  }

  #fillTokens(): void {
    const now = this.#options.nowMs();
    this.#tokens = Math.min(BURST, this.#tokens + ((now - this.#tokensAtMs) / 1_000) * PER_SECOND);
    this.#tokensAtMs = now;
  }

  async #send({ event, sinceMs }: Queued, signal: AbortSignal): Promise<void> {
    const { client, node, log } = this.#options;
    const path = `/apis/events.k8s.io/v1/namespaces/${encodeURIComponent(event.pod.namespace)}/events`;
    const before = this.#told.get(event.pod.uid)?.counts[event.name] ?? 0;
    try {
      const call = { what: 'create events', path };
      await client
        .write(call, { kind: 'create', object: eventObject(event, node) }, signal)
        .catch((error) => {
          if (codeOf(error) !== 'CONFLICT') {
            throw error;
          }
          // Without a memory of it another agent of this node has told it, and nothing has happened since.
          const again = { what: 'patch events', path: `${path}/${event.name}` };
          const series = eventSeries(before + 1, event.atMs);
          return before === 0 ? undefined : client.write(again, { kind: 'merge', patch: series }, signal);
        });
    } catch (error) {
      switch (codeOf(error)) {
        case 'NOT_FOUND':
        case 'TERMINATING':
          return;
        case 'REJECTED':
        case 'FAILED':
          log.warn({ err: error, event: event.name }, 'kubernetes: an event is not accepted and left out');
          return;
        case 'FORBIDDEN':
          // Perhaps in this namespace alone: the others have their turn first.
          this.#queue.delete(event.name);
          this.#enqueue(event, sinceMs);
          throw error;
        default:
          throw error;
      }
    }
  }

  #remember({ pod: { uid }, name, state }: PodEvent): void {
    const { warned = [], counts = {} } = this.#told.get(uid) ?? {};
    const { [name]: count = 0, ...others } = counts;
    const recent = Object.entries(others).slice(1 - MAX_REMEMBERED);
    this.#told.set(uid, {
      warned: state === 'INTERCEPTED' ? [] : [...warned, name].slice(-MAX_REMEMBERED),
      counts: { ...Object.fromEntries(recent), [name]: count + 1 },
    });
    this.#options.memory.note(this.#told);
  }

  #forgetGone(): void {
    const gone = [...this.#told.keys()].filter((uid) => this.#options.store.get(uid) === undefined);
    for (const uid of gone) {
      this.#told.delete(uid);
    }
    for (const uid of this.#warnedAtMs.keys()) {
      if (!this.#seen.has(uid)) {
        this.#warnedAtMs.delete(uid);
      }
    }
    if (gone.length > 0) {
      this.#options.memory.note(this.#told);
    }
  }
}

/**
 * Only of a pod that the API server has told of. One on the host's network is REFUSED wherever everything is enrolled: that
 * is news only where somebody has asked for it by name.
 */
function isMeant(pod: Pod, { desired }: EndpointStatus): boolean {
  const labelled = { enrol: 'labelled', failure: 'closed', other: 'pass' } as const;
  return (
    desired &&
    pod.sources.includes('kubernetes') &&
    (!pod.hostNetwork || interceptionOf(pod, labelled).enrolled)
  );
}

function codeOf(error: unknown): KubernetesError['code'] | undefined {
  return error instanceof KubernetesError ? error.code : undefined;
}
