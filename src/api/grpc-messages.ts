/** What goes over gRPC, as proto/nodesentry/identity/v1/identity.proto says it: the JSON of HTTP but for its enums. */

import type { PastResolution } from '../identity/past.js';
import type { Assurance, Party, Resolution } from '../identity/resolve.js';
import type { Workload } from '../identity/workload.js';
import type { Answer } from './answers.js';
import type { Problem } from './problem.js';

/** A field that was not sent has its type's default: an empty text, `"0"`, the enum's first value. */
export interface ResolveRequest {
  /** Which of the keys was sent. */
  readonly key?: string;
  readonly flow?: { readonly proto: string; readonly src: string; readonly dst: string };
  readonly podUid?: string;
  readonly address?: string;
  readonly hostInterface?: string;
  /** As text: a number of 64 bits. */
  readonly netnsCookie?: string;
  readonly socketCookie?: string;
  readonly process?: { readonly pid: number; readonly startTime: string };
  /** A number where the caller's enum knows a value that ours does not. */
  readonly minAssurance: string | number;
  readonly minRevision: { readonly epoch: string; readonly revision: string } | null;
  readonly waitMs: number;
  readonly atMs: string;
}

export interface BatchResolveRequest {
  readonly requests: readonly ResolveRequest[];
}

/** What is left out was not asked about. */
export function resolutionMessage(answer: Answer): object {
  const { workload, direction, assurance, source, destination }: Answer & Partial<Resolution> = answer;
  return {
    ...answer,
    workload: workloadMessage(workload),
    direction: direction && `DIRECTION_${direction}`,
    assurance: assurance && assuranceName(assurance),
    source: source && partyMessage(source),
    destination: destination && partyMessage(destination),
    past: 'at' in answer ? pastMessage(answer) : undefined,
  };
}

export function workloadMessage(workload: Workload): object {
  return { ...workload, state: `WORKLOAD_STATE_${workload.state}` };
}

export function problemMessage(problem: Problem): object {
  return { ...problem, reason: `REASON_${problem.reason}` };
}

export function assuranceName(assurance: Assurance): string {
  return `ASSURANCE_${assurance}`;
}

function pastMessage({ at, from, until, started, name }: PastResolution): object {
  return { at, from, ...(until === null ? {} : { until }), ...(started && { started }), name };
}

function partyMessage(party: Party): object {
  return party.workload === null
    ? { reason: `REASON_${party.reason}` }
    : { workload: workloadMessage(party.workload), assurance: assuranceName(party.assurance) };
}
