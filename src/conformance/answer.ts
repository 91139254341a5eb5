/** Answers and lines of a watch in one form, whichever door they came by, so that two can be compared. */

/** What counts of an answer. */
export type Answer = Refusal | Named;

export interface Refusal {
  readonly reason: string;
  /** That KEY_INVALID names, as HTTP calls it; empty with other reasons. */
  readonly field: string;
}

export interface Named {
  readonly podUid: string;
  /** Of the workload, in words. */
  readonly workload: string;
  readonly spiffeId: string;
  readonly state: string;
  readonly instance: string;
  /** Empty where no flow was meant. */
  readonly direction: string;
  readonly assurance: string;
  /** Pods at the ends, or why none is named; empty where no flow was meant. */
  readonly source: string;
  readonly destination: string;
}

/** A line of a watch. */
export interface WatchEvent {
  readonly kind: 'SNAPSHOT' | 'UPSERT' | 'REMOVED' | 'SNAPSHOT_DONE' | 'HEARTBEAT' | 'LOST';
  readonly epoch: string;
  readonly revision: number;
  /** Of UPSERT and REMOVED. */
  readonly uid: string;
  /** Of UPSERT, in words. */
  readonly workload: string;
}

export type Fields = Readonly<Record<string, unknown>>;

export const text = (given: unknown): string => (given === undefined || given === null ? '' : String(given));
export const fields = (given: unknown): Fields => (given ?? {}) as Fields;

export function refusal(reason: unknown, detail: unknown): Refusal {
  return { reason: text(reason), field: reason === 'KEY_INVALID' ? fieldOf(text(detail)) : '' };
}

/** `requests[3].process.start_time: …` of gRPC is `startTime`. */
function fieldOf(detail: string): string {
  const [path = ''] = detail.split(':', 1);
  const [name = '', above] = path.split('.').reverse();
  const called = above === 'min_revision' ? `min_${name}` : name;
  return called.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
}

/** Of JSON, or of a message without the prefixes of its enums. */
export function named(resolution: Fields): Named {
  const { workload, instance, direction, assurance, source, destination } = resolution;
  const { podUid, spiffeId, state } = fields(workload);
  return {
    podUid: text(podUid),
    workload: workloadText(fields(workload)),
    spiffeId: text(spiffeId),
    state: text(state),
    instance: text(instance),
    direction: text(direction),
    assurance: text(assurance),
    source: partyOf(source),
    destination: partyOf(destination),
  };
}

function partyOf(given: unknown): string {
  if (given === undefined || given === null) {
    return '';
  }
  const { workload, reason } = fields(given);
  return workload === null || workload === undefined ? text(reason) : text(fields(workload).podUid);
}

/** The same for the same pod. */
export function workloadText(workload: Fields): string {
  const { uid, generation, spiffeId, namespace, podName, app, runtime, ips, node, state } = workload;
  const labels = Object.entries(fields(workload.labels)).map(([name, value]) => `${name}=${value}`);
  const parts = [uid, generation, spiffeId, namespace, podName, app, runtime, ips, node, state];
  return [...parts.map(text), ...labels.sort()].join(' ');
}
