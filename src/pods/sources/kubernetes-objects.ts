/** From the API server's objects to pods. Nothing in here talks to anybody. */

import { z } from 'zod';
import { parseIp } from '../../net/ip.js';
import { isInterceptionKey } from '../annotations.js';
import { formatPath } from '../checked-yaml.js';
import type { InterfaceIps, Pod, PodOwner } from '../pod.js';
import { type HandlerTable, runtimeKindOf } from '../runtime-kind.js';
import { POD_UID_EXPECTED, parsePodUid } from '../uid.js';

/** The kubelet's word for a static pod: the UID that the container runtime was given. */
const MIRROR_ANNOTATION = 'kubernetes.io/config.mirror';
const NETWORK_STATUS_ANNOTATION = 'k8s.v1.cni.cncf.io/network-status';
const TEMPLATE_HASH_LABEL = 'pod-template-hash';

const name = z.string().min(1);
const texts = z
  .record(z.string(), z.string())
  .nullish()
  .transform((given) => given ?? {});

/** What every object has; without it an event cannot be told apart from others. */
export const objectMetaSchema = z.looseObject({
  metadata: z.looseObject({ uid: name, name, namespace: name.optional(), resourceVersion: name }),
});
export type ObjectMeta = z.infer<typeof objectMetaSchema>['metadata'];

export const listSchema = z.looseObject({
  metadata: z.looseObject({ resourceVersion: name, continue: z.string().optional() }),
  items: z.array(z.unknown()).nullish(),
});

export const watchEventSchema = z.looseObject({
  type: z.enum(['ADDED', 'MODIFIED', 'DELETED', 'BOOKMARK', 'ERROR']),
  object: z.looseObject({}),
});

export const bookmarkSchema = z.looseObject({ metadata: z.looseObject({ resourceVersion: name }) });

export const statusSchema = z.looseObject({
  code: z.number().optional(),
  reason: z.string().optional(),
  message: z.string().optional(),
});

const podSchema = z.looseObject({
  metadata: z.looseObject({
    uid: name,
    name,
    namespace: name,
    labels: texts,
    annotations: texts,
    deletionTimestamp: z.string().nullish(),
    ownerReferences: z
      .array(z.looseObject({ kind: name, name, controller: z.boolean().optional() }))
      .nullish(),
  }),
  spec: z.looseObject({
    nodeName: z.string().optional(),
    serviceAccountName: z.string().optional(),
    hostNetwork: z.boolean().optional(),
    runtimeClassName: z.string().nullish(),
  }),
  status: z
    .looseObject({
      phase: z.string().optional(),
      podIP: z.string().optional(),
      podIPs: z.array(z.looseObject({ ip: z.string().optional() })).nullish(),
    })
    .nullish(),
});

const namespaceSchema = z.looseObject({
  metadata: z.looseObject({ name, labels: texts, annotations: texts }),
});

/** `value` is undefined where the object cannot be used at all; `problems` name the field each. */
export interface Reading<T> {
  readonly value: T | undefined;
  readonly problems: readonly string[];
}

/** A pod as the API server has it, before its namespace is asked. */
export interface ApiPod {
  readonly pod: Pod;
  readonly nodeName: string;
  /** Succeeded or Failed: its address may be another pod's by now. */
  readonly over: boolean;
  /** It is being deleted. */
  readonly going: boolean;
  /** The UID is that of a static pod, which this object only claims to mirror. */
  readonly mirror: boolean;
}

/** Interception keys that a namespace gives to its pods, as labels; an annotation was taken before a label. */
export interface ApiNamespace {
  readonly name: string;
  readonly inherited: Readonly<Record<string, string>>;
}

/** Reads a `v1` Pod. A single bad address is left out; the rest of the pod counts. */
export function readPod(object: unknown, handlers: HandlerTable): Reading<ApiPod> {
  const parsed = podSchema.safeParse(object);
  if (!parsed.success) {
    return { value: undefined, problems: [firstProblem(parsed.error)] };
  }
  const { metadata, spec, status } = parsed.data;
  const mirrored = metadata.annotations[MIRROR_ANNOTATION];
  const uid = parsePodUid(mirrored ?? metadata.uid);
  if (uid === undefined) {
    const field = mirrored === undefined ? ['uid'] : ['annotations', MIRROR_ANNOTATION];
    const got = JSON.stringify(mirrored ?? metadata.uid);
    return {
      value: undefined,
      problems: [`${formatPath(['metadata', ...field])}: expected ${POD_UID_EXPECTED}, got ${got}`],
    };
  }
  const problems: string[] = [];
  const owner = ownerOf(metadata);
  const handler = spec.runtimeClassName ?? '';
  // A runtime class may have any handler: only a name that the table knows says something.
  const kind = handler === '' ? 'unknown' : runtimeKindOf(handlers, handler, '');
  const pod: Pod = {
    uid,
    namespace: metadata.namespace,
    name: metadata.name,
    serviceAccount: spec.serviceAccountName ?? '',
    labels: metadata.labels,
    annotations: metadata.annotations,
    ips: addressesOf(status, problems),
    ...interfaceIpsOf(metadata.annotations, problems),
    runtime: kind,
    runtimeHandler: kind === 'unknown' ? '' : handler,
    sandboxId: '',
    hostNetwork: spec.hostNetwork ?? false,
    ...(owner === undefined ? {} : { owner }),
    sources: ['kubernetes'],
  };
  return {
    value: {
      pod,
      nodeName: spec.nodeName ?? '',
      over: status?.phase === 'Succeeded' || status?.phase === 'Failed',
      going: typeof metadata.deletionTimestamp === 'string',
      mirror: mirrored !== undefined,
    },
    problems,
  };
}

/** Reads a `v1` Namespace. */
export function readNamespace(object: unknown): Reading<ApiNamespace> {
  const parsed = namespaceSchema.safeParse(object);
  if (!parsed.success) {
    return { value: undefined, problems: [firstProblem(parsed.error)] };
  }
  const { metadata } = parsed.data;
  const given = Object.entries({ ...metadata.labels, ...metadata.annotations });
  const inherited = Object.fromEntries(given.filter(([key]) => isInterceptionKey(key)));
  return { value: { name: metadata.name, inherited }, problems: [] };
}

/** The pod with what it does not say itself filled in from its namespace. */
export function inherit(pod: Pod, namespace: ApiNamespace): Pod {
  const missing = Object.entries(namespace.inherited).filter(
    ([key]) => !Object.hasOwn(pod.labels, key) && !Object.hasOwn(pod.annotations, key),
  );
  return missing.length === 0 ? pod : { ...pod, labels: { ...pod.labels, ...Object.fromEntries(missing) } };
}

const networkStatusSchema = z.array(
  z.looseObject({
    interface: z.string().optional(),
    ips: z.array(z.string()).optional(),
    default: z.boolean().optional(),
  }),
);

/**
 * What Multus writes of further networks: Kubernetes Network Custom Resource Definition De-facto Standard 1.3, 5. The
 * default network's addresses stand in the pod's status.
 */
function interfaceIpsOf(
  annotations: Readonly<Record<string, string>>,
  problems: string[],
): { readonly interfaceIps?: InterfaceIps } {
  const given = annotations[NETWORK_STATUS_ANNOTATION];
  if (given === undefined) {
    return {};
  }
  const field = formatPath(['metadata', 'annotations', NETWORK_STATUS_ANNOTATION]);
  try {
    const networks = networkStatusSchema.parse(JSON.parse(given));
    const told = networks.flatMap(({ interface: name, ips = [], default: isDefault }) => {
      const own = ips.flatMap((text) => parseIp(text) ?? []);
      return name === undefined || isDefault === true || own.length === 0 ? [] : [[name, own] as const];
    });
    return told.length === 0 ? {} : { interfaceIps: Object.fromEntries(told) };
  } catch (error) {
    const reason = error instanceof z.ZodError ? firstProblem(error) : (error as Error).message;
    problems.push(`${field}: ${reason}`);
    return {};
  }
}

/** Field selectors, as `k8s.io/apimachinery/pkg/fields` escapes them. */
export function escapeSelector(value: string): string {
  return value.replace(/[\\,=]/g, '\\$&');
}

/** `metadata.name: Invalid input: …`, of the first thing that is wrong. */
export function firstProblem(error: z.ZodError): string {
  const [issue] = error.issues;
  return issue === undefined ? error.message : `${formatPath(issue.path)}: ${issue.message}`;
}

/** Also of a pod that has no name or UID yet. A ReplicaSet that a Deployment made is named after it and the hash of the pod template. */
export function ownerOf({
  ownerReferences,
  labels,
}: Pick<z.infer<typeof podSchema>['metadata'], 'ownerReferences' | 'labels'>): PodOwner | undefined {
  const controller = ownerReferences?.find((reference) => reference.controller === true);
  if (controller === undefined) {
    return undefined;
  }
  const suffix = `-${labels[TEMPLATE_HASH_LABEL] ?? ''}`;
  const { kind, name: ownerName } = controller;
  return kind === 'ReplicaSet' &&
    suffix.length > 1 &&
    ownerName.endsWith(suffix) &&
    ownerName.length > suffix.length
    ? { kind: 'Deployment', name: ownerName.slice(0, -suffix.length) }
    : { kind, name: ownerName };
}

/** `podIPs` has every family; `podIP` alone is what an API server before 1.16 tells. */
function addressesOf(status: z.infer<typeof podSchema>['status'], problems: string[]): string[] {
  const given = [...(status?.podIPs ?? []).map(({ ip }) => ip ?? ''), status?.podIP ?? ''];
  const addresses = given.flatMap((text, index) => {
    const ip = parseIp(text);
    if (ip === undefined && text !== '') {
      const field = index < given.length - 1 ? `status.podIPs[${index}].ip` : 'status.podIP';
      problems.push(`${field}: expected an IP address, got ${JSON.stringify(text)}`);
    }
    return ip ?? [];
  });
  return [...new Set(addresses)];
}
