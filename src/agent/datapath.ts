/** The datapath's pieces, put together for `agent.ts`. */

import type { Logger } from 'pino';
import { steadyUnixMs } from '../base/clock.js';
import type { Opened } from '../base/opened.js';
import { type Config, type Instance, instanceFor, portInstancesFor } from '../config/config.js';
import { Canaries } from '../datapath/canary.js';
import type { EndpointTables } from '../datapath/endpoints.js';
import type { Generations } from '../datapath/generations.js';
import { IdentityOption } from '../datapath/identity-option.js';
import { InboundSteering } from '../datapath/inbound.js';
import type { InstanceSlots } from '../datapath/instance-slots.js';
import type { LifecyclePort } from '../datapath/lifecycle-port.js';
import type { WantedInstance } from '../datapath/listener-slots.js';
import type { Listeners } from '../datapath/listeners.js';
import { type DatapathPrograms, MANIFEST, type Role } from '../datapath/manifest.js';
import { PortSet } from '../datapath/port-set.js';
import { Splice } from '../datapath/splice.js';
import { trySplice } from '../datapath/splice-flaws.js';
import type { Drains } from '../drain/drains.js';
import { CgroupLinks } from '../kernel/cgroup-links.js';
import { CgroupTree } from '../kernel/cgroups.js';
import { ClsactFilters } from '../kernel/clsact.js';
import { familiesOff } from '../kernel/families.js';
import { IpvsBypass } from '../kernel/ipvs.js';
import type { RouteSocket } from '../kernel/netlink.js';
import { NotrackTable } from '../kernel/notrack-table.js';
import { ensurePolicyRoutes, marksAreDelivered } from '../kernel/policy-routes.js';
import { SocketLookup } from '../kernel/socket-lookup.js';
import {
  ensureSteeringLink,
  removeSteeringLink,
  STEERING_LINK,
  STEERING_PEER,
} from '../kernel/steering-link.js';
import { InterfaceSysctls } from '../kernel/sysctls.js';
import { TcxLinks } from '../kernel/tcx.js';
import { tcxSupported } from '../native/bpf.js';
import { BridgeFdb } from '../native/bridge-fdb.js';
import type { Netfilter } from '../native/netfilter.js';
import { Redirects } from '../native/redirects.js';
import { netnsCookie, netnsCookieAt, tcpConnections } from '../native/sockets.js';
import { ipToBytes } from '../net/ip.js';
import { authoritiesAmong, isNamed } from '../pods/confirmation.js';
import { appOf, type PodUid, spiffeIdOf } from '../pods/pod.js';
import type { PodStore } from '../pods/pod-store.js';
import type { PodSource } from '../pods/source.js';
import { BridgeMemory } from '../reconcile/bridge-memory.js';
import { NodeState } from '../reconcile/node-state.js';
import { Proofs } from '../reconcile/proofs.js';
import { Reconciler } from '../reconcile/reconciler.js';
import type { Repairs } from '../reconcile/repairs.js';
import { SplicedPods } from '../reconcile/spliced-pods.js';
import type { StartingPods } from '../reconcile/starting-pods.js';
import type { PodLinks } from '../runtimes/pod-links.js';
import { Shapers } from '../runtimes/shapers.js';
import type { AgentOptions } from './options.js';

/** Changes nothing yet: the first round does. */
export function createReconciler(parts: {
  readonly config: Config;
  /** Of this moment. */
  readonly instances: () => readonly Instance[];
  readonly drains: Pick<Drains, 'of'>;
  readonly proxyPorts: readonly PortSet[];
  readonly lifecyclePort: LifecyclePort;
  /** Pods that are about to end. */
  readonly closing: ReadonlySet<PodUid>;
  readonly options: AgentOptions;
  readonly programs: DatapathPrograms;
  readonly socket: RouteSocket;
  readonly links: PodLinks;
  readonly netfilter: Netfilter;
  readonly store: PodStore;
  readonly sources: readonly PodSource[];
  readonly tables: EndpointTables;
  readonly slots: InstanceSlots;
  readonly generations: Generations;
  readonly repairs: Repairs;
  readonly synced: () => boolean;
  readonly starting: StartingPods;
  readonly opened: Opened;
  readonly log: Logger;
}): Reconciler {
  const {
    config,
    instances,
    proxyPorts,
    options,
    programs,
    socket,
    links,
    netfilter,
    store,
    tables,
    slots,
    generations,
    repairs,
    synced,
  } = parts;
  const { mark, table, rulePriority, enrol, failure, other, mode } = config.interception;
  const log = parts.log.child({ part: 'datapath' });
  const authorities = authoritiesAmong(parts.sources);
  const attachments = tcxSupported()
    ? new TcxLinks<Role>(MANIFEST, programs.linksPath)
    : new ClsactFilters<Role>(MANIFEST);
  parts.opened.add(attachments, (held) => held.close());
  const lookup = new SocketLookup(programs.linksPath, MANIFEST.programs.socket_lookup.role);
  parts.opened.add(lookup, (held) => held.close());
  const redirects = parts.opened.add(new Redirects(), (held) => held.close());
  const settings = { mark, table, rulePriority };
  const notrack = new NotrackTable(netfilter, mark);
  const sysctls = new InterfaceSysctls(options.runDir, options.procSys);
  const inbound = new InboundSteering({
    link: {
      ensure: () => ensureSteeringLink(socket, options.procSys),
      remove: () => removeSteeringLink(socket),
      outside: { netns: '/proc/self/ns/net', name: STEERING_PEER },
    },
    entrances: () => acceptLocalEverywhere(sysctls, socket),
    attachments,
    program: programs.programs.inbound_steer,
    map: programs.maps.steering,
    layouts: programs.layouts,
    wanted: () => instances().some(receives) || tables.hasInbound(),
  });
  const { maps, layouts } = programs;
  const canaries = new Canaries({
    maps,
    layouts,
    programs: programs.programs,
    entrance: () => inbound.entrance(),
  });
  const serving = (instance: Instance | undefined) =>
    instance && {
      name: instance.name,
      number: slots.numberOf(instance.name),
      inbound: receives(instance),
      udp: takesDatagrams(instance),
    };
  return new Reconciler({
    store,
    links,
    shapers: new Shapers(() => redirects.list(), links),
    comesFirst: tcxSupported(),
    bridges: new BridgeMemory({
      fdb: parts.opened.add(new BridgeFdb(), (held) => held.close()),
      links,
      nowMs: () => performance.now(),
      log,
    }),
    node: new NodeState({
      routes: {
        ensure: (options) => ensurePolicyRoutes(socket, settings, options),
        areFollowed: (families) => marksAreDelivered(socket, settings, families),
      },
      familiesOff: () => familiesOff(),
      notrack,
      ipvs: new IpvsBypass(mark),
      inbound,
      programs,
      tables,
      slots: { ensure: () => [...slots.ensure(), ...generations.ensure()] },
      portSets: [
        new PortSet(maps.udp_ports, () => config.interception.udpPorts, 'open UDP port'),
        ...proxyPorts,
        parts.lifecyclePort,
      ],
      lookup,
      settings,
      repairs,
      log,
    }),
    programs,
    tables,
    attachments,
    sysctls,
    proofs: new Proofs(canaries, () => performance.now()),
    repairs,
    defaults: { enrol, failure, other, mode },
    instanceFor: (app) => serving(instanceFor({ instances: instances() }, app)),
    portInstancesFor: (app) =>
      portInstancesFor({ instances: instances() }, app).map((instance) => ({
        name: instance.name,
        number: slots.numberOf(instance.name),
        inbound: receives(instance),
        outbound: sends(instance),
        udp: takesDatagrams(instance),
        ports: instance.ports ?? [],
      })),
    selection: config.interception.selection,
    instanceNamed: (name) => serving(instances().find((instance) => instance.name === name)),
    isClosing: (uid) => parts.closing.has(uid),
    drainOf: (uid, app) => parts.drains.of(uid, app),
    instanceName: (number) => slots.nameOf(number),
    authorities,
    claimants: (ip) => store.byIp(ip).length,
    identityOf: (pod) => ({
      namespace: pod.namespace,
      podName: pod.name,
      serviceAccount: pod.serviceAccount,
      app: appOf(pod) ?? '',
      runtime: pod.runtime,
      spiffeId: isNamed(pod, authorities) ? spiffeIdOf(pod, config.trustDomain) : '',
    }),
    synced,
    starting: parts.starting,
    log,
    connections: (ips) => tcpConnections(ips.map(ipToBytes)),
    rememberMs: config.identity.rememberSeconds * 1_000,
    nowMs: steadyUnixMs,
  });
}

/** Whether what its pods are sent goes through it. */
function receives({ inbound, announced }: Instance): boolean {
  return inbound.length > 0 || announced?.includes('inbound') === true;
}

/** Whether what its pods send goes through it. */
function sends({ outbound, announced }: Instance): boolean {
  return outbound.length > 0 || announced?.includes('outbound') === true;
}

function takesDatagrams({ outboundUdp = [], inboundUdp = [] }: Instance) {
  return { outbound: outboundUdp.length > 0, inbound: inboundUdp.length > 0 };
}

/** Instances as the look for sockets of UDP wants them. */
export function takingDatagrams(
  instances: readonly Instance[],
  slots: Pick<InstanceSlots, 'numberOf'>,
): WantedInstance[] {
  return instances
    .filter(({ outboundUdp, inboundUdp }) => (outboundUdp ?? inboundUdp) !== undefined)
    .map(({ name, owner, outboundUdp = [], inboundUdp = [] }) => ({
      name,
      number: slots.numberOf(name),
      outbound: outboundUdp,
      inbound: inboundUdp,
      owner,
    }));
}

/** Writes nothing yet: the first round does. */
export function openSplice(parts: {
  readonly config: Config;
  readonly options: AgentOptions;
  readonly programs: DatapathPrograms;
  readonly store: PodStore;
  readonly reconciler: Pick<Reconciler, 'statusOf' | 'onStatus'>;
  readonly opened: Opened;
  readonly log: Logger;
}): SplicedPods {
  const { config, options, programs, store, reconciler, opened } = parts;
  const { enrol, failure, other, splice: mode } = config.interception;
  const splice = opened.own(
    new Splice({
      bpffs: options.bpffs,
      objects: options.bpfObjects,
      maps: programs.maps,
      tree: new CgroupTree(),
    }),
  );
  const pods = new SplicedPods({
    splice,
    mode,
    trial: () => trySplice(options.bpfObjects),
    store,
    statusOf: (uid) => reconciler.statusOf(uid),
    defaults: { enrol, failure, other },
    netnsCookieAt,
    log: parts.log.child({ part: 'splice' }),
  });
  const changed = () => pods.changed();
  opened.add(reconciler.onStatus(changed), (unsubscribe) => unsubscribe());
  opened.add(store.subscribe(changed), (unsubscribe) => unsubscribe());
  return pods;
}

/** Attached to nothing yet. */
export function openIdentityOption(parts: {
  readonly programs: DatapathPrograms;
  readonly listeners: Pick<Listeners, 'cgroups'>;
  readonly repairs: Pick<Repairs, 'note'>;
  readonly opened: Opened;
  readonly log: Logger;
}): IdentityOption {
  const { programs, listeners, repairs, opened, log } = parts;
  const { role } = MANIFEST.programs.identity_option;
  const links = new CgroupLinks(MANIFEST, programs.linksPath, role, new CgroupTree());
  opened.add(links, (held) => held.close());
  return new IdentityOption({
    links,
    program: programs.programs.identity_option,
    map: programs.maps.node,
    layouts: programs.layouts,
    netnsCookie,
    cgroups: () => new Set(listeners.cgroups().keys()),
    repaired: (what) => repairs.note('attachment', what),
    log: log.child({ part: 'datapath' }),
  });
}

/** What a proxy has open with a client of a pod arrives by whatever interface the client's packets come in by. */
async function acceptLocalEverywhere(
  sysctls: Pick<InterfaceSysctls, 'ensure' | 'isNodeWide'>,
  socket: Pick<RouteSocket, 'links'>,
): Promise<string[]> {
  if (!sysctls.isNodeWide()) {
    return [];
  }
  const links = (await socket.links()).filter(({ loopback, name }) => !loopback && name !== STEERING_LINK);
  return links
    .filter(({ name, index }) => sysctls.ensure(name, index))
    .map(({ name }) => `net.ipv4.conf.${name}.accept_local was 0`);
}
