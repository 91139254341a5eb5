/** The configuration file: every key, its default, and what a wrong value is told. */

import { z } from 'zod';
import { type Prefix, parsePrefix } from '../net/ip.js';
import { MASKED_MARK, type Mark, parseMark } from '../net/mark.js';
import { PORTS_EXPECTED, type PortRange, parsePortList, parsePorts } from '../net/ports.js';
import { INTERCEPTION_MODES } from '../pods/annotations.js';
import { REMEMBERED_MS } from '../pods/gone-pods.js';
import { RUNTIME_KINDS, SERVICE_ACCOUNT_NAME } from '../pods/pod.js';
import { capacity } from './capacity-schema.js';
import {
  CNI_DEFAULTS,
  type InstanceRun,
  type ListenerAddress,
  LOG_LEVELS,
  SCOPES,
  SPLICE_MODES,
  SUPERVISORS,
} from './config.js';
import { parseListenerAddress } from './listeners.js';
import { command, run } from './run-schema.js';

/** 1024 listener slots in the kernel map, four per instance: two directions, two families. */
const MAX_INSTANCES = 256;
const MAX_ID = 0xffff_fffe;

const name = (what: string) => z.string({ error: what }).min(1, { error: what });
const oneOf = <const T extends readonly string[]>(values: T) =>
  z.enum(values, { error: values.length === 2 ? values.join(' or ') : `one of ${values.join(', ')}` });
const section = <T extends z.core.$ZodLooseShape>(shape: T) => z.strictObject(shape, { error: 'a mapping' });
const flag = (whenLeftOut: boolean) => z.boolean({ error: 'true or false' }).default(whenLeftOut);
const integer = (min: number, max: number) => {
  const error = `a whole number from ${min} to ${max}`;
  return z.int({ error }).min(min, { error }).max(max, { error });
};

const MARK_EXPECTED = 'value/mask such as 0x40/0x40, both of 1 to 32 bits and the value within the mask';

const mark = z
  .string({ error: MARK_EXPECTED })
  .regex(MASKED_MARK, { error: MARK_EXPECTED, abort: true })
  .transform((text, context): Mark => {
    const parsed = parseMark(text);
    if (parsed === undefined || parsed.value === 0 || (parsed.value & ~parsed.mask) !== 0) {
      context.addIssue({ code: 'custom', message: MARK_EXPECTED });
      return z.NEVER;
    }
    return parsed;
  });

const TABLE_EXPECTED =
  'a routing table from 1 to 4294967295 that is none of the kernel’s own (253, 254, 255)';
const table = z
  .int({ error: TABLE_EXPECTED })
  .min(1, { error: TABLE_EXPECTED })
  .max(0xffff_ffff, { error: TABLE_EXPECTED })
  .refine((id) => id < 253 || id > 255, { error: TABLE_EXPECTED });

const ADDRESS_EXPECTED = 'an address and a port such as 127.0.0.1:15001 or [::1]:15001';
const LISTENERS_EXPECTED = `${ADDRESS_EXPECTED}, or a list of one per family`;

const listeners = z
  .union([z.string(), z.array(z.string(), { error: LISTENERS_EXPECTED })], { error: LISTENERS_EXPECTED })
  .transform((given, context): readonly ListenerAddress[] => {
    const texts = typeof given === 'string' ? [given] : given;
    if (texts.length === 0) {
      context.addIssue({ code: 'custom', message: LISTENERS_EXPECTED });
    }
    return texts.flatMap((text, index, all) => {
      const path = typeof given === 'string' ? [] : [index];
      const address = parseListenerAddress(text);
      if (address === undefined) {
        context.addIssue({ code: 'custom', message: ADDRESS_EXPECTED, path });
        return [];
      }
      if (all.slice(0, index).some((other) => parseListenerAddress(other)?.family === address.family)) {
        const message = `one address per family, but ${address.text} is the second of IPv${address.family}`;
        context.addIssue({ code: 'custom', message, path, params: { whole: true } });
        return [];
      }
      return [address];
    });
  });

const ports = (whatIs: string, parse: (text: string) => readonly PortRange[] | undefined) =>
  z.union([z.string(), z.number()], { error: whatIs }).transform((given, context): readonly PortRange[] => {
    const parsed = parse(String(given));
    if (parsed === undefined) {
      context.addIssue({ code: 'custom', message: whatIs });
      return z.NEVER;
    }
    return parsed;
  });

const UDP_PORTS_EXPECTED = 'none or ports from 1 to 65535 such as 53,443';
/** Not `all`: the answers to what a pod has asked go to whatever port it asked from. */
const parseUdpPorts = (text: string) => (text === 'all' ? undefined : parsePorts(text));

const CIDR_EXPECTED = 'a CIDR such as 10.0.0.0/8 or fd00::/8';
const MAX_CIDRS = 65_536;
const cidrs = z
  .array(
    z.string({ error: CIDR_EXPECTED }).transform((given, context): Prefix => {
      const parsed = parsePrefix(given);
      if (parsed === undefined) {
        context.addIssue({ code: 'custom', message: CIDR_EXPECTED });
        return z.NEVER;
      }
      return parsed;
    }),
    { error: 'a list of CIDRs' },
  )
  .max(MAX_CIDRS, { error: `at most ${MAX_CIDRS} CIDRs` });

const METRICS_EXPECTED = 'an address and a port such as 0.0.0.0:9464 or [::]:9464';
const metricsAddress = z.string({ error: METRICS_EXPECTED }).transform((text, context): ListenerAddress => {
  const address = parseListenerAddress(text);
  if (address === undefined) {
    context.addIssue({ code: 'custom', message: METRICS_EXPECTED });
    return z.NEVER;
  }
  return address;
});

const INSTANCE_NAME = /^[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?$/;
const INSTANCE_NAME_EXPECTED = 'a name of at most 63 small letters, digits, dashes and dots';

const OWNER_EXPECTED = 'at least one of uid, gid, exe and cgroup';
const path = (expected: string) => z.string({ error: expected }).regex(/^\//, { error: expected });
const owner = section({
  uid: integer(0, MAX_ID).optional(),
  gid: integer(0, MAX_ID).optional(),
  exe: path('the absolute path of an executable').optional(),
  cgroup: path('a control group as in /proc/<pid>/cgroup, such as /system.slice/envoy.service').optional(),
}).refine((given) => Object.values(given).some((value) => value !== undefined), { error: OWNER_EXPECTED });

const INSTANCE_PORTS_EXPECTED = 'ports from 1 to 65535 such as 6379,7000-7010';

const ANNOUNCED_EXPECTED = 'a list of outbound, inbound or both';

const instance = section({
  name: z.string({ error: INSTANCE_NAME_EXPECTED }).regex(INSTANCE_NAME, { error: INSTANCE_NAME_EXPECTED }),
  apps: z
    .array(name('the name of an app'), { error: 'a list of app names' })
    .min(1, { error: 'at least one app (leave apps out to serve every app)' })
    .optional(),
  ports: ports(INSTANCE_PORTS_EXPECTED, parsePortList)
    .optional()
    .describe(
      'It takes the flows of its apps to these ports alone, before any instance that has none; left out: all that no other takes.',
    ),
  outbound: listeners.optional(),
  inbound: listeners.optional(),
  outboundUdp: listeners
    .optional()
    .describe('Where it takes the datagrams that its pods send to the ports of interception.outboundUdp.'),
  inboundUdp: listeners
    .optional()
    .describe('Where it takes those that its pods are sent at the ports of interception.inboundUdp.'),
  explicit: listeners
    .optional()
    .describe('Where pods dial it by themselves: such flows are recorded, and left to it.'),
  announced: z
    .array(oneOf(['outbound', 'inbound']), { error: ANNOUNCED_EXPECTED })
    .min(1, { error: ANNOUNCED_EXPECTED })
    .optional()
    .describe(
      'Directions whose listeners the proxy announces; one that has an address goes on with it until then.',
    ),
  owner: owner.default({ uid: 0 }),
  health: section({
    checkSeconds: integer(0, 3_600)
      .default(10)
      .describe(
        'So long after the last sign that it accepts connections it is asked for another, by one of the agent’s own; 0: never.',
      ),
    failSeconds: integer(1, 3_600)
      .default(5)
      .describe(
        'So long a connection may wait to be accepted; then the failure policy is what new ones meet.',
      ),
  }).prefault({}),
  command: command.optional(),
  run: run.optional(),
}).transform((given, context) => {
  const { outbound, inbound, outboundUdp, inboundUdp, announced } = given;
  const hasListener = [outbound, inbound, announced].some((listed) => listed !== undefined);
  if (!hasListener && (given.ports === undefined || (outboundUdp ?? inboundUdp) === undefined)) {
    const message =
      'an instance needs at least one of outbound and inbound, or announced; one with ports may have outboundUdp alone';
    context.addIssue({ code: 'custom', message, params: { whole: true } });
  }
  if (inboundUdp !== undefined && inbound === undefined && announced?.includes('inbound') !== true) {
    const message =
      'what pods are sent is intercepted by UDP only where it is by TCP: inbound is needed, too';
    context.addIssue({ code: 'custom', message, path: ['inboundUdp'], params: { whole: true } });
  }
  if (given.command === undefined && given.run !== undefined) {
    const message = 'run says how a command is started, and there is no command';
    context.addIssue({ code: 'custom', message, path: ['run'], params: { whole: true } });
  }
  return {
    name: given.name,
    apps: given.apps,
    ...(given.ports === undefined ? {} : { ports: given.ports }),
    outbound: outbound ?? [],
    inbound: inbound ?? [],
    ...(outboundUdp === undefined ? {} : { outboundUdp }),
    ...(inboundUdp === undefined ? {} : { inboundUdp }),
    ...(given.explicit === undefined ? {} : { explicit: given.explicit }),
    ...(announced === undefined ? {} : { announced }),
    owner: given.owner,
    health: given.health,
    ...(given.command === undefined ? {} : { run: started(given.command, given.run) }),
  };
});

function started(command: InstanceRun['command'], given: z.output<typeof run> | undefined): InstanceRun {
  return { command, ...(given ?? run.parse({})) };
}

const FOLDER_EXPECTED = 'the absolute path of a folder';
const folder = z.string({ error: FOLDER_EXPECTED }).regex(/^\//, { error: FOLDER_EXPECTED });

const ENDPOINT_EXPECTED = 'a Unix socket such as unix:///run/containerd/containerd.sock';
const SERVICE_ACCOUNT_EXPECTED = 'the name of a service account';

const sources = section({
  static: section({ file: name('the path of a YAML file') }).optional(),
  cri: section({
    endpoint: z
      .string({ error: ENDPOINT_EXPECTED })
      .regex(/^unix:\/\/\/.+$/, { error: ENDPOINT_EXPECTED })
      .default('unix:///run/containerd/containerd.sock'),
    serviceAccount: z
      .string({ error: SERVICE_ACCOUNT_EXPECTED })
      .regex(SERVICE_ACCOUNT_NAME, { error: SERVICE_ACCOUNT_EXPECTED })
      .optional(),
  }).optional(),
  kubernetes: section({
    kubeconfig: name('the path of a kubeconfig file').optional(),
    events: flag(true).describe('Events on pods that are REFUSED or DEGRADED.'),
    removeStartupTaint: flag(true).describe(
      'Takes the taint nodesentry.io/agent-not-ready off this node once the agent is ready.',
    ),
    annotateNode: flag(true).describe('The annotation nodesentry.io/status on this node.'),
  }).optional(),
  cni: section({
    install: flag(false),
    confDir: folder.default(CNI_DEFAULTS.confDir),
    binDir: folder.default(CNI_DEFAULTS.binDir),
    stateDir: folder.default(CNI_DEFAULTS.stateDir),
    failure: oneOf(['closed', 'open']).default('closed'),
    timeoutMs: integer(1, 600_000).default(10_000),
  }).optional(),
});

const MAX_UDP_PORTS = 1024;
const scopes = z
  .array(oneOf(SCOPES), { error: 'a list of scopes' })
  .min(1, { error: 'at least one scope' })
  .optional();
const CALLER_EXPECTED = 'exactly one of uid, gid and exe';
const caller = z.union(
  [
    z.strictObject({ uid: integer(0, MAX_ID), scopes }),
    z.strictObject({ gid: integer(0, MAX_ID), scopes }),
    z.strictObject({
      exe: z
        .string()
        .regex(/^\//, { error: 'the absolute path of an executable' })
        .describe(
          'A convenience, no boundary: whoever may start the executable can ask in its name (LD_PRELOAD, a forked child). Opens the socket to no further user.',
        ),
      scopes,
    }),
  ],
  {
    error: `${CALLER_EXPECTED}: a whole number, or the absolute path of an executable; with it perhaps scopes, of ${SCOPES.slice(0, -1).join(', ')} and ${SCOPES.at(-1)}`,
  },
);

export const NODE_EXPECTED = 'a node name';
export const NODE_NAME = /^[^\s/]+$/;
/** SPIFFE ID specification, section 2.1. */
const TRUST_DOMAIN_EXPECTED =
  'a trust domain: at most 255 small letters, digits, dots, dashes and underscores';

/** `hostname` is the default of `node`. */
export function configSchema(hostname: string) {
  return section({
    node: z.string({ error: NODE_EXPECTED }).regex(NODE_NAME, { error: NODE_EXPECTED }).default(hostname),
    trustDomain: z
      .string({ error: TRUST_DOMAIN_EXPECTED })
      .regex(/^[a-z0-9._-]{1,255}$/, { error: TRUST_DOMAIN_EXPECTED })
      .default('cluster.local'),
    interception: section({
      mark: mark.prefault('0x40/0x40'),
      table: table.default(7340),
      rulePriority: integer(1, 32765).default(90),
      failure: oneOf(['closed', 'open']).default('closed'),
      enrol: oneOf(['labelled', 'all']).default('labelled'),
      other: oneOf(['pass', 'drop']).default('pass'),
      mode: oneOf(INTERCEPTION_MODES)
        .default('intercept')
        .describe(
          'observe: everything is put in place and nothing new is intercepted; "nodesentry rehearse" tells what would be.',
        ),
      udpPorts: z
        .array(integer(1, 65_535), { error: 'a list of ports' })
        .max(MAX_UDP_PORTS, { error: `at most ${MAX_UDP_PORTS} ports` })
        .default([]),
      splice: oneOf(SPLICE_MODES)
        .default('auto')
        .describe(
          'Bytes of runc pods past the TCP stack. auto: where the kernel does all of it right, and for pods that ask for it by their annotation; disabled: for none.',
        ),
      outbound: ports(PORTS_EXPECTED, parsePorts)
        .prefault('all')
        .describe('Ports that pods dial and that are intercepted, at most: a pod can only narrow it down.'),
      inbound: ports(PORTS_EXPECTED, parsePorts)
        .prefault('all')
        .describe('The same of ports at which pods are dialled.'),
      outboundUdp: ports(UDP_PORTS_EXPECTED, parseUdpPorts)
        .prefault('none')
        .describe(
          'UDP ports that pods send to and that are intercepted, where their instance takes datagrams: a pod can only narrow it down.',
        ),
      inboundUdp: ports(UDP_PORTS_EXPECTED, parseUdpPorts)
        .prefault('none')
        .describe('The same of UDP ports at which pods are sent to.'),
      includeOutboundCidrs: cidrs
        .optional()
        .describe('Only what goes to these is intercepted; left out: whatever the destination.'),
      excludeOutboundCidrs: cidrs.prefault([]).describe('What goes to these is not.'),
      includeInboundCidrs: cidrs
        .optional()
        .describe('Only what comes from these is intercepted; left out: whatever the source.'),
      excludeInboundCidrs: cidrs.prefault([]).describe('What comes from these is not.'),
    })
      .transform(
        ({
          outbound,
          inbound,
          outboundUdp,
          inboundUdp,
          includeOutboundCidrs,
          excludeOutboundCidrs,
          includeInboundCidrs,
          excludeInboundCidrs,
          ...given
        }) => ({
          ...given,
          selection: {
            outbound: { ports: outbound, include: includeOutboundCidrs, exclude: excludeOutboundCidrs },
            inbound: { ports: inbound, include: includeInboundCidrs, exclude: excludeInboundCidrs },
            udp: {
              outbound: { ports: outboundUdp, include: includeOutboundCidrs, exclude: excludeOutboundCidrs },
              inbound: { ports: inboundUdp, include: includeInboundCidrs, exclude: excludeInboundCidrs },
            },
          },
        }),
      )
      .prefault({}),
    sources: sources.prefault({}),
    instances: z
      .array(instance, { error: 'a list of instances' })
      .min(1, { error: 'at least one instance' })
      .max(MAX_INSTANCES, { error: `at most ${MAX_INSTANCES} instances` })
      .prefault([{ name: 'default', outbound: '127.0.0.1:15001', inbound: '127.0.0.1:15006' }]),
    supervision: section({
      by: oneOf(SUPERVISORS).default('agent'),
    })
      .prefault({})
      .describe('Who starts the instances that have a command: the agent, or "nodesentry supervise".'),
    identity: section({
      rememberSeconds: integer(1, 3_600)
        .default(REMEMBERED_MS / 1_000)
        .describe(
          'For how long the flows of a pod that has gone are still answered, as those of a pod that ends.',
        ),
      history: section({
        seconds: integer(1, 86_400).default(3_600),
        entries: integer(1_000, 1_000_000).default(100_000),
      })
        .prefault({})
        .describe('For how long it is kept which pod had which address, and of how many addresses at most.'),
    }).prefault({}),
    runtimes: section({
      handlers: z
        .record(z.string(), oneOf(RUNTIME_KINDS), { error: 'a mapping of handler or runtime type to kind' })
        .prefault({}),
    }).prefault({}),
    api: section({
      allow: z
        .array(caller, { error: 'a list of callers' })
        .min(1, { error: 'at least one caller' })
        .prefault([{ uid: 0 }]),
      rateLimit: section({
        perSecond: integer(1, 1_000_000).default(20_000),
        burst: integer(1, 10_000_000).default(40_000),
      }).prefault({}),
    }).prefault({}),
    lifecycle: section({
      port: integer(1, 65_535)
        .default(15_077)
        .describe('At which post-start and pre-stop hooks of pods are answered.'),
    })
      .optional()
      .describe('Left out: no hooks are answered.'),
    metrics: section({
      listen: metricsAddress
        .optional()
        .describe('Where metrics, and nothing else, are answered to anybody; left out: nowhere.'),
    }).prefault({}),
    log: section({ level: oneOf(LOG_LEVELS).default('info') }).prefault({}),
    capacity: capacity.prefault({}),
  });
}

/** What `nodesentry config schema` prints (JSON Schema 2020-12), for editors. */
export function configJsonSchema(): object {
  return z.toJSONSchema(configSchema('(the hostname)'), { io: 'input' });
}
