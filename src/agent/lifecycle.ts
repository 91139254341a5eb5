/** The life-cycle hooks, put together for `agent.ts`. */

import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { steadyUnixMs } from '../base/clock.js';
import type { Opened } from '../base/opened.js';
import type { Config } from '../config/config.js';
import type { InstanceSlots } from '../datapath/instance-slots.js';
import { LIFECYCLE_INSTANCE, LifecyclePort } from '../datapath/lifecycle-port.js';
import type { ListenerProbe, ProbeTarget } from '../datapath/listener-probe.js';
import type { WantedInstance } from '../datapath/listener-slots.js';
import type { DatapathPrograms } from '../datapath/manifest.js';
import type { InstanceGenerations } from '../instances/generations.js';
import { Hooks } from '../lifecycle/hooks.js';
import { startLifecycleServer } from '../lifecycle/server.js';
import { openTcpConnections } from '../native/sockets.js';
import { ipToBytes } from '../net/ip.js';
import type { PodUid } from '../pods/pod.js';
import type { PodChange, PodStore } from '../pods/pod-store.js';
import type { Datapath } from '../reconcile/datapath-view.js';
import type { Reconciler } from '../reconcile/reconciler.js';
import type { LiveInstances } from './live-instances.js';

/** Only while a pod that starts waits for its proxy. */
const PROBE_LOOK_MS = 10;
/** For so long a connection may wait to be accepted before the pod is told what it waits for. */
const PROBE_MS = 2_000;

/** What is needed before anything is adopted. */
export interface Lifecycle {
  /** To be adopted beside the configured instances'. */
  wanted(): readonly WantedInstance[];
  readonly port: LifecyclePort;
  /** Pods that are about to end. */
  readonly closing: ReadonlySet<PodUid>;
  /** From then on hooks are answered. */
  answer(parts: LifecycleParts): void;
}

export interface LifecycleParts {
  readonly live: LiveInstances;
  readonly generations: InstanceGenerations;
  readonly store: PodStore;
  readonly datapath: Datapath;
  readonly reconciler: Reconciler;
  readonly probe: (target: ProbeTarget) => Pick<ListenerProbe, 'state' | 'close'>;
}

/** Opens the port. Rejects where it is taken. */
export async function openLifecycle(options: {
  readonly config: Config;
  readonly slots: InstanceSlots;
  readonly programs: Pick<DatapathPrograms, 'maps' | 'layouts'>;
  readonly opened: Opened;
  readonly log: Logger;
}): Promise<Lifecycle> {
  const { config, slots, programs, opened, log } = options;
  const { lifecycle } = config;
  let hooks: Hooks | undefined;
  const server =
    lifecycle && opened.own(await startLifecycleServer({ port: lifecycle.port, hooks: () => hooks, log }));
  const number = () => {
    slots.assign([LIFECYCLE_INSTANCE]);
    return slots.numberOf(LIFECYCLE_INSTANCE);
  };
  const port = new LifecyclePort(programs.maps.lifecycle, programs.layouts, () =>
    lifecycle === undefined ? undefined : { instance: number(), port: lifecycle.port },
  );
  const closing = new Set<PodUid>();
  return {
    wanted: () =>
      server === undefined
        ? []
        : [
            {
              name: LIFECYCLE_INSTANCE,
              number: number(),
              ours: true,
              outbound: server.addresses,
              inbound: server.addresses,
              owner: { uid: process.getuid?.() ?? 0 },
            },
          ],
    port,
    closing,
    answer: (parts) => {
      hooks = hooksOf(parts, closing, log);
      const forget = (changes: readonly PodChange[]) => {
        for (const { pod } of changes.filter(({ pod }) => parts.store.get(pod.uid) === undefined)) {
          closing.delete(pod.uid);
        }
      };
      opened.add(parts.store.subscribe(forget), (unsubscribe) => unsubscribe());
    },
  };
}

function hooksOf(parts: LifecycleParts, closing: Set<PodUid>, log: Logger): Hooks {
  const { live, generations, store, datapath, reconciler, probe } = parts;
  const instanceOf = (uid: PodUid) =>
    live.current.find(({ name }) => name === datapath.endpointOf(uid)?.instance);
  return new Hooks({
    datapath,
    isInbound: (uid) => (instanceOf(uid)?.inbound.length ?? 0) > 0,
    unready: async (uid, signal) => {
      const instance = instanceOf(uid);
      if (instance === undefined) {
        return undefined; // drained: nothing of it goes through a proxy
      }
      const number = generations.numberOf(instance.name, generations.servingOf(instance.name));
      const [direction, [address]] =
        instance.outbound.length > 0
          ? (['outbound', instance.outbound] as const)
          : (['inbound', instance.inbound] as const);
      const trial = probe({ number, direction, family: address?.family ?? 4 });
      try {
        for (const until = performance.now() + PROBE_MS; performance.now() < until && !signal.aborted; ) {
          const state = trial.state();
          if (state === 'accepted') {
            return undefined;
          }
          if (state === 'gone') {
            break;
          }
          await delay(PROBE_LOOK_MS);
        }
        return `the instance ${instance.name} does not accept connections`;
      } finally {
        trial.close();
      }
    },
    close: (uid) => {
      closing.add(uid);
      return reconciler.closingChanged(uid);
    },
    openTo: (uid) => {
      const ips = store.get(uid)?.ips ?? [];
      return openTcpConnections(ips.map(ipToBytes)).filter(({ peer, local }) => {
        const flow = datapath.lookupFlow(peer, local);
        return (
          flow?.direction === 'INGRESS' &&
          flow.instance !== LIFECYCLE_INSTANCE &&
          datapath.podOfEndpoint(flow.endpointId, flow.generation) === uid
        );
      }).length;
    },
    nowMs: steadyUnixMs,
    log,
  });
}
