/** The static file's form: what stands in it, and what a mistake is told. */

import { z } from 'zod';
import { parseIp } from '../../net/ip.js';
import { checkYaml, formatProblem, type Problem } from '../checked-yaml.js';
import { type Pod, type PodUid, RUNTIME_KINDS, SERVICE_ACCOUNT_NAME } from '../pod.js';
import { POD_UID_EXPECTED, parsePodUid } from '../uid.js';

/** Every mistake in the file at once; the message has a line for each. */
export class StaticPodsError extends Error {
  readonly code = 'STATIC_PODS_INVALID';
  readonly problems: readonly Problem[];

  constructor(problems: readonly Problem[], options?: ErrorOptions) {
    super(problems.map(formatProblem).join('\n'), options);
    this.name = 'StaticPodsError';
    this.problems = problems;
  }
}

const RUNTIME_EXPECTED = `one of ${RUNTIME_KINDS.join(', ')}`;
/** Linux: IFNAMSIZ is 16 with the NUL. */
const INTERFACE_EXPECTED = 'an interface name of 1 to 15 characters without slash, colon or space';
const INTERFACE = /^[^\s/:\p{Cc}]{1,15}$/u;

/** As Kubernetes has them (RFC 1123): they become parts of a SPIFFE ID, where `..` and `?` mean something else. */
const NAMESPACE = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;
const POD_NAME = /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/;

const text = (what: string, pattern: RegExp) => z.string({ error: what }).regex(pattern, { error: what });
const texts = (what: string) =>
  z.record(z.string(), z.string({ error: 'a text (put it in quotes)' }), { error: what });

const ip = z.string({ error: 'an IP address' }).transform((given, context): string => {
  const canonical = parseIp(given);
  if (canonical === undefined) {
    context.addIssue({ code: 'custom', message: 'an IP address' });
    return z.NEVER;
  }
  return canonical;
});

const ips = z.array(ip, { error: 'a list of IP addresses' }).superRefine((given, context) => {
  given.forEach((address, index) => {
    if (given.indexOf(address) !== index) {
      const message = `${address} stands here twice`;
      context.addIssue({ code: 'custom', message, path: [index], params: { whole: true } });
    }
  });
});

const uid = z.string({ error: POD_UID_EXPECTED }).transform((given, context): PodUid => {
  const parsed = parsePodUid(given);
  if (parsed === undefined) {
    context.addIssue({ code: 'custom', message: POD_UID_EXPECTED });
    return z.NEVER;
  }
  return parsed;
});

const pod = z
  .strictObject(
    {
      namespace: text('a namespace of at most 63 small letters, digits and dashes', NAMESPACE),
      name: text('a pod name of at most 253 small letters, digits, dashes and dots', POD_NAME),
      uid,
      serviceAccount: text('the name of a service account', SERVICE_ACCOUNT_NAME).default('default'),
      runtime: z.enum(RUNTIME_KINDS, { error: RUNTIME_EXPECTED }).default('unknown'),
      runtimeHandler: z.string({ error: 'the name of a CRI handler' }).default(''),
      sandboxId: z.string({ error: 'a sandbox ID' }).default(''),
      labels: texts('a mapping of labels').prefault({}),
      annotations: texts('a mapping of annotations').prefault({}),
      ips: ips.optional(),
      interfaceIps: z
        .record(z.string().regex(INTERFACE, { error: INTERFACE_EXPECTED }), ips, {
          error: "a mapping of a pod's interfaces to lists of IP addresses",
        })
        .optional(),
      hostNetwork: z.boolean({ error: 'true or false' }).default(false),
      interface: text(INTERFACE_EXPECTED, INTERFACE).optional(),
      netns: text('the absolute path of a network namespace', /^\/\P{Cc}+$/u).optional(),
    },
    { error: 'a mapping that describes a pod' },
  )
  .superRefine((given, context) => {
    const refuse = (message: string, path: string[]): void =>
      context.addIssue({ code: 'custom', message, path, params: { whole: true } });
    if (!given.hostNetwork && (given.ips ?? []).length === 0) {
      refuse('expected at least one IP address (or hostNetwork: true)', ['ips']);
    }
    if (given.interface !== undefined && given.interfaceIps !== undefined) {
      refuse('interface and interfaceIps exclude each other: name the netns', ['interfaceIps']);
    }
    if (given.interface !== undefined && given.netns !== undefined) {
      refuse('interface and netns exclude each other', ['netns']);
    }
  });

const file = z.strictObject(
  {
    pods: z.array(pod, { error: 'a list of pods' }).superRefine((pods, context) => {
      const uids = pods.map((given) => given.uid);
      uids.forEach((one, index) => {
        const first = uids.indexOf(one);
        if (first !== index) {
          const message = `${one} is the UID of pods[${first}] too`;
          context.addIssue({ code: 'custom', message, path: [index, 'uid'], params: { whole: true } });
        }
      });
    }),
  },
  { error: 'a mapping with the key pods' },
);

/** Throws StaticPodsError; `path` stands in its messages. */
export function parseStaticPods(content: string, path: string): Pod[] {
  const checked = checkYaml(path, content, file);
  if (!checked.ok) {
    throw new StaticPodsError(checked.problems);
  }
  return checked.value.pods.map(
    ({ ips: addresses, interfaceIps, interface: hostInterface, netns, ...rest }) => ({
      ...rest,
      ips: [...new Set([...(addresses ?? []), ...Object.values(interfaceIps ?? {}).flat()])],
      ...(interfaceIps === undefined ? {} : { interfaceIps }),
      ...(hostInterface === undefined ? {} : { interface: hostInterface }),
      ...(netns === undefined ? {} : { netns }),
      sources: ['static'],
    }),
  );
}
