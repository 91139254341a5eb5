/** What Prometheus may know. Values are read from the stages when somebody scrapes, not kept beside them. */

import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { PodStore } from '../pods/pod-store.js';
import type { PodSource } from '../pods/source.js';
import type { DatapathView } from '../reconcile/datapath-view.js';
import type { EndpointState } from '../reconcile/status.js';
import { LoopDelay } from './loop-delay.js';

export interface MetricsOptions {
  readonly store: Pick<PodStore, 'list' | 'get' | 'removed'>;
  readonly datapath: Pick<
    DatapathView,
    'endpoints' | 'repairs' | 'latePods' | 'listeners' | 'counters' | 'eventsLost' | 'splice'
  >;
  /** Those with `stats` get metrics of how well they follow. */
  readonly sources?: readonly Pick<PodSource, 'name' | 'stats'>[];
  readonly version: string;
}

const ENDPOINT_STATES: readonly EndpointState[] = [
  'INTERCEPTED',
  'OBSERVED',
  'PENDING',
  'REFUSED',
  'DEGRADED',
  'DRAINED',
  'NOT_ENROLLED',
];
/** From a map lookup (tens of microseconds) to a stalled event loop. */
const RESOLVE_BUCKETS_S = [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1];

const ADD_BUCKETS_S = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

const COLUMN_HELP = {
  desired: 'Pods that are to be intercepted',
  programmed: 'Pods whose programs and tables are in place, read back from the kernel',
  verified:
    'Pods whose interception was proven: programmed, and a packet sent from the pod came out as its endpoint',
} as const;

function labelsOf({ instance, protocol, direction, family }: ReturnType<DatapathView['listeners']>[number]) {
  return {
    instance,
    direction: protocol === 'udp' ? `${direction}_udp` : direction,
    family: `ipv${family}`,
  };
}

export class Metrics {
  readonly #registry = new Registry();
  readonly #loopDelay = new LoopDelay();
  readonly #resolveSeconds: Histogram;
  readonly #resolves: Counter<'result'>;
  readonly #cniAddSeconds: Histogram<'result'>;

  constructor({ store, datapath, sources = [], version }: MetricsOptions) {
    const registers = [this.#registry];
    this.#resolveSeconds = new Histogram({
      name: 'nodesentry_resolve_duration_seconds',
      help: 'Time to answer one identity question',
      buckets: RESOLVE_BUCKETS_S,
      registers,
    });
    this.#resolves = new Counter({
      name: 'nodesentry_resolves_total',
      help: 'Identity questions by result: the assurance of an answer, or the reason of a refusal',
      labelNames: ['result'],
      registers,
    });
    this.#cniAddSeconds = new Histogram({
      name: 'nodesentry_cni_add_duration_seconds',
      help: 'From the CNI plugin asking for a pod to its datapath being in place and proven, or the refusal',
      labelNames: ['result'],
      buckets: ADD_BUCKETS_S,
      registers,
    });
    new Gauge({
      name: 'nodesentry_build_info',
      help: 'Always 1; what is running stands in the labels',
      labelNames: ['version', 'node_version'],
      registers,
    }).set({ version, node_version: process.version }, 1);
    new Counter({
      name: 'nodesentry_packets_total',
      help: 'Packets that pods sent (egress) and were sent (ingress), by verdict; empty pod: of no endpoint',
      labelNames: ['namespace', 'pod', 'direction', 'verdict'],
      registers,
      async collect() {
        const counters = await datapath.counters();
        this.reset();
        for (const { podUid, direction, packets } of counters) {
          const pod = podUid === undefined ? undefined : (store.get(podUid) ?? store.removed(podUid)?.pod);
          const labels = {
            namespace: pod?.namespace ?? '',
            pod: pod?.name ?? '',
            direction: direction.toLowerCase(),
          };
          for (const [verdict, count] of Object.entries(packets).filter(([, value]) => value > 0)) {
            this.inc({ ...labels, verdict }, count);
          }
        }
      },
    });
    new Gauge({
      name: 'nodesentry_endpoints',
      help: 'Pods by the state of their interception',
      labelNames: ['state'],
      registers,
      collect() {
        const states = datapath.endpoints().map((endpoint) => endpoint.state);
        for (const state of ENDPOINT_STATES) {
          this.set({ state }, states.filter((other) => other === state).length);
        }
      },
    });
    for (const column of ['desired', 'programmed', 'verified'] as const) {
      new Gauge({
        name: `nodesentry_pods_${column}`,
        help: COLUMN_HELP[column],
        registers,
        collect() {
          this.set(datapath.endpoints().filter((endpoint) => endpoint[column]).length);
        },
      });
    }
    new Counter({
      name: 'nodesentry_repairs_total',
      help: 'What was found missing or changed in the kernel and put right',
      labelNames: ['kind'],
      registers,
      collect() {
        this.reset();
        for (const [kind, count] of Object.entries(datapath.repairs())) {
          this.inc({ kind }, count);
        }
      },
    });
    if (datapath.latePods() !== undefined) {
      new Counter({
        name: 'nodesentry_pods_late_total',
        help: 'Pods that the CNI plugin did not announce: their first connections may have gone past the proxy',
        registers,
        collect() {
          this.reset();
          this.inc(datapath.latePods() ?? 0);
        },
      });
    }
    new Gauge({
      name: 'nodesentry_listener_adopted',
      help: '1: new connections of this instance, direction and family reach a proxy; 0: the failure policy applies',
      labelNames: ['instance', 'direction', 'family'],
      registers,
      collect() {
        this.reset();
        for (const listener of datapath.listeners()) {
          this.set(labelsOf(listener), listener.adopted ? 1 : 0);
        }
      },
    });
    new Gauge({
      name: 'nodesentry_listener_refused',
      help: '1: somebody who is not the owner of this instance holds its address; see nodesentry status',
      labelNames: ['instance', 'direction', 'family'],
      registers,
      collect() {
        this.reset();
        for (const listener of datapath.listeners()) {
          this.set(labelsOf(listener), listener.refused === undefined ? 0 : 1);
        }
      },
    });
    new Counter({
      name: 'nodesentry_flow_events_lost_total',
      help: 'Flow events nobody saw: the ring was full (kernel) or the agent was behind (agent); flows are unaffected',
      labelNames: ['where'],
      registers,
      async collect() {
        const lost = await datapath.eventsLost();
        this.reset();
        for (const [where, count] of Object.entries(lost)) {
          this.inc({ where }, count);
        }
      },
    });
    new Gauge({
      name: 'nodesentry_pods',
      help: 'Pods by the source that names them (one pod may have several) and their runtime',
      labelNames: ['source', 'runtime'],
      registers,
      collect() {
        this.reset();
        for (const pod of store.list()) {
          for (const source of pod.sources) {
            this.inc({ source, runtime: pod.runtime });
          }
        }
      },
    });
    addSpliceMetrics(datapath, registers);
    addSourceMetrics(sources, registers);
    addLoopMetrics(this.#loopDelay, registers);
    addProcessMetrics(registers);
  }

  close(): void {
    this.#loopDelay.close();
  }

  /** `result` is the assurance of an answer or the reason of a refusal. */
  observeResolve(result: string, seconds: number): void {
    this.#resolveSeconds.observe(seconds);
    this.#resolves.inc({ result });
  }

  /** `result` is the state that the pod was admitted in, or `refused` or `waiting`. */
  observeCniAdd(result: string, seconds: number): void {
    this.#cniAddSeconds.observe({ result }, seconds);
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  /** The text exposition format. */
  text(): Promise<string> {
    return this.#registry.metrics();
  }
}

function addLoopMetrics(delay: LoopDelay, registers: Registry[]): void {
  new Gauge({
    name: 'nodesentry_event_loop_delay_seconds',
    help: 'How late the event loop of the agent was since the last scrape; quantile 1 is the longest it was held',
    labelNames: ['quantile'],
    registers,
    collect() {
      for (const [quantile, seconds] of Object.entries(delay.take())) {
        this.set({ quantile }, seconds);
      }
    },
  });
}

function addProcessMetrics(registers: Registry[]): void {
  new Counter({
    name: 'nodesentry_process_cpu_seconds_total',
    help: 'Processor time that the agent has taken, in user and kernel mode; packets cost the pods and the proxy theirs',
    registers,
    collect() {
      const { user, system } = process.cpuUsage();
      this.reset();
      this.inc((user + system) / 1e6);
    },
  });
  new Gauge({
    name: 'nodesentry_process_resident_memory_bytes',
    help: 'Memory of the agent that is in RAM; its tables in the kernel are not counted',
    registers,
    collect() {
      this.set(process.memoryUsage.rss());
    },
  });
}

function addSpliceMetrics(datapath: Pick<DatapathView, 'splice'>, registers: Registry[]): void {
  new Gauge({
    name: 'nodesentry_splice_pods',
    help: 'Pods whose bytes go past the TCP stack',
    registers,
    collect() {
      this.set(datapath.splice().pods);
    },
  });
  new Counter({
    name: 'nodesentry_splice_sockets_total',
    help: 'Sockets that were taken into the splice since it was loaded',
    registers,
    collect() {
      this.reset();
      this.inc(datapath.splice().ends);
    },
  });
  new Counter({
    name: 'nodesentry_splice_messages_total',
    help: 'What such sockets sent, by the way that it went: splice or tcp',
    labelNames: ['by'],
    registers,
    collect() {
      const { messages, leftToTcp } = datapath.splice();
      this.reset();
      this.inc({ by: 'splice' }, messages);
      this.inc({ by: 'tcp' }, leftToTcp);
    },
  });
  new Counter({
    name: 'nodesentry_splice_bytes_total',
    help: 'Bytes that went past the TCP stack',
    registers,
    collect() {
      this.reset();
      this.inc(datapath.splice().bytes);
    },
  });
}

function addSourceMetrics(sources: NonNullable<MetricsOptions['sources']>, registers: Registry[]): void {
  const followed = () =>
    sources.flatMap(({ name, stats }) => (stats === undefined ? [] : [{ source: name, ...stats }]));
  new Gauge({
    name: 'nodesentry_source_last_event_age_seconds',
    help: 'Since the source last told anything, if only that nothing changed; a watch that stalls lets it grow',
    labelNames: ['source'],
    registers,
    collect() {
      this.reset();
      for (const { source, lastEventAtMs } of followed()) {
        if (lastEventAtMs !== undefined) {
          this.set({ source }, Math.max(0, Date.now() - lastEventAtMs) / 1_000);
        }
      }
    },
  });
  new Counter({
    name: 'nodesentry_source_relists_total',
    help: 'How often everything was listed anew after the first time',
    labelNames: ['source'],
    registers,
    collect() {
      this.reset();
      for (const { source, relists } of followed()) {
        this.inc({ source }, relists);
      }
    },
  });
  new Counter({
    name: 'nodesentry_source_watch_restarts_total',
    help: 'How often the stream of changes was opened again: see docs/sources.md for the reasons',
    labelNames: ['source', 'reason'],
    registers,
    collect() {
      this.reset();
      for (const { source, watchRestarts } of followed()) {
        for (const [reason, count] of Object.entries(watchRestarts)) {
          this.inc({ source, reason }, count);
        }
      }
    },
  });
}
