/** An Event on a pod (`events.k8s.io/v1`), as `kubectl describe pod` shows it. */

import { createHash } from 'node:crypto';
import type { Pod } from '../pods/pod.js';

export const EVENT_REASONS = {
  REFUSED: 'NodeSentryRefused',
  DEGRADED: 'NodeSentryDegraded',
  INTERCEPTED: 'NodeSentryIntercepted',
} as const;
export type ToldState = keyof typeof EVENT_REASONS;

export interface PodEvent {
  /** The same for the same news of the same pod: an agent that starts anew makes no second one. */
  readonly name: string;
  readonly pod: Pick<Pod, 'namespace' | 'name' | 'uid'>;
  readonly state: ToldState;
  readonly note: string;
  /** Unix time, milliseconds. */
  readonly atMs: number;
}

/** Kubernetes, pkg/apis/core/validation/events.go, NoteLengthLimit and ReportingInstanceLengthLimit. */
const MAX_NOTE_BYTES = 1_024;
const MAX_INSTANCE = 128;
/** A name may have 253 characters; the hash and a dot stand behind it. */
const MAX_POD_NAME = 220;
const HASH_DIGITS = 16;

export function podEvent(
  pod: Pick<Pod, 'namespace' | 'name' | 'uid'>,
  told: { readonly state: ToldState; readonly generation: number | undefined; readonly reason: string },
  advice: string,
  atMs: number,
): PodEvent {
  const hash = createHash('sha256')
    .update(JSON.stringify([pod.uid, told.generation ?? 0, told.state, told.reason]))
    .digest('hex')
    .slice(0, HASH_DIGITS);
  const start = pod.name.slice(0, MAX_POD_NAME).replace(/[.-]+$/, '');
  return {
    name: `${start}.${hash}`,
    pod: { namespace: pod.namespace, name: pod.name, uid: pod.uid },
    state: told.state,
    note: noteOf(told.reason, advice),
    atMs,
  };
}

/** `reportingInstance`: the node. */
export function eventObject({ name, pod, state, note, atMs }: PodEvent, node: string): object {
  return {
    apiVersion: 'events.k8s.io/v1',
    kind: 'Event',
    metadata: { name, namespace: pod.namespace },
    eventTime: microTime(atMs),
    reportingController: 'nodesentry.io/agent',
    reportingInstance: node.slice(0, MAX_INSTANCE),
    action: 'Intercept',
    reason: EVENT_REASONS[state],
    type: state === 'INTERCEPTED' ? 'Normal' : 'Warning',
    regarding: { apiVersion: 'v1', kind: 'Pod', namespace: pod.namespace, name: pod.name, uid: pod.uid },
    note,
  };
}

/** Of an event that is there and happens again; all its other fields are fixed. */
export function eventSeries(count: number, atMs: number): object {
  return { series: { count, lastObservedTime: microTime(atMs) } };
}

function microTime(atMs: number): string {
  return new Date(atMs).toISOString().replace('Z', '000Z');
}

/** The advice whole, of a long reason the beginning. */
function noteOf(reason: string, advice: string): string {
  const end = advice === '' ? '' : `. ${advice}`;
  const room = MAX_NOTE_BYTES - Buffer.byteLength(end);
  if (Buffer.byteLength(reason) <= room) {
    return reason + end;
  }
  let short = reason;
  while (Buffer.byteLength(short) > room - Buffer.byteLength('…')) {
    short = [...short].slice(0, -1).join('');
  }
  return `${short}…${end}`;
}
