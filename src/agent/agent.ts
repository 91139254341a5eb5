/** Wires the stages together; the only place that builds things. */

import { dirname, join } from 'node:path';
import type { Logger } from 'pino';
import { openAnnouncements } from '../api/announce-door.js';
import { startGrpcApi } from '../api/grpc.js';
import { startHttpApi } from '../api/http.js';
import { startMetricsServer } from '../api/metrics-server.js';
import { steadyUnixMs } from '../base/clock.js';
import { Opened } from '../base/opened.js';
import { type Config, type Instance, takesDatagramsOnly } from '../config/config.js';
import { loadConfig } from '../config/load.js';
import { Announced } from '../datapath/announced.js';
import { EndpointTables } from '../datapath/endpoints.js';
import { Flows } from '../datapath/flows.js';
import { Generations } from '../datapath/generations.js';
import { InstanceSlots } from '../datapath/instance-slots.js';
import { Listeners } from '../datapath/listeners.js';
import { watchListening } from '../datapath/listening.js';
import { MANIFEST } from '../datapath/manifest.js';
import { ProxyCgroups } from '../datapath/proxy-cgroups.js';
import { Draining } from '../drain/draining.js';
import { Drains } from '../drain/drains.js';
import { AddressHistory } from '../identity/history.js';
import { PastIdentity } from '../identity/past.js';
import { IdentityService } from '../identity/resolve.js';
import { SocketLookups } from '../identity/socket-ends.js';
import { Told } from '../identity/told.js';
import { IdentityWatch } from '../identity/watch.js';
import { Announcing } from '../instances/announcing.js';
import { InstanceGenerations } from '../instances/generations.js';
import { missingCapabilities } from '../kernel/capabilities.js';
import { RouteSocket } from '../kernel/netlink.js';
import { openPrograms } from '../kernel/programs.js';
import { openAnnounceDoor, sendMessage } from '../native/announce-door.js';
import { isBpffs, tcxSupported } from '../native/bpf.js';
import { type LinkEvent, openLinkEvents } from '../native/link-events.js';
import { trimMemory } from '../native/memory.js';
import { Netfilter } from '../native/netfilter.js';
import {
  endTcpConnections,
  netnsCookieAt,
  openTcpConnections,
  peerCredentials,
  tcpEnds,
  tcpListeners,
  udpListeners,
} from '../native/sockets.js';
import { ipToBytes } from '../net/ip.js';
import { confirmation } from '../pods/confirmation.js';
import type { PodUid } from '../pods/pod.js';
import { type PodChange, PodStore } from '../pods/pod-store.js';
import type { PodSource } from '../pods/source.js';
import { CniSource } from '../pods/sources/cni.js';
import { Admissions } from '../reconcile/admission.js';
import { Datapath } from '../reconcile/datapath-view.js';
import { LatePods } from '../reconcile/late-pods.js';
import { Repairs } from '../reconcile/repairs.js';
import { StartingPods } from '../reconcile/starting-pods.js';
import { PodLinks } from '../runtimes/pod-links.js';
import { createLogger } from '../telemetry/log.js';
import { Metrics } from '../telemetry/metrics.js';
import { packageVersion } from '../telemetry/version.js';
import { openCapacity } from './capacity.js';
import { Cluster } from './cluster.js';
import { startCni } from './cni.js';
import { createReconciler, openIdentityOption, openSplice, takingDatagrams } from './datapath.js';
import { openInstances } from './instances.js';
import { openLifecycle } from './lifecycle.js';
import { ListenerLooks } from './listener-looks.js';
import { LiveInstances } from './live-instances.js';
import type { AgentOptions } from './options.js';
import { ProxyPorts } from './proxy-ports.js';
import { takeLock } from './run-lock.js';
import { openSources } from './sources.js';
import { startSupervision } from './supervision.js';

/** A small file: far less than a millisecond. */
const CONFIG_LOOK_MS = 1_000;
/** The whole of the kernel's state is looked at this often, whether anything has happened or not. */
const RECONCILE_MS = 1_000;
const PROVE_MS = 1_000;
/** What a start, or a burst of pods, has left free goes back to the kernel within so long: a millisecond or so each time. */
const TRIM_MS = 10_000;

export class StartError extends Error {
  override readonly name = 'StartError';
}

/**
 * Runs until SIGTERM or SIGINT. What is in the kernel stays when it ends: flows go on, the next agent takes over.
 * Rejects with StartError, ConfigError, AlreadyRunningError, RunDirError or DatapathError where it cannot start.
 */
export async function runAgent(options: AgentOptions): Promise<void> {
  const config = loadConfig(options.config, options.nodeName);
  const missing = missingCapabilities();
  const [first] = missing;
  if (first !== undefined) {
    throw new StartError(
      `missing ${missing.map(({ name }) => name).join(', ')} (${first.name}: ${first.why}): run as root`,
    );
  }
  if (!options.mountBpffs && !isBpffs(dirname(options.bpffs))) {
    throw new StartError(
      `${dirname(options.bpffs)} is not a bpffs: run "mount -t bpf bpf ${dirname(options.bpffs)}" on the node`,
    );
  }
  const log = createLogger(config.log.level);
  const opened = new Opened();
  const stop = new AbortController();
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.once(signal, () => {
      log.info({ signal }, 'stopping; the datapath stays in place');
      stop.abort();
    });
  }
  try {
    opened.add(takeLock(options.runDir), (lock) => lock.release());
    await start(config, options, opened, stop.signal, log);
    await new Promise<void>((resolve) => {
      if (stop.signal.aborted) {
        resolve();
      }
      stop.signal.addEventListener('abort', () => resolve(), { once: true });
    });
  } finally {
    stop.abort();
    await opened.close();
  }
}

async function start(
  config: Config,
  options: AgentOptions,
  opened: Opened,
  signal: AbortSignal,
  log: Logger,
): Promise<void> {
  const programs = opened.add(
    openPrograms({
      set: MANIFEST,
      bpffs: options.bpffs,
      mountBpffs: options.mountBpffs,
      objects: options.bpfObjects,
      mark: config.interception.mark,
    }),
    (handle) => handle.close(),
  );
  log.info({ takenOver: programs.takenOver, bpffs: options.bpffs }, 'BPF programs ready');
  const socket = opened.add(new RouteSocket(), (handle) => handle.close());
  const store = new PodStore({
    criServiceAccount: config.sources.cri?.serviceAccount,
    rememberMs: config.identity.rememberSeconds * 1_000,
    nowMs: steadyUnixMs,
  });
  const sources = await openSources(config, options.runDir, store, log);
  const expected = new Set(sources.map((source) => source.name));
  const synced = () => [...expected].every((name) => store.syncedSources().has(name));

  const tables = new EndpointTables(programs.maps, programs.layouts);
  const slots: InstanceSlots = new InstanceSlots({
    instances: programs.maps.instances,
    layouts: programs.layouts,
    referred: () => new Set([...tables.instances(), ...flows.instances()]),
  });
  const flows = opened.add(
    new Flows({
      layouts: programs.layouts,
      flows: programs.maps.flows,
      events: programs.maps.events,
      settings: programs.maps.settings,
      observed: programs.maps.observed,
      instanceName: (number) => slots.nameOf(number),
    }),
    (handle) => handle.close(),
  );
  const generations = new Generations({ ...programs.maps, layouts: programs.layouts });
  const instanceGenerations = new InstanceGenerations({
    path: join(options.runDir, 'generations.json'),
    slots,
    kernel: generations,
    log: log.child({ part: 'instances' }),
  });
  const lifecycle = await openLifecycle({
    config,
    slots,
    programs,
    opened,
    log: log.child({ part: 'lifecycle' }),
  });
  const wanted = (instances: readonly Instance[]) => {
    const others = new Set(instances.filter(takesDatagramsOnly).map(({ name }) => name));
    // All of them get their numbers.
    const all = instanceGenerations.wanted(instances);
    return [...all.filter(({ name }) => !others.has(name)), ...lifecycle.wanted()];
  };
  const announced = new Announced(join(options.runDir, 'announced.json'), log.child({ part: 'listeners' }));
  const listeners = new Listeners({
    announced,
    map: programs.maps.listeners,
    slots: programs.layouts.slots,
    instances: wanted(config.instances),
    referred: () => tables.instances(),
    log: log.child({ part: 'listeners' }),
  });
  const datagramListeners = new Listeners({
    map: programs.maps.udp_listeners,
    slots: programs.layouts.slots,
    sockets: udpListeners,
    protocol: 'udp',
    instances: takingDatagrams(config.instances, slots),
    referred: () => tables.instances(),
    log: log.child({ part: 'listeners' }),
  });
  const adopt = async (instances: readonly Instance[]) => {
    await listeners.want(wanted(instances));
    await datagramListeners.want(takingDatagrams(instances, slots));
    instanceGenerations.apply(instances);
    ensureCgroups();
  };
  const live = new LiveInstances({
    path: options.config,
    nodeName: options.nodeName,
    config,
    prepare: async (instances) => {
      supervision.prepare(instances);
      await adopt(instances);
    },
    changed: () => {
      proxyPorts.ensure();
      guarded(log, 'moving pods to their instances', () => reconciler.instancesChanged());
    },
    log: log.child({ part: 'instances' }),
  });
  const supervision = opened.own(
    startSupervision({
      config,
      runDir: options.runDir,
      instances: () => live.current,
      store,
      synced,
      listening: () => {
        adopting = adoptNow().catch((error: unknown) =>
          log.error({ err: error }, 'looking for listeners failed'),
        );
      },
      log: log.child({ part: 'instances' }),
    }),
  );
  // A look may be under way that began before they were opened: the next one finds them.
  const adoptNow = async () => {
    await lookForListeners();
    await lookForListeners();
  };
  let adopting = Promise.resolve();
  const proxyPorts = new ProxyPorts({
    maps: programs.maps,
    instances: () => live.current,
    generations: instanceGenerations,
    announced,
    slots,
  });
  const links = new PodLinks(socket);
  const netfilter = opened.add(new Netfilter(), (handle) => handle.close());
  const starting = new StartingPods();
  const repairs = new Repairs(log.child({ part: 'datapath' }));
  const drains = new Drains(join(options.runDir, 'drains.json'), log.child({ part: 'drain' }));
  const reconciler = createReconciler({
    config,
    instances: () => live.current,
    drains,
    proxyPorts: proxyPorts.sets,
    lifecyclePort: lifecycle.port,
    closing: lifecycle.closing,
    options,
    programs,
    socket,
    links,
    netfilter,
    store,
    sources,
    tables,
    slots,
    generations,
    repairs,
    synced,
    starting,
    opened,
    log,
  });
  const late = sources.some((source) => source instanceof CniSource)
    ? opened.add(
        new LatePods({
          store,
          reconciler,
          before: tables.rows().map(({ uid }) => uid),
          log: log.child({ part: 'cni' }),
        }),
        (held) => held.close(),
      )
    : undefined;
  const identityOption = openIdentityOption({ programs, listeners, repairs, opened, log });
  const splices = openSplice({ config, options, programs, store, reconciler, opened, log });
  const datapath = new Datapath({
    tables,
    flows,
    listeners,
    datagramListeners,
    reconciler,
    repairs,
    late,
    identityOption,
    splices,
    atNode: proxyPorts.at,
    openUdpPorts: config.interception.udpPorts,
  });

  // Listeners before the first program: an enrolled pod must not meet an empty map for want of a look.
  await listeners.refresh();
  await datagramListeners.refresh();
  instanceGenerations.apply(live.current);
  lifecycle.port.ensure();
  const migrated = programs.finishMigration(
    tcxSupported() ? undefined : (await socket.links()).map(({ index }) => index),
  );
  if (migrated !== undefined) {
    log.info(migrated, 'took over from an agent of an older layout');
  }
  const proxyCgroups = new ProxyCgroups(programs.maps.proxy_cgroups, () => listeners.cgroups());
  const ensureCgroups = () => {
    proxyCgroups.ensure();
    identityOption.ensure();
  };
  ensureCgroups();
  const lookForListeners = async () => {
    if (await listeners.refresh()) {
      ensureCgroups();
    }
    await datagramListeners.refresh();
  };
  const listening = watchListening({ objects: options.bpfObjects, changed: () => looks.told() });
  const looks = new ListenerLooks({
    look: () => guarded(log, 'looking for listeners', lookForListeners),
    isTold: 'close' in listening,
  });
  opened.own(looks);
  if ('close' in listening) {
    opened.own(listening);
  } else {
    log.info(listening, 'the kernel does not tell of listeners: they are looked for all the time');
  }

  const instanceParts = openInstances({
    live,
    generations: instanceGenerations,
    kernel: generations,
    listeners,
    flows,
    programs,
    tables,
    objects: options.bpfObjects,
    supervision,
    adopt: async () => {
      await adopt(live.current);
      proxyPorts.ensure();
    },
    opened,
    log: log.child({ part: 'instances' }),
  });

  const reconcile = () =>
    guarded(log, 'reconciling', () => {
      ensureCgroups();
      splices.ensure();
      return reconciler.reconcile();
    });
  const changed = (changes: readonly PodChange[]) =>
    guarded(log, 'reconciling', async () => {
      await adopting; // a pod is not sent to an instance whose listeners are only being opened for it
      await reconciler.reconcilePods(changes.map(({ pod }) => pod.uid));
    });
  opened.add(store.subscribe(changed), (unsubscribe) => unsubscribe());
  const poke = () => {
    for (const source of sources) {
      source.poke?.();
    }
  };
  const linksChanged = (events: readonly LinkEvent[]) => {
    const ifindexes = new Set(events.map(({ ifindex }) => ifindex));
    guarded(log, 'reconciling', () => reconciler.linksChanged(ifindexes));
    poke();
  };
  const linksLost = () => {
    links.forget();
    reconcile();
    poke();
  };
  opened.add(openLinkEvents(linksChanged, linksLost), (events) => events.close());
  opened.add(setInterval(reconcile, RECONCILE_MS), clearInterval);
  const hangup = () => guarded(log, 'reading the configuration again', () => live.reload());
  process.on('SIGHUP', hangup);
  opened.add(hangup, () => void process.off('SIGHUP', hangup));
  opened.add(
    setInterval(() => guarded(log, 'reading the configuration again', () => live.look()), CONFIG_LOOK_MS),
    clearInterval,
  );
  opened.add(
    setInterval(() => guarded(log, 'looking into pods', () => reconciler.lookInside()), RECONCILE_MS),
    clearInterval,
  );
  opened.add(
    setInterval(() => guarded(log, 'asking for proof', () => reconciler.prove()), PROVE_MS),
    clearInterval,
  );

  opened.add(setInterval(trimMemory, TRIM_MS), clearInterval);

  const blockers = () => [
    ...[...expected]
      .filter((name) => !store.syncedSources().has(name))
      .map((name) => `source ${name} has not synced`),
    ...(synced() && !reconciler.caughtUp()
      ? ['the pods that the sources named are not all seen to yet']
      : []),
    ...(reconciler.nodeProblem() === undefined ? [] : [`datapath: ${reconciler.nodeProblem()}`]),
  ];
  const identity = new IdentityService({
    store,
    datapath,
    trustDomain: config.trustDomain,
    node: config.node,
    synced,
    sources,
    netnsCookieAt,
  });
  const onEndpoint = (listener: (uid: PodUid) => void) => reconciler.onStatus(listener);
  const watch = opened.own(new IdentityWatch({ store, identity, onEndpoint }));
  const history = opened.own(
    new AddressHistory({
      store,
      identity,
      synced,
      onEndpoint,
      ...config.identity.history,
      path: join(options.runDir, 'addresses.ndjson'),
      log: log.child({ part: 'identity' }),
    }),
  );
  const draining = new Draining({
    drains,
    store,
    datapath,
    synced,
    changed: () => reconciler.drainsChanged(),
    connections: (ips) => openTcpConnections(ips.map(ipToBytes)),
    end: endTcpConnections,
    nowMs: steadyUnixMs,
    log: log.child({ part: 'drain' }),
  });
  opened.own(draining);
  draining.start();
  lifecycle.answer({
    live,
    generations: instanceGenerations,
    store,
    datapath,
    reconciler,
    probe: instanceParts.probe,
  });
  const announcing = new Announcing({
    instances: () => live.current,
    generations: instanceGenerations,
    announced,
    listeners,
    all: tcpListeners,
    look: async () => {
      await adoptNow();
      proxyPorts.ensure();
    },
  });
  const metrics = opened.add(new Metrics({ store, datapath, sources, version: packageVersion() }), (handle) =>
    handle.close(),
  );
  const capacity = await openCapacity({
    config,
    store,
    synced,
    signal,
    log: log.child({ part: 'capacity' }),
  });
  const cluster = new Cluster({
    config,
    runDir: options.runDir,
    store,
    statuses: () => reconciler.statuses(),
    blockers,
    version: packageVersion(),
    log,
  });
  const told = new Told();
  const api = {
    runDir: options.runDir,
    config,
    store,
    datapath,
    identity,
    past: new PastIdentity({ store, history, datapath, told, synced }),
    told,
    sockets: new SocketLookups(tcpEnds),
    instances: instanceParts.view,
    upgrades: instanceParts.upgrades,
    announcing,
    processes: () => supervision.messages(),
    drains: draining,
    synced,
    capacity: () => capacity.report(),
    watch,
    sources: sources.map((source) => withProblem(source, cluster)),
    blockers,
    metrics,
    version: packageVersion(),
    credentials: peerCredentials,
    log: log.child({ part: 'api' }),
  };
  opened.own(await startHttpApi(api));
  opened.own(await startGrpcApi(api));
  opened.own(openAnnouncements({ ...api, open: openAnnounceDoor, send: sendMessage }));
  if (config.metrics.listen !== undefined) {
    opened.own(await startMetricsServer({ listen: config.metrics.listen, metrics, log: api.log }));
  }
  await Promise.all(sources.map((source) => source.start(signal)));
  const cniSource = sources.find((source) => source instanceof CniSource);
  if (cniSource !== undefined) {
    const admissions = new Admissions({
      reconciler,
      unknown: confirmation(store, sources),
      starting,
      timed: (uid, ms) => log.debug({ part: 'cni', uid, ms }, 'what a pod waited for'),
    });
    await startCni({
      config,
      runDir: options.runDir,
      store,
      sources,
      source: cniSource,
      synced,
      admissions,
      blockers,
      metrics,
      opened,
      signal,
      log,
    });
  }
  await reconciler.reconcile();
  await cluster.start(signal);
  log.info({ node: config.node, runDir: options.runDir, blockers: blockers() }, 'agent running');
}

/** For `status`: a source that is followed, but whose API server does not take what it is told. */
function withProblem(source: PodSource, cluster: Cluster): Pick<PodSource, 'name' | 'lastError'> {
  const { name } = source;
  return {
    name,
    get lastError() {
      return source.lastError ?? (name === 'kubernetes' ? cluster.problem : undefined);
    },
  };
}

function guarded(log: Logger, doing: string, step: () => unknown): void {
  const failed = (error: unknown) => log.error({ err: error }, `${doing} failed`);
  try {
    const result = step();
    if (result instanceof Promise) {
      result.catch(failed);
    }
  } catch (error) {
    failed(error);
  }
}
