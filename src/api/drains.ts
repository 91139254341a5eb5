/** Which pods are drained, told and ordered. */

import type { Draining, DrainOrder } from '../drain/draining.js';
import type { Drain, DrainScope } from '../drain/drains.js';
import { IdentityError } from '../identity/errors.js';
import { appOf, type Pod, type PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { DatapathView } from '../reconcile/datapath-view.js';
import { checkedKeys, invalid, podUidOf, refused } from './checks.js';
import type { InstancesView } from './instances.js';
import type { DrainMessage, DrainsMessage, ResumedMessage } from './messages.js';
import { podNamed } from './pod-named.js';
import { ApiProblem } from './problem.js';
import { MAX_APP } from './query.js';

/** A week. */
export const MAX_DEADLINE_SECONDS = 604_800;
const SCOPES = ['pod', 'app', 'all'] as const;

export type DrainsView = Pick<Draining, 'list' | 'drain' | 'resume' | 'podsOf' | 'openFlows' | 'problem'>;

export interface DrainsApiOptions {
  readonly drains: DrainsView;
  readonly store: Pick<PodStore, 'list' | 'get'>;
  readonly datapath: Pick<DatapathView, 'endpointOf'>;
  readonly instances: Pick<InstancesView, 'current' | 'servedBy'>;
  /** Whether every source has delivered. */
  readonly synced: () => boolean;
}

export class DrainsApi {
  readonly #options: DrainsApiOptions;

  constructor(options: DrainsApiOptions) {
    this.#options = options;
  }

  list(): DrainsMessage {
    const { drains } = this.#options;
    const open = drains.openFlows();
    return {
      problem: drains.problem ?? '',
      drains: drains.list().map((drain) => this.#message(drain, open)),
    };
  }

  /** Throws IdentityError and ApiProblem, which name the field. */
  async drain(body: unknown): Promise<DrainMessage> {
    const { drains } = this.#options;
    const drain = await drains.drain(this.#order(body));
    return this.#message(drain, drains.openFlows());
  }

  /** As `drain`. */
  async resume(body: unknown): Promise<ResumedMessage> {
    const scope = this.#scope(checkedKeys(body, SCOPES, ''), true);
    return { resumed: await this.#options.drains.resume(scope) };
  }

  #order(body: unknown): DrainOrder {
    const fields = checkedKeys(body, [...SCOPES, 'to', 'deadlineSeconds'], '');
    const scope = this.#scope(fields, false);
    const { to, deadlineSeconds } = fields;
    if (to !== undefined && (typeof to !== 'string' || to === '')) {
      throw invalid('to', 'the name of an instance', to);
    }
    if (deadlineSeconds !== undefined && !isDeadline(deadlineSeconds)) {
      throw invalid('deadlineSeconds', `a whole number from 0 to ${MAX_DEADLINE_SECONDS}`, deadlineSeconds);
    }
    if (to !== undefined && !this.#options.instances.current.some(({ name }) => name === to)) {
      throw new ApiProblem(404, 'INSTANCE_NOT_FOUND', `to: no instance is named ${to}`);
    }
    this.#requireDirections(scope, to);
    return {
      scope,
      ...(to !== undefined && { to }),
      ...(deadlineSeconds !== undefined && { deadlineMs: deadlineSeconds * 1_000 }),
    };
  }

  /** What a pod is sent through a proxy, and is open still, cannot go on where the new instance has no inbound listener. */
  #requireDirections(scope: DrainScope, to: string | undefined): void {
    const { instances, store } = this.#options;
    const other = instances.current.find(({ name }) => name === to);
    if (other === undefined) {
      return;
    }
    for (const pod of store.list().filter((candidate) => isMeant(candidate, scope))) {
      const own = instances.servedBy(appOf(pod) ?? '');
      if (own !== undefined && own.inbound.length > 0 !== other.inbound.length > 0) {
        const [has, hasNot] = other.inbound.length > 0 ? [other, own] : [own, other];
        const which = `${has.name} has an inbound listener and ${hasNot.name} has none`;
        throw refused('to', `${which}: ${own.name} serves ${pod.namespace}/${pod.name}`);
      }
    }
  }

  #scope(fields: Record<string, unknown>, isResumed: boolean): DrainScope {
    const given = SCOPES.filter((key) => fields[key] !== undefined);
    const [key, other] = given;
    if (key === undefined) {
      throw refused('the request', `expected one of ${SCOPES.join(', ')}, got none`);
    }
    if (other !== undefined) {
      throw refused(other, `expected one of ${SCOPES.join(', ')}, got ${given.join(' and ')}`);
    }
    switch (key) {
      case 'pod':
        return { pod: this.#pod(fields.pod, isResumed) };
      case 'app':
        return { app: this.#app(fields.app, isResumed) };
      case 'all':
        if (fields.all !== true) {
          throw invalid('all', 'true', fields.all);
        }
        return { all: true };
    }
  }

  /** Also of one that has gone, to be resumed. */
  #pod(given: unknown, isResumed: boolean): PodUid {
    const uid = podUidOf(given, 'pod');
    return isResumed && this.#isDrained(uid) ? uid : podNamed(given, this.#options).uid;
  }

  #isDrained(uid: PodUid): boolean {
    return this.#options.drains.list().some(({ scope }) => 'pod' in scope && scope.pod === uid);
  }

  #app(given: unknown, isResumed: boolean): string {
    const { store, synced } = this.#options;
    if (typeof given !== 'string' || given === '' || given.length > MAX_APP) {
      throw invalid('app', `a text of 1 to ${MAX_APP} characters`, given);
    }
    if (!isResumed && !store.list().some((pod) => appOf(pod) === given)) {
      if (!synced()) {
        throw new IdentityError('NOT_SYNCED', 'app: not every source has delivered its pods yet');
      }
      throw new IdentityError('WORKLOAD_NOT_FOUND', `app: no pod of this node is of ${given}`);
    }
    return given;
  }

  #message(drain: Drain, open: ReadonlyMap<PodUid, number>): DrainMessage {
    const { drains, datapath } = this.#options;
    const { scope, to, sinceMs, deadlineMs } = drain;
    const stateOf = ({ uid }: Pod) => datapath.endpointOf(uid)?.state ?? 'PENDING';
    return {
      scope,
      to: to ?? '',
      since: sinceMs,
      deadline: deadlineMs ?? null,
      pods: drains.podsOf(drain).map((pod) => ({
        uid: pod.uid,
        namespace: pod.namespace,
        podName: pod.name,
        state: stateOf(pod),
        openFlows: open.get(pod.uid) ?? 0,
      })),
    };
  }
}

function isMeant(pod: Pod, scope: DrainScope): boolean {
  if ('pod' in scope) {
    return pod.uid === scope.pod;
  }
  return 'all' in scope || appOf(pod) === scope.app;
}

function isDeadline(given: unknown): given is number {
  return typeof given === 'number' && Number.isInteger(given) && given >= 0 && given <= MAX_DEADLINE_SECONDS;
}
