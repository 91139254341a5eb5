/** What `nodesentry capacity` and `GET /v1/capacity` tell. */

import type { CapacityMode } from '../config/config.js';
import type { Resources } from '../pods/quantity.js';
import type { AppNeed, Need } from './sums.js';

/** Null: the container has none of it. */
export interface Allotment {
  readonly cpuMillis: number | null;
  readonly memoryBytes: number | null;
}

export interface Allotments {
  readonly requests: Allotment;
  readonly limits: Allotment;
}

export interface TargetReport {
  readonly namespace: string;
  readonly selector: string;
  readonly container: string;
  /** DEGRADED: it does not have what is wanted, and will not get it by itself. */
  readonly state: 'UNKNOWN' | 'FITS' | 'RESIZING' | 'DEGRADED';
  /** Why not; empty where nothing is wrong. */
  readonly reason: string;
  /** Of this node; empty while it is not known. */
  readonly podName: string;
  /** As the pod's spec has them; null while it is not known. */
  readonly now: Allotments | null;
  /** As the kubelet has carried them out. */
  readonly actual: Allotments | null;
  /** What its processes hold, where it can be read. */
  readonly usedMemoryBytes: number | null;
  /** With what is added and below the limit. */
  readonly wanted: Resources;
  readonly lastResize: (Allotments & { readonly atMs: number }) | null;
}

export interface CapacityReport {
  readonly mode: CapacityMode;
  readonly apps: readonly AppNeed[];
  readonly total: Need;
  /** Null where the configuration names none. */
  readonly target: TargetReport | null;
}
