/** From what the CRI says about a sandbox to a pod. Nothing in here talks to anybody. */

import { z } from 'zod';
import { parseIp } from '../../net/ip.js';
import { type InterfaceIps, type Pod, SERVICE_ACCOUNT_NAME } from '../pod.js';
import { type HandlerTable, runtimeKindOf } from '../runtime-kind.js';
import { POD_UID_EXPECTED, parsePodUid } from '../uid.js';

/** A number where the runtime knows a value that our proto does not. */
export const enumName = z.union([z.string(), z.number()]);
const texts = z.record(z.string(), z.string());

/** `PodSandboxStatusResponse`, as proto-loader decodes it. */
export const sandboxStatusSchema = z.object({
  status: z.object({
    id: z.string(),
    metadata: z.object({ name: z.string(), uid: z.string(), namespace: z.string(), attempt: z.number() }),
    state: enumName,
    createdAt: z.string(),
    network: z.object({ ip: z.string(), additionalIps: z.array(z.object({ ip: z.string() })) }).nullable(),
    linux: z
      .object({
        namespaces: z.object({ options: z.object({ network: enumName }).nullable() }).nullable(),
      })
      .nullable(),
    labels: texts,
    annotations: texts,
    runtimeHandler: z.string(),
  }),
  info: texts,
});
export type SandboxStatus = z.infer<typeof sandboxStatusSchema>;

/**
 * The JSON of `info.info`: meant for debugging and promised by nobody, so a part of another form than containerd's
 * and CRI-O's counts as absent.
 */
const infoSchema = z.looseObject({
  pid: z.int().positive().optional().catch(undefined),
  runtimeType: z.string().optional().catch(undefined),
  runtimeSpec: z
    .looseObject({
      linux: z.looseObject({
        namespaces: z.array(z.looseObject({ type: z.string(), path: z.string().optional() })),
      }),
    })
    .nullish()
    .catch(undefined),
  cniResult: z
    .looseObject({
      Interfaces: z.record(
        z.string(),
        z.looseObject({
          Sandbox: z.string().nullish(),
          IPConfigs: z
            .array(z.looseObject({ IP: z.string() }))
            .nullish()
            .catch(undefined),
        }),
      ),
    })
    .nullish()
    .catch(undefined),
});
type SandboxInfo = z.infer<typeof infoSchema>;

export interface SandboxReading {
  /** Undefined where the sandbox cannot stand for a pod; `problems` says why. */
  readonly pod: Pod | undefined;
  readonly runtimeType: string;
  readonly problems: readonly string[];
}

const KUBELET_LABELS = 'io.kubernetes.pod.';
const SERVICE_ACCOUNT_LABEL = 'nodesentry.io/service-account';

/**
 * The pod of a sandbox, as far as the runtime knows it; undefined without a UID, with the reason among the problems.
 */
export function readSandbox({ status, info }: SandboxStatus, handlers: HandlerTable): SandboxReading {
  const problems: string[] = [];
  const details = parseInfo(info.info, problems);
  const runtimeType = details.runtimeType ?? '';
  const uid = parsePodUid(status.metadata.uid);
  if (uid === undefined) {
    problems.push(`expected ${POD_UID_EXPECTED}, got ${JSON.stringify(status.metadata.uid)}`);
    return { pod: undefined, runtimeType, problems };
  }
  const hostNetwork = status.linux?.namespaces?.options?.network === 'NODE';
  const netns = hostNetwork ? undefined : netnsOf(details);
  const hostInterface = hostNetwork ? undefined : hostInterfaceOf(details);
  const pod: Pod = {
    uid,
    namespace: status.metadata.namespace,
    name: status.metadata.name,
    serviceAccount: serviceAccountOf(status.labels, problems),
    labels: Object.fromEntries(
      Object.entries(status.labels).filter(([key]) => !key.startsWith(KUBELET_LABELS)),
    ),
    annotations: status.annotations,
    ips: addressesOf(status, problems),
    ...(hostNetwork ? {} : { interfaceIps: interfaceIpsOf(details) }),
    runtime: runtimeKindOf(handlers, status.runtimeHandler, runtimeType),
    runtimeHandler: status.runtimeHandler,
    sandboxId: status.id,
    hostNetwork,
    ...(netns === undefined ? {} : { netns }),
    ...(hostInterface === undefined ? {} : { interface: hostInterface }),
    sources: ['cri'],
  };
  return { pod, runtimeType, problems };
}

function parseInfo(json: string | undefined, problems: string[]): SandboxInfo {
  if (json === undefined) {
    return {};
  }
  try {
    return infoSchema.parse(JSON.parse(json));
  } catch (error) {
    problems.push(`the sandbox's verbose info is not a JSON object: ${(error as Error).message}`);
    return {};
  }
}

/**
 * The CRI does not carry the service account; empty stands for "not known". Whoever talks to the CRI directly (root)
 * may tell it by a sandbox label. The kubelet copies the pod's own labels to the sandbox, so beside the kubelet's
 * labels, which it writes last, that label is only the pod author's word and is not believed.
 */
function serviceAccountOf(labels: Readonly<Record<string, string>>, problems: string[]): string {
  const told = labels[SERVICE_ACCOUNT_LABEL];
  if (told === undefined) {
    return '';
  }
  if (Object.keys(labels).some((key) => key.startsWith(KUBELET_LABELS))) {
    problems.push(`${SERVICE_ACCOUNT_LABEL}: ignored, a label of a pod cannot choose its service account`);
    return '';
  }
  if (!SERVICE_ACCOUNT_NAME.test(told)) {
    problems.push(
      `${SERVICE_ACCOUNT_LABEL}: expected the name of a service account, got ${JSON.stringify(told)}`,
    );
    return '';
  }
  return told;
}

function addressesOf(status: SandboxStatus['status'], problems: string[]): string[] {
  const given = [status.network?.ip ?? '', ...(status.network?.additionalIps ?? []).map(({ ip }) => ip)];
  const addresses = given
    .filter((text) => text !== '')
    .flatMap((text) => {
      const ip = parseIp(text);
      if (ip === undefined) {
        problems.push(`expected an IP address, got ${JSON.stringify(text)}`);
      }
      return ip ?? [];
    });
  return [...new Set(addresses)];
}

/** The named namespace that the CNI made; else that of the sandbox's first process, where only a pid is known. */
function netnsOf({ runtimeSpec, pid }: SandboxInfo): string | undefined {
  const path = runtimeSpec?.linux.namespaces.find(({ type }) => type === 'network')?.path;
  if (path?.startsWith('/') === true) {
    return path;
  }
  return pid === undefined ? undefined : `/proc/${pid}/ns/net`;
}

/**
 * The one interface of the CNI result that is not in the pod. A bridge CNI lists its bridge too: of several, the
 * only veth. Undefined where that leaves doubt; the locator finds it from the network namespace then.
 */
function hostInterfaceOf({ cniResult }: SandboxInfo): string | undefined {
  const outside = Object.entries(cniResult?.Interfaces ?? {})
    .filter(([, { Sandbox }]) => (Sandbox ?? '') === '')
    .map(([name]) => name)
    .filter((name) => name !== 'lo');
  const candidates = outside.length > 1 ? outside.filter((name) => name.startsWith('veth')) : outside;
  return candidates.length === 1 ? candidates[0] : undefined;
}

/** The pod's ends of the interfaces in the CNI result, with the addresses that they were given. */
function interfaceIpsOf({ cniResult }: SandboxInfo): InterfaceIps {
  const inside = Object.entries(cniResult?.Interfaces ?? {}).filter(
    ([, { Sandbox }]) => (Sandbox ?? '') !== '',
  );
  return Object.fromEntries(
    inside
      .map(
        ([name, { IPConfigs }]) => [name, (IPConfigs ?? []).flatMap(({ IP }) => parseIp(IP) ?? [])] as const,
      )
      .filter(([, ips]) => ips.length > 0),
  );
}
