/** What the canaries have told of each pod, and when they are asked again. */

import type { Clock } from '../base/clock.js';
import type { Canaries, CanaryResult, CanaryTarget } from '../datapath/canary.js';
import type { PodUid } from '../pods/pod.js';
import type { Installed } from './endpoint-installer.js';

/** Every pod this often, but never more than so many at a time: cost does not grow with pods. */
const RENEW_MS = 1_000;
const AT_A_TIME = 25;

export interface Proof {
  readonly result: CanaryResult;
  /** Of the clock that was given. */
  readonly atMs: number;
}

export class Proofs {
  readonly #canaries: Pick<Canaries, 'prove' | 'remove'>;
  readonly #nowMs: Clock;
  readonly #proofs = new Map<PodUid, Proof>();
  /** The round of questions that each pod was asked in last, while it is under way. */
  readonly #asked = new Map<PodUid, object>();
  #renewing = false;

  constructor(canaries: Pick<Canaries, 'prove' | 'remove'>, nowMs: Clock) {
    this.#canaries = canaries;
    this.#nowMs = nowMs;
  }

  get(uid: PodUid): Proof | undefined {
    return this.#proofs.get(uid);
  }

  has(uid: PodUid): boolean {
    return this.#proofs.has(uid);
  }

  forget(uid: PodUid): void {
    this.#asked.delete(uid);
    this.#proofs.delete(uid);
  }

  /** The interface is nobody's any more. */
  removeInterface(ifindex: number): void {
    this.#canaries.remove(ifindex);
  }

  /** Asks again where the last answer is old, the oldest first. Returns the pods that were asked. */
  async renew(pods: readonly Installed[]): Promise<PodUid[]> {
    if (this.#renewing) {
      return [];
    }
    this.#renewing = true;
    try {
      const now = this.#nowMs();
      const age = ({ decision }: Installed) => now - (this.#proofs.get(decision.pod.uid)?.atMs ?? 0);
      // One that is not in place is not asked: it must not take the turn of one that is.
      const due = pods
        .filter((pod) => isInPlace(pod) && age(pod) >= RENEW_MS * 0.9)
        .sort((a, b) => age(b) - age(a));
      return await this.ask(due.slice(0, AT_A_TIME));
    } finally {
      this.#renewing = false;
    }
  }

  /** Returns the pods that are proven or not now: those whose programs and tables are in place, and were all along. */
  async ask(pods: readonly Installed[]): Promise<PodUid[]> {
    const questions = pods.flatMap((installed) =>
      targetsOf(installed).map((target) => ({ uid: installed.decision.pod.uid, target })),
    );
    const round = {};
    for (const { uid } of questions) {
      this.#asked.set(uid, round);
    }
    const results = await this.#canaries.prove(questions.map(({ target }) => target));
    const worst = new Map<PodUid, CanaryResult>();
    questions.forEach(({ uid }, index) => {
      const result = results[index] as CanaryResult;
      const before = worst.get(uid);
      if (before === undefined || WEIGHT[result.kind] > WEIGHT[before.kind]) {
        worst.set(uid, result);
      }
    });
    // Forgotten or asked again meanwhile, a pod is not what this answer was about.
    const current = [...worst].filter(([uid]) => this.#asked.get(uid) === round);
    for (const [uid, result] of current) {
      this.#asked.delete(uid);
      this.#proofs.set(uid, { result, atMs: this.#nowMs() });
    }
    return current.map(([uid]) => uid);
  }
}

const WEIGHT = { proven: 0, silent: 1, 'program only': 2, unproven: 3 } as const;

function isInPlace({ row, missing }: Installed): boolean {
  return row !== undefined && missing === undefined;
}

function targetsOf(installed: Installed): CanaryTarget[] {
  const { decision, row } = installed;
  if (row === undefined || !isInPlace(installed)) {
    return [];
  }
  const { netns } = decision.pod;
  return decision.endpoints.map(({ at, plan }) => ({
    ifindex: plan.ifindex,
    ips: plan.ips,
    endpoint: row.id,
    generation: row.generation,
    instance: plan.instance,
    inbound: plan.inbound,
    inside:
      netns === undefined || at.podInterface === undefined ? undefined : { netns, name: at.podInterface },
  }));
}
