/** What the CNI plugin tells of a pod's interface, checked: the agent's only input that decides before a pod starts. */

import { z } from 'zod';
import { parseIp, parsePrefix } from '../../net/ip.js';
import { formatPath } from '../checked-yaml.js';
import { POD_UID_EXPECTED, parsePodUid } from '../uid.js';

/** See POD_UID_EXPECTED; container IDs have one character more. */
const UID_LENGTH = 63;
const ID = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,255}$/;
/** net/core/dev.c, dev_valid_name(). */
const INTERFACE = /^[^\s/:]{1,15}$/;

const text = (max: number) => {
  const error = `a text of at most ${max} characters`;
  return z.string({ error }).max(max, { error });
};
const list = <T extends z.ZodType>(of: T, max: number) => {
  const error = `a list of at most ${max}`;
  return z.array(of, { error }).max(max, { error });
};
const uid = z.string({ error: POD_UID_EXPECTED }).refine((given) => parsePodUid(given) !== undefined, {
  error: POD_UID_EXPECTED,
});
const id = z.string({ error: 'a container ID' }).regex(ID, { error: 'a container ID' });
const interfaceName = z
  .string({ error: 'an interface name of at most 15 characters' })
  .regex(INTERFACE, { error: 'an interface name of at most 15 characters' });

const ADDRESS = 'an address with a prefix length such as 10.66.0.3/24';
const address = z.string({ error: ADDRESS }).transform((given, context) => {
  const prefix = parsePrefix(given);
  if (prefix === undefined) {
    context.addIssue({ code: 'custom', message: ADDRESS });
    return z.NEVER;
  }
  return prefix.ip;
});

/** The parts of a CNI result that matter here (CNI specification, "Result types"); all else is the runtime's. */
const INDEX = 'the number of an interface, from 0';
const result = z.looseObject(
  {
    interfaces: list(
      z.looseObject({ name: text(255), sandbox: text(4096).optional() }, { error: 'an interface' }),
      256,
    ).optional(),
    ips: list(
      z.looseObject(
        { address, interface: z.int({ error: INDEX }).min(0, { error: INDEX }).optional() },
        { error: 'an address' },
      ),
      256,
    ).optional(),
  },
  { error: 'the result of the plugin before' },
);

const PATH = 'the absolute path of a network namespace';
const netns = z.string({ error: PATH }).regex(/^\/.{1,4095}$/, { error: PATH });
const TIMEOUT = 'a whole number of milliseconds from 0 to 600000';
const annotations = z.record(text(512), text(262_144), { error: 'an object of texts' });
const common = {
  version: z.literal(1, { error: 'protocol version 1: install the plugin that belongs to this agent' }),
  timeoutMs: z.int({ error: TIMEOUT }).min(0, { error: TIMEOUT }).max(600_000, { error: TIMEOUT }).optional(),
};
const attachment = {
  ...common,
  containerId: id,
  ifname: interfaceName,
  netns: text(4096).optional(),
  /** Empty: the runtime has told none. */
  podUid: z.union([z.literal(''), uid], { error: POD_UID_EXPECTED }).optional(),
  podNamespace: text(253).optional(),
  podName: text(253).optional(),
  annotations: annotations.optional(),
};

export const cniRequest = z.discriminatedUnion(
  'command',
  [
    z.object({
      ...attachment,
      command: z.literal('ADD'),
      netns,
      prevResult: result,
    }),
    z.object({ ...attachment, command: z.literal('CHECK'), prevResult: result.optional() }),
    z.object({ ...attachment, command: z.literal('DEL') }),
    z.object({ ...common, command: z.literal('STATUS') }),
    z.object({
      ...common,
      command: z.literal('GC'),
      attachments: list(
        z.object({ containerId: id, ifname: interfaceName }, { error: 'an attachment' }),
        100_000,
      ),
    }),
  ],
  {
    error: ({ input }) =>
      typeof input === 'object' && input !== null && !Array.isArray(input)
        ? 'ADD, CHECK, DEL, STATUS or GC'
        : 'a JSON object',
  },
);

export type CniRequest = z.output<typeof cniRequest>;
export type CniAdd = Extract<CniRequest, { command: 'ADD' }>;

/** One interface of one sandbox, as remembered across restarts of the agent. */
export interface CniAttachment {
  readonly containerId: string;
  readonly ifname: string;
  readonly netns: string;
  /** The pod's UID, or `standInOf` where the runtime tells none. */
  readonly podUid: string;
  readonly podNamespace: string;
  readonly podName: string;
  readonly annotations: Readonly<Record<string, string>>;
  /** Canonical text, without prefix length. */
  readonly ips: readonly string[];
}

const attachmentSchema = z.strictObject(
  {
    containerId: id,
    ifname: interfaceName,
    netns,
    podUid: uid,
    podNamespace: text(253),
    podName: text(253),
    annotations,
    ips: list(
      z.string().refine((given) => parseIp(given) === given, { error: 'an IP address' }),
      256,
    ),
  },
  { error: 'an attachment' },
);

/** What was kept of one. Throws an Error that names the field. */
export function readAttachment(given: string): CniAttachment {
  const checked = attachmentSchema.safeParse(JSON.parse(given));
  if (!checked.success) {
    throw new Error(problemOf(checked.error, 'the file'));
  }
  return checked.data;
}

/** `prevResult.ips[0].address: expected …`, of the first thing that is wrong. */
export function problemOf({ issues: [issue] }: z.ZodError, whole: string): string {
  const path = issue === undefined || issue.path.length === 0 ? whole : formatPath(issue.path);
  return `${path}: expected ${issue?.message}`;
}

/** What an attachment bears for the UID of its pod until that is known. */
export function standInOf({ containerId }: Pick<CniAttachment, 'containerId'>): string {
  return containerId.slice(0, UID_LENGTH);
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
    podUid: request.podUid === undefined || request.podUid === '' ? standInOf(request) : request.podUid,
    podNamespace: request.podNamespace ?? '',
    podName: request.podName ?? '',
    annotations: request.annotations ?? {},
    ips: [...new Set(own.map((entry) => entry.address))],
  };
}
