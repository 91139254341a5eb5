/** What a pod's own labels and annotations ask of us. */

import {
  MESH_RESOURCES,
  MESH_RESOURCES_EXPECTED,
  type MeshResources,
  parseMeshResources,
} from './mesh-resources.js';
import type { FailurePolicy, Pod } from './pod.js';
import { readSelection, type SelectionRules } from './selection.js';

/** labelled: pods that say `enabled`. all: every pod that does not say `disabled`. */
export type EnrolMode = 'labelled' | 'all';

/** What becomes of what is not TCP: it passes, or is dropped but for what an address needs. */
export type OtherProtocols = 'pass' | 'drop';

/** `observe`: nothing new is intercepted, only told what would become of it. */
export const INTERCEPTION_MODES = ['intercept', 'observe'] as const;
export type InterceptionMode = (typeof INTERCEPTION_MODES)[number];

/** Whether bytes may go from one socket to the other, past the TCP stack. */
export type SpliceChoice = 'enabled' | 'disabled';

export interface InterceptionDefaults {
  readonly enrol: EnrolMode;
  readonly failure: FailurePolicy;
  readonly other: OtherProtocols;
  /** Default `intercept`. */
  readonly mode?: InterceptionMode;
}

export interface Interception {
  readonly enrolled: boolean;
  readonly failure: FailurePolicy;
  readonly other: OtherProtocols;
  readonly mode: InterceptionMode;
  /** What the pod says; undefined where it says nothing. */
  readonly splice: SpliceChoice | undefined;
  /** Which of its flows, as far as the pod says. */
  readonly selection: SelectionRules;
  /** Undefined where nothing is said, or nothing that can be followed. */
  readonly meshResources: MeshResources | undefined;
  /** One sentence per key whose value could not be followed; the default of that key applies. */
  readonly problems: readonly string[];
}

const QUOTED_CHARACTERS = 80;

const PREFIX = 'nodesentry.io/';

/** Keys that a pod cannot have from its namespace: those that say what it is, and what the webhook reads of the pod alone. */
const OWN_KEYS: readonly string[] = [
  'app',
  'service-account',
  'explicit-proxy',
  'mesh-requests',
  'mesh-requests-added',
].map((key) => PREFIX + key);

/** Whether a key is about interception: those set on a namespace count for its pods. */
export function isInterceptionKey(key: string): boolean {
  return key.startsWith(PREFIX) && !OWN_KEYS.includes(key);
}

/** An annotation wins over the label of the same key; a bad value is reported and counts as not given. */
export function interceptionOf(
  pod: Pick<Pod, 'labels' | 'annotations'>,
  defaults: InterceptionDefaults,
): Interception {
  const problems: string[] = [];
  const intercept = choice(pod, 'intercept', ['enabled', 'disabled'], problems);
  const failure = choice(pod, 'failure', ['closed', 'open'], problems);
  const other = choice(pod, 'other-protocols', ['pass', 'drop'], problems);
  const mode = choice(pod, 'mode', INTERCEPTION_MODES, problems);
  const splice = choice(pod, 'splice', ['enabled', 'disabled'], problems);
  choice(pod, 'explicit-proxy', ['enabled', 'disabled'], problems);
  choice(pod, 'mesh-requests', ['enabled', 'disabled'], problems);
  const selection = readSelection(
    (key) => given(pod, key),
    (key, expected, value) => problems.push(`${PREFIX}${key}: expected ${expected}, got ${quoted(value)}`),
  );
  const meshResources = meshResourcesOf(pod, problems);
  return {
    enrolled: defaults.enrol === 'all' ? intercept !== 'disabled' : intercept === 'enabled',
    failure: failure ?? defaults.failure,
    // The stricter of the two: a pod cannot open what the node has closed.
    other: defaults.other === 'drop' ? 'drop' : (other ?? 'pass'),
    // The more careful of the two.
    mode: defaults.mode === 'observe' ? 'observe' : (mode ?? 'intercept'),
    splice,
    selection,
    meshResources,
    problems,
  };
}

/** Its containers are to be told their node's proxy (HTTP_PROXY and the like), which the admission webhook does. */
export function isExplicit(pod: Pick<Pod, 'labels' | 'annotations'>): boolean {
  return given(pod, 'explicit-proxy') === 'enabled';
}

/** What its node's proxy needs for it is to be among its requests, which the admission webhook does. */
export function asksForRequests(pod: Pick<Pod, 'labels' | 'annotations'>): boolean {
  return given(pod, 'mesh-requests') === 'enabled';
}

/** Undefined where nothing is said, or nothing that can be followed, which is added to `problems`. */
export function meshResourcesOf(
  pod: Pick<Pod, 'labels' | 'annotations'>,
  problems: string[] = [],
): MeshResources | undefined {
  const text = given(pod, 'mesh-resources');
  const read = text === undefined ? undefined : parseMeshResources(text);
  if (text !== undefined && read === undefined) {
    problems.push(`${MESH_RESOURCES}: expected ${MESH_RESOURCES_EXPECTED}, got ${quoted(text)}`);
  }
  return read;
}

function choice<T extends string>(
  pod: Pick<Pod, 'labels' | 'annotations'>,
  key: string,
  allowed: readonly T[],
  problems: string[],
): T | undefined {
  const value = given(pod, key);
  const match = allowed.find((candidate) => candidate === value);
  if (value !== undefined && match === undefined) {
    problems.push(`${PREFIX}${key}: expected ${allowed.join(' or ')}, got ${quoted(value)}`);
  }
  return match;
}

/** An annotation may have 256 KiB, and who reads the reason wants its beginning. */
function quoted(value: string): string {
  return value.length > QUOTED_CHARACTERS
    ? `${JSON.stringify(value.slice(0, QUOTED_CHARACTERS))} and more`
    : JSON.stringify(value);
}

function given(pod: Pick<Pod, 'labels' | 'annotations'>, key: string): string | undefined {
  return pod.annotations[PREFIX + key] ?? pod.labels[PREFIX + key];
}
