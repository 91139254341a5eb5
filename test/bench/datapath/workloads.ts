/** What the load does (test/lab/app/load.cc), and what of its answer counts. */

/** Numbers by which variants are compared. `more`: more is better. */
export const METRICS = {
  connectionsPerSecond: { title: 'new connections', unit: '1/s', more: true },
  requestsPerSecond: { title: 'keep-alive requests', unit: '1/s', more: true },
  megabytesPerSecond: { title: 'bulk', unit: 'MB/s', more: true },
  p50Us: { title: 'p50', unit: 'µs', more: false },
  p99Us: { title: 'p99', unit: 'µs', more: false },
  p999Us: { title: 'p99.9', unit: 'µs', more: false },
  cpuUs: { title: 'CPU of the whole machine for each', unit: 'µs', more: false },
} as const;

export type MetricName = keyof typeof METRICS;
export type Metrics = Readonly<Partial<Record<MetricName, number>>>;

export interface Workload {
  readonly name: string;
  readonly title: string;
  readonly kind: 'connects' | 'requests' | 'bulk' | 'paced';
  readonly clients: number;
  /** Of `paced`: all clients together. */
  readonly perSecond?: number;
  /** What `cpuUs` is per. */
  readonly unit: 'connection' | 'request' | 'MB';
}

/** What the load prints: counts of the measured time, and of all of it, which is what the CPU was used for. */
export interface Told {
  readonly seconds: number;
  readonly done: number;
  readonly total: number;
  readonly bytes: number;
  readonly totalBytes: number;
  readonly failures: number;
  readonly error: string;
  readonly p50Us?: number;
  readonly p99Us?: number;
  readonly p999Us?: number;
}

function connects(clients: number): Workload {
  const title = `new connections, ${clients} at a time`;
  return { name: `connects-${clients}`, title, kind: 'connects', clients, unit: 'connection' };
}

function requests(clients: number): Workload {
  const title = `keep-alive requests, ${clients} at a time`;
  return { name: `requests-${clients}`, title, kind: 'requests', clients, unit: 'request' };
}

function bulk(clients: number): Workload {
  return { name: `bulk-${clients}`, title: `bulk, ${clients} at a time`, kind: 'bulk', clients, unit: 'MB' };
}

function paced(perSecond: number): Workload {
  const title = `latency at ${perSecond.toLocaleString('en')} requests a second`;
  return { name: 'paced', title, kind: 'paced', clients: 16, perSecond, unit: 'request' };
}

export const WORKLOADS: readonly Workload[] = [
  connects(64),
  connects(1),
  requests(64),
  requests(1),
  bulk(1),
  bulk(64),
  paced(2_000),
];
export const QUICK_WORKLOADS: readonly Workload[] = [connects(64), requests(64), bulk(1), paced(2_000)];

/** The words that the load is started with. */
export function wordsOf(
  { kind, clients, perSecond }: Workload,
  at: { readonly ip: string; readonly ports: readonly number[] },
  seconds: number,
): string[] {
  const words = [kind, at.ip, at.ports.join(','), String(clients), String(seconds)];
  return perSecond === undefined ? words : [...words, String(perSecond)];
}

/** Throws where the load met failures: such a run says nothing about speed. */
export function metricsOf({ name, kind }: Workload, told: Told, cpuSeconds: number): Metrics {
  if (told.failures > 0) {
    throw new Error(`${name}: ${told.failures} failures, the last of them ${told.error}`);
  }
  const worked = kind === 'bulk' ? told.totalBytes / 1e6 : told.total;
  if (worked === 0) {
    throw new Error(`${name}: nothing was done in ${told.seconds} s`);
  }
  const cpuUs = (cpuSeconds * 1e6) / worked;
  const { p50Us = 0, p99Us = 0, p999Us = 0 } = told;
  switch (kind) {
    case 'connects':
      return { connectionsPerSecond: told.done / told.seconds, cpuUs };
    case 'requests':
      return { requestsPerSecond: told.done / told.seconds, cpuUs };
    case 'bulk':
      return { megabytesPerSecond: told.bytes / 1e6 / told.seconds, cpuUs };
    case 'paced':
      return { p50Us, p99Us, p999Us, cpuUs };
  }
}
