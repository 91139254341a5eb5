/** A store, a datapath made of plain values, and the HTTP API over both in a temporary folder. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { PeerCredentials } from '../../src/api/callers.js';
import type { DrainsView } from '../../src/api/drains.js';
import { type HttpApi, type HttpApiOptions, startHttpApi } from '../../src/api/http.js';
import type { InstanceState, InstancesView } from '../../src/api/instances.js';
import { Capacity } from '../../src/capacity/capacity.js';
import { parseConfig } from '../../src/config/load.js';
import type { EndpointCounters } from '../../src/datapath/endpoints.js';
import type { FlowEvent, FlowListener, FlowRecord } from '../../src/datapath/flows.js';
import type { ListenerStatus } from '../../src/datapath/listeners.js';
import { AddressHistory } from '../../src/identity/history.js';
import { PastIdentity } from '../../src/identity/past.js';
import { type IdentityOptions, IdentityService } from '../../src/identity/resolve.js';
import { SocketLookups } from '../../src/identity/socket-ends.js';
import { Told } from '../../src/identity/told.js';
import { IdentityWatch, type IdentityWatchOptions } from '../../src/identity/watch.js';
import { InstanceError } from '../../src/instances/errors.js';
import type { FamilyOff } from '../../src/kernel/families.js';
import { netnsCookieAt, tcpEnds } from '../../src/native/sockets.js';
import type { FlowProtocol } from '../../src/net/protocol.js';
import { formatSocketAddress, type SocketAddress } from '../../src/net/socket-address.js';
import type { Pod, PodUid } from '../../src/pods/pod.js';
import { PodStore } from '../../src/pods/pod-store.js';
import type { DatapathView } from '../../src/reconcile/datapath-view.js';
import { REPAIR_KINDS, type RepairKind } from '../../src/reconcile/repairs.js';
import type { EndpointStatus } from '../../src/reconcile/status.js';
import { Metrics } from '../../src/telemetry/metrics.js';

export const NONE_DRAINED: DrainsView = {
  problem: undefined,
  list: () => [],
  podsOf: () => [],
  openFlows: () => new Map(),
  drain: () => Promise.reject(new Error('nothing is drained here')),
  resume: async () => 0,
};

export const uid = (text: string): PodUid => text as PodUid;

export function pod(name: string, fields: Partial<Pod> = {}): Pod {
  return {
    uid: uid(`uid-${name}`),
    namespace: 'default',
    name,
    serviceAccount: 'web',
    labels: { app: 'web', 'nodesentry.io/intercept': 'enabled' },
    annotations: {},
    ips: ['10.66.0.3'],
    runtime: 'runsc',
    runtimeHandler: 'gvisor',
    sandboxId: 'sandbox',
    hostNetwork: false,
    sources: ['static'],
    ...fields,
  };
}

export function endpoint(podUid: PodUid, fields: Partial<EndpointStatus> = {}): EndpointStatus {
  return {
    podUid,
    state: 'INTERCEPTED',
    reason: undefined,
    interfaces: [{ name: 'veth0', ifindex: 7, topology: 'routed', podInterface: 'eth0' }],
    endpointId: 1,
    generation: 3,
    instance: 'default',
    inbound: false,
    failure: 'closed',
    desired: true,
    programmed: true,
    verified: true,
    ...fields,
  };
}

export function flowRecord(
  src: SocketAddress,
  dst: SocketAddress,
  fields: Partial<FlowRecord> = {},
): FlowRecord {
  return {
    protocol: 'tcp',
    src,
    dst,
    endpointId: 1,
    generation: 3,
    ifindex: 7,
    instance: 'default',
    direction: 'EGRESS',
    mode: 'INTERCEPTED',
    startedMs: 1_700_000_000_000,
    ...fields,
  };
}

export const SRC: SocketAddress = { ip: '10.66.0.3', port: 41_886 };
export const DST: SocketAddress = { ip: '10.200.1.1', port: 80 };

const NO_REPAIRS = Object.fromEntries(REPAIR_KINDS.map((kind) => [kind, 0])) as Record<RepairKind, number>;

export class FakeDatapath implements DatapathView {
  late: number | undefined;
  readonly flows: FlowRecord[] = [];
  readonly statuses: EndpointStatus[] = [];
  readonly owners = new Map<string, PodUid>();
  readonly subscribers = new Set<FlowListener>();
  listening: ListenerStatus[] = [];
  off: FamilyOff[] = [];
  packets: EndpointCounters[] = [];

  lookupFlow(src: SocketAddress, dst: SocketAddress, protocol: FlowProtocol = 'tcp'): FlowRecord | undefined {
    const key = (a: SocketAddress, b: SocketAddress) => `${formatSocketAddress(a)} ${formatSocketAddress(b)}`;
    return this.flows.find((flow) => flow.protocol === protocol && key(flow.src, flow.dst) === key(src, dst));
  }

  async listFlows(limit: number): Promise<FlowRecord[]> {
    return this.flows.slice(0, limit);
  }

  onFlowEvent(listener: FlowListener): () => void {
    this.subscribers.add(listener);
    return () => this.subscribers.delete(listener);
  }

  emit(event: FlowEvent): void {
    for (const listener of this.subscribers) {
      listener.event(event);
    }
  }

  familiesOff(): readonly FamilyOff[] {
    return this.off;
  }

  endpoints(): readonly EndpointStatus[] {
    return this.statuses;
  }

  endpointOf(podUid: PodUid): EndpointStatus | undefined {
    return this.statuses.find((status) => status.podUid === podUid);
  }

  podOfEndpoint(endpointId: number, generation: number): PodUid | undefined {
    return this.owners.get(`${endpointId}/${generation}`);
  }

  isLiveEndpoint(endpointId: number, generation: number): boolean {
    return this.statuses.some((one) => one.endpointId === endpointId && one.generation === generation);
  }

  listeners(): readonly ListenerStatus[] {
    return this.listening;
  }

  async counters() {
    return this.packets;
  }

  repairs() {
    return { ...NO_REPAIRS, attachment: 3 };
  }

  socketOption() {
    return { cgroups: 1, problem: '' };
  }

  explain(_uid: PodUid, { port }: { port: number }) {
    return port === 80
      ? { outcome: 'INTERCEPTED' as const, rule: 'nothing excludes it', instance: 'default', inForce: true }
      : {
          outcome: 'EXCLUDED' as const,
          rule: 'nodesentry.io/outbound 80 does not have it',
          instance: '',
          inForce: false,
        };
  }

  spliceOf() {
    return { used: false, reason: 'the node has it disabled' };
  }

  splice() {
    const counts = { ends: 0, messages: 0, bytes: 0, leftToTcp: 0, heldBack: 0 };
    return { mode: 'disabled' as const, pods: 0, problem: '', flaws: [], ...counts };
  }

  latePods() {
    return this.late;
  }

  async eventsLost() {
    return { kernel: 2, agent: 1 };
  }
}

const ADOPTED: ListenerStatus = {
  instance: 'default',
  direction: 'outbound',
  family: 4,
  address: '127.0.0.1:16001',
  adopted: true,
  announced: true,
  pid: 1,
  process: 'proxy',
  sockets: { all: 1, transparent: 1 },
};

/** Of an instance whose proxy nobody has asked anything yet. */
export const NOTHING_OF_IT: InstanceState = {
  generation: 1,
  health: { state: 'UNKNOWN', reason: '' },
  flowsStarted: 0,
  openFlows: 0,
  memoryBytes: null,
  upgrade: null,
};

export interface Fixture {
  readonly runDir: string;
  readonly api: HttpApi;
  readonly store: PodStore;
  readonly datapath: FakeDatapath;
  readonly identity: IdentityService;
  readonly told: Told;
  readonly warnings: object[];
  readonly state: { synced: boolean; blockers: string[]; nowMs: number };
  close(): Promise<void>;
}

export interface FixtureOptions {
  readonly config?: string;
  readonly credentials?: (fd: number) => PeerCredentials;
  /** Default: one pod `web-0`, enrolled and intercepted, with one recorded flow from SRC to DST. */
  readonly empty?: boolean;
  readonly watch?: Partial<IdentityWatchOptions>;
  readonly instances?: InstancesView;
  readonly upgrades?: HttpApiOptions['upgrades'];
  readonly processes?: HttpApiOptions['processes'];
  /** Default: none is drained, nor can be. */
  readonly drains?: (store: PodStore, datapath: FakeDatapath) => DrainsView;
  /** Default `epoch-1`. */
  readonly epoch?: string | undefined;
}

/** An identity service over a fake datapath, as the agent builds it. */
export function identityParts(
  state: Fixture['state'],
  sources: IdentityOptions['sources'] = [{ name: 'static', lastError: undefined }],
  criServiceAccount?: string,
  epoch = 'epoch-1',
) {
  const store = new PodStore({ nowMs: () => state.nowMs, epoch, criServiceAccount });
  const datapath = new FakeDatapath();
  const identity = new IdentityService({
    store,
    datapath,
    trustDomain: 'cluster.local',
    node: 'node-a',
    synced: () => state.synced,
    sources,
    netnsCookieAt,
  });
  return { store, datapath, identity };
}

export function addWeb(store: PodStore, datapath: FakeDatapath): void {
  store.replaceSource('static', [pod('web-0')]);
  datapath.statuses.push(endpoint(uid('uid-web-0')));
  datapath.owners.set('1/3', uid('uid-web-0'));
  datapath.flows.push(flowRecord(SRC, DST));
}

export async function startFixture(options: FixtureOptions = {}): Promise<Fixture> {
  const folder = mkdtempSync(join(tmpdir(), 'nodesentry-api-'));
  const state = { synced: true, blockers: [] as string[], nowMs: 1_700_000_000_000 };
  const { store, datapath, identity } = identityParts(state, undefined, undefined, options.epoch);
  if (options.empty !== true) {
    addWeb(store, datapath);
  }
  const warnings: object[] = [];
  const remember = (fields: object): void => {
    warnings.push(fields);
  };
  const nowMs = () => state.nowMs;
  const history = new AddressHistory({
    store,
    identity,
    synced: () => state.synced,
    seconds: 3_600,
    entries: 1_000,
    path: join(folder, 'addresses.ndjson'),
    log: { warn: remember, info: remember },
    nowMs,
  });
  const watch = new IdentityWatch({ store, identity, ...options.watch });
  const config = parseConfig(
    options.config ?? 'node: node-a\nsources: {static: {file: pods.yaml}}',
    'config.yaml',
  );
  const told = new Told({ nowMs });
  const capacity = new Capacity({ config, store });
  const api = await startHttpApi({
    runDir: folder,
    config,
    store,
    datapath,
    identity,
    told,
    past: new PastIdentity({ store, history, datapath, told, synced: () => state.synced, nowMs }),
    sockets: new SocketLookups(tcpEnds),
    instances: options.instances ?? {
      current: config.instances,
      servedBy: () => config.instances[0],
      allServing: () => config.instances,
      status: () => ({ applied: 0, problem: undefined }),
      states: async () =>
        new Map(config.instances.map(({ name }) => [name, { ...NOTHING_OF_IT, flowsStarted: 7 }])),
    },
    upgrades: options.upgrades ?? {
      start: (name) => ({ instance: name, phase: 'CHECKING', detail: '', startedMs: 1 }),
      abort: () => {
        throw new InstanceError('INSTANCE_BUSY', 'no upgrade of the instance is under way');
      },
    },
    announcing: { byProcess: async () => [ADOPTED], withdraw: async () => [ADOPTED] },
    processes: options.processes ?? (() => []),
    drains: options.drains?.(store, datapath) ?? NONE_DRAINED,
    synced: () => state.synced,
    capacity: () => capacity.report(),
    watch,
    sources: [{ name: 'static', lastError: undefined }],
    blockers: () => state.blockers,
    metrics: new Metrics({ store, datapath, version: '1.2.3' }),
    version: '1.2.3',
    credentials: options.credentials ?? (() => ({ pid: process.pid, uid: 0, gid: 0 })),
    log: { warn: remember, error: remember },
  }).catch((error: unknown) => {
    rmSync(folder, { recursive: true });
    throw error;
  });
  return {
    runDir: folder,
    api,
    store,
    datapath,
    identity,
    told,
    warnings,
    state,
    close: async () => {
      await api.close();
      watch.close();
      history.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
