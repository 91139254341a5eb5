/** What the CNI plugin tells of a pod's interface, checked: the agent's only input that decides before a pod starts. */

import { z } from 'zod';
import { parseIp } from '../ip.js';

const ID = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,255}$/;
/** net/core/dev.c, dev_valid_name(). */
const INTERFACE = /^[^\s/:]{1,15}$/;

const text = (max: number) => z.string().max(max);
const id = z.string({ error: 'a container ID' }).regex(ID, { error: 'a container ID' });
const interfaceName = z
  .string({ error: 'an interface name of at most 15 characters' })
  .regex(INTERFACE, { error: 'an interface name of at most 15 characters' });

const ADDRESS = 'an address with a prefix length such as 10.66.0.3/24';
const address = z.string({ error: ADDRESS }).transform((given, context) => {
  const [ip = '', prefix = '', ...rest] = given.split('/');
  const canonical = parseIp(ip);
  const bits = Number(prefix);
  if (
    canonical === undefined ||
    rest.length > 0 ||
    !/^\d{1,3}$/.test(prefix) ||
    bits > (ip.includes(':') ? 128 : 32)
  ) {
    context.addIssue({ code: 'custom', message: ADDRESS });
    return z.NEVER;
  }
  return canonical;
});

/** The parts of a CNI result that matter here (CNI specification, "Result types"); all else is the runtime's. */
const result = z.looseObject({
  interfaces: z
    .array(z.looseObject({ name: text(255), sandbox: text(4096).optional() }))
    .max(256)
    .optional(),
  ips: z
    .array(z.looseObject({ address, interface: z.int().min(0).optional() }))
    .max(256)
    .optional(),
});

const PATH = 'the absolute path of a network namespace';
const common = {
  version: z.literal(1, { error: 'protocol version 1: install the plugin that belongs to this agent' }),
  timeoutMs: z.int().min(0).max(600_000).optional(),
};
const attachment = {
  ...common,
  containerId: id,
  ifname: interfaceName,
  netns: text(4096).optional(),
  podUid: text(64).optional(),
  podNamespace: text(253).optional(),
  podName: text(253).optional(),
  annotations: z.record(text(512), text(262_144)).optional(),
};

export const cniRequest = z.discriminatedUnion(
  'command',
  [
    z.object({
      ...attachment,
      command: z.literal('ADD'),
      netns: z.string({ error: PATH }).regex(/^\/.{1,4095}$/, { error: PATH }),
      prevResult: result,
    }),
    z.object({ ...attachment, command: z.literal('CHECK'), prevResult: result.optional() }),
    z.object({ ...attachment, command: z.literal('DEL') }),
    z.object({ ...common, command: z.literal('STATUS') }),
    z.object({
      ...common,
      command: z.literal('GC'),
      attachments: z.array(z.object({ containerId: id, ifname: interfaceName })).max(100_000),
    }),
  ],
  { error: 'ADD, CHECK, DEL, STATUS or GC' },
);

export type CniRequest = z.output<typeof cniRequest>;
export type CniAdd = Extract<CniRequest, { command: 'ADD' }>;

/** One interface of one sandbox, as remembered across restarts of the agent. */
export interface CniAttachment {
  readonly containerId: string;
  readonly ifname: string;
  readonly netns: string;
  /** The pod's UID, or the container ID where the runtime tells none. */
  readonly podUid: string;
  readonly podNamespace: string;
  readonly podName: string;
  readonly annotations: Readonly<Record<string, string>>;
  /** Canonical text, without prefix length. */
  readonly ips: readonly string[];
}

/** Its own interface's addresses; those without an interface are taken to be of it too. */
export function attachmentOf(request: CniAdd): CniAttachment {
  const { interfaces = [], ips = [] } = request.prevResult;
  const own = ips.filter(({ interface: index }) => {
    const link = index === undefined ? undefined : interfaces[index];
    return link === undefined || (link.name === request.ifname && (link.sandbox ?? '') !== '');
  });
  return {
    containerId: request.containerId,
    ifname: request.ifname,
    netns: request.netns,
    podUid:
      request.podUid === undefined || request.podUid === ''
        ? request.containerId.slice(0, 64)
        : request.podUid,
    podNamespace: request.podNamespace ?? '',
    podName: request.podName ?? '',
    annotations: request.annotations ?? {},
    ips: [...new Set(own.map((entry) => entry.address))],
  };
}
