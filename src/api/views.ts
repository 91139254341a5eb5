/** Store and datapath, put together into what the API shows. */

import { inTurns } from '../base/in-turns.js';
import type { FlowDirection, FlowEvent } from '../datapath/flows.js';
import type { ListenerStatus } from '../datapath/listeners.js';
import { IdentityError } from '../identity/errors.js';
import type { IdentityService } from '../identity/resolve.js';
import type { Told } from '../identity/told.js';
import { interceptionReport } from '../identity/workload.js';
import { formatSocketAddress } from '../net/socket-address.js';
import type { InterceptionDefaults } from '../pods/annotations.js';
import type { PodUid } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { PodSource } from '../pods/source.js';
import type { DatapathView } from '../reconcile/datapath-view.js';
import type { EndpointState } from '../reconcile/status.js';
import type { ProcessMessage } from '../supervise/state.js';
import type { DrainsView } from './drains.js';
import type { ExplainQuestion } from './explain.js';
import { type InstancesView, instancesOf } from './instances.js';
import type {
  ExplanationMessage,
  FlowMessage,
  InstancesMessage,
  ListenerMessage,
  ServicesMessage,
  StatusMessage,
  WorkloadMessage,
  WorkloadsMessage,
} from './messages.js';
import { podNamed } from './pod-named.js';
import { servicesOf } from './services.js';

export interface ViewsOptions {
  readonly store: Pick<PodStore, 'epoch' | 'revision' | 'list' | 'get' | 'removed' | 'syncedSources'>;
  readonly datapath: DatapathView;
  /** Whether every source has delivered. */
  readonly synced: () => boolean;
  readonly identity: Pick<IdentityService, 'workload'>;
  readonly sources: readonly Pick<PodSource, 'name' | 'lastError'>[];
  readonly blockers: () => readonly string[];
  readonly interception: InterceptionDefaults;
  readonly instances: InstancesView;
  /** Of the instances that have a command. */
  readonly processes: () => readonly ProcessMessage[];
  readonly drains: Pick<DrainsView, 'openFlows'>;
  readonly told: Pick<Told, 'nameOf' | 'askedBy'>;
  readonly node: string;
  readonly version: string;
  /** Milliseconds since the agent started. */
  readonly uptimeMs: () => number;
}

export class Views {
  readonly #options: ViewsOptions;

  constructor(options: ViewsOptions) {
    this.#options = options;
  }

  /** Throws IdentityError. */
  workload(uid: PodUid, open?: ReadonlyMap<PodUid, number>): WorkloadMessage {
    const { identity, datapath, drains, interception } = this.#options;
    const { pod, workload } = identity.workload(uid);
    const openFlows = (open ?? drains.openFlows([pod])).get(uid);
    return {
      ...workload,
      interception: interceptionReport(
        pod,
        datapath.endpointOf(uid),
        interception,
        datapath.spliceOf(uid),
        openFlows,
      ),
    };
  }

  async workloads(): Promise<WorkloadsMessage> {
    const { epoch, revision } = this.#options.store;
    const pods = [...this.#options.store.list()].sort(
      (a, b) => compare(a.namespace, b.namespace) || compare(a.name, b.name) || compare(a.uid, b.uid),
    );
    const open = this.#options.drains.openFlows();
    // One that is forgotten meanwhile is left out.
    const workloads = await inTurns(pods, (pod) => this.#workloadOrNone(pod.uid, open));
    return { epoch, revision, workloads: workloads.filter((workload) => workload !== undefined) };
  }

  /** Throws IdentityError. */
  explain(question: ExplainQuestion): ExplanationMessage {
    const { datapath } = this.#options;
    const { flow } = question;
    const pod = podNamed(question.pod, this.#options);
    return {
      uid: pod.uid,
      namespace: pod.namespace,
      podName: pod.name,
      state: datapath.endpointOf(pod.uid)?.state ?? '',
      protocol: flow.protocol ?? 'tcp',
      direction: flow.direction === 'outbound' ? 'EGRESS' : 'INGRESS',
      far: flow.ip,
      port: flow.port,
      ...datapath.explain(pod.uid, flow),
    };
  }

  async services(app: string | undefined): Promise<ServicesMessage> {
    return servicesOf(await this.workloads(), this.#listeners(), this.#options.node, app);
  }

  async instances(): Promise<InstancesMessage> {
    const { workloads } = await this.workloads();
    return instancesOf(this.#options.instances, this.#options.processes(), this.#listeners(), workloads);
  }

  #workloadOrNone(uid: PodUid, open: ReadonlyMap<PodUid, number>): WorkloadMessage | undefined {
    try {
      return this.workload(uid, open);
    } catch (error) {
      if (error instanceof IdentityError) {
        return undefined;
      }
      throw error;
    }
  }

  /** The newest first. */
  async flows(limit: number): Promise<FlowMessage[]> {
    const flows = await this.#options.datapath.listFlows(limit);
    return inTurns(flows, (flow) =>
      this.flow({ ...flow, verdict: flow.mode === 'EXPLICIT' ? 'EXPLICIT' : 'FLOW_STARTED' }),
    );
  }

  flow(event: FlowEvent): FlowMessage {
    const { datapath, store, told } = this.#options;
    const uid = datapath.podOfEndpoint(event.endpointId, event.generation);
    const isOwn = event.direction === 'EGRESS' && uid !== undefined;
    const name = isOwn ? told.nameOf(uid, event.dst.ip, event.startedMs) : undefined;
    const asked = event.mode === 'EXPLICIT' ? told.askedBy(event) : undefined;
    const pod = uid === undefined ? undefined : (store.get(uid) ?? store.removed(uid)?.pod);
    return {
      startedMs: event.startedMs,
      protocol: event.protocol,
      src: formatSocketAddress(event.src),
      dst: formatSocketAddress(event.dst),
      ...(name === undefined ? {} : { name }),
      ...(asked === undefined ? {} : { asked }),
      direction: event.direction,
      mode: event.mode,
      instance: event.instance,
      verdict: event.verdict,
      namespace: pod?.namespace ?? '',
      podName: pod?.name ?? '',
      podUid: uid ?? '',
      endpointId: event.endpointId,
      generation: event.generation,
      ifindex: event.ifindex,
    };
  }

  async status(): Promise<StatusMessage> {
    const { store, datapath, sources, node, version, uptimeMs } = this.#options;
    const blockers = this.#options.blockers();
    const synced = store.syncedSources();
    const podsLate = datapath.latePods();
    return {
      version,
      node,
      pid: process.pid,
      uptimeMs: Math.round(uptimeMs()),
      epoch: store.epoch,
      revision: store.revision,
      ready: blockers.length === 0,
      blockers,
      sources: sources.map(({ name, lastError }) => ({
        name,
        synced: synced.has(name),
        lastError: lastError ?? '',
      })),
      familiesOff: datapath.familiesOff().map(({ family, reason }) => ({ family, reason })),
      listeners: this.#listeners(),
      endpoints: this.#endpointCounts(),
      repairs: datapath.repairs(),
      ...(podsLate === undefined ? {} : { podsLate }),
      socketOption: datapath.socketOption(),
      splice: datapath.splice(),
      ...(await this.#packetTotals()),
      eventsLost: await datapath.eventsLost(),
    };
  }

  told(listeners: readonly ListenerStatus[]): ListenerMessage[] {
    const { failure } = this.#options.interception;
    return listeners.map((listener) => ({ ...listener, failure }));
  }

  #listeners(): ListenerMessage[] {
    return this.told(this.#options.datapath.listeners());
  }

  #endpointCounts(): Record<EndpointState, number> {
    const counts = {
      INTERCEPTED: 0,
      OBSERVED: 0,
      PENDING: 0,
      REFUSED: 0,
      DEGRADED: 0,
      DRAINED: 0,
      NOT_ENROLLED: 0,
    };
    for (const { state } of this.#options.datapath.endpoints()) {
      counts[state] += 1;
    }
    return counts;
  }

  async #packetTotals(): Promise<Pick<StatusMessage, 'packets' | 'packetsReceived'>> {
    const totals: Record<FlowDirection, Record<string, number>> = { EGRESS: {}, INGRESS: {} };
    for (const { direction, packets } of await this.#options.datapath.counters()) {
      const sums = totals[direction];
      for (const [verdict, count] of Object.entries(packets)) {
        sums[verdict] = (sums[verdict] ?? 0) + count;
      }
    }
    return { packets: totals.EGRESS, packetsReceived: totals.INGRESS };
  }
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
