/** What the API answers, as schemas: the types in messages.ts, in a form that `/openapi.json` can show. */

import { z } from 'zod';
import { ASSURANCES } from '../identity/resolve.js';
import { FLOW_PROTOCOLS } from '../net/protocol.js';
import { RUNTIME_KINDS } from '../pods/pod.js';
import { Capacity } from './capacity-shape.js';

const count = () => z.int().nonnegative();
const text = (description: string) => z.string().meta({ description });
const unixMs = () => z.number().meta({ description: 'Unix time, milliseconds.' });
const socketAddress = () => z.string().meta({ examples: ['10.66.0.3:41886', '[fd00::3]:41886'] });
const failure = () => z.enum(['closed', 'open']);

export const Workload = z
  .object({
    uid: z.string(),
    generation: count().meta({ description: 'Of its endpoint, or of that of the flow; 0: never enrolled.' }),
    spiffeId: text('Empty where nobody with authority has named the pod.'),
    namespace: z.string(),
    podName: z.string(),
    podUid: z.string(),
    serviceAccount: z.string(),
    app: z.string(),
    runtime: z.enum(RUNTIME_KINDS),
    runtimeHandler: z.string(),
    sandboxId: z.string(),
    ips: z.array(z.string()),
    labels: z.record(z.string(), z.string()),
    node: z.string(),
    state: z.enum(['LIVE', 'TERMINATING']),
  })
  .meta({ description: 'A pod. What is not known is an empty text.' });

const Interception = z.object({
  desired: z.boolean(),
  programmed: z.boolean(),
  verified: z.boolean(),
  state: z.enum(['INTERCEPTED', 'OBSERVED', 'PENDING', 'REFUSED', 'DEGRADED', 'DRAINED', 'NOT_ENROLLED']),
  reason: z.string(),
  interface: z.string(),
  topology: z.enum(['routed', 'bridge', '']),
  interfaces: z.array(
    z.object({
      name: z.string(),
      ifindex: count(),
      topology: z.enum(['routed', 'bridge']),
      podInterface: text('Empty where it is not known.'),
    }),
  ),
  instance: z.string(),
  directions: z.enum(['both', 'outbound only', '']),
  failure: failure(),
  splice: z
    .object({ used: z.boolean(), reason: text('Why not; empty where it is.') })
    .meta({ description: 'Whether its bytes go past the TCP stack.' }),
  problems: z.array(z.string()),
  openFlows: count()
    .exactOptional()
    .meta({ description: 'Of a drained pod: that are still where they were before.' }),
});

export const WorkloadReport = Workload.extend({ interception: Interception });

export const Workloads = z.object({
  epoch: z.string(),
  revision: count(),
  workloads: z.array(WorkloadReport),
});

export const Explanation = z.object({
  uid: z.string(),
  namespace: z.string(),
  podName: z.string(),
  state: text('How far its interception has come; empty where nothing is known of it yet.'),
  protocol: z.enum(FLOW_PROTOCOLS),
  direction: z.enum(['EGRESS', 'INGRESS']),
  far: text('The address at the far end.'),
  port: count().meta({ description: 'That is dialled.' }),
  outcome: z.enum(['INTERCEPTED', 'EXPLICIT', 'EXCLUDED', 'PASSED', 'RESET', 'DROPPED', 'UNKNOWN']),
  rule: z.string(),
  instance: text('Whose listeners it is for; empty where it is for none.'),
  inForce: z.boolean().meta({ description: 'The kernel holds what this rests on.' }),
});

const inbound = () => socketAddress().nullable().meta({ description: 'Null: nobody who may listens there.' });

export const Services = z.object({
  epoch: z.string(),
  revision: count(),
  services: z.array(
    z
      .object({
        namespace: z.string(),
        app: z.string(),
        node: z.string(),
        instance: text('Empty where what the pods are sent goes straight to them.'),
        inbound: z
          .object({ ipv4: inbound(), ipv6: inbound() })
          .meta({ description: 'Of the instance, the listener that gets what the pods are sent.' }),
        pods: z.array(
          Workload.pick({ uid: true, generation: true, podName: true, spiffeId: true, ips: true }),
        ),
      })
      .meta({ description: 'The pods of an app that are reached in one way.' }),
  ),
});

const assurance = () => z.enum(ASSURANCES);
const direction = () => z.enum(['EGRESS', 'INGRESS']);
const protocol = () => z.enum(FLOW_PROTOCOLS);
const name = () =>
  text('Under which name the pod had looked up the destination, as its proxy has told.').exactOptional();
const mode = () =>
  z
    .enum(['INTERCEPTED', 'EXPLICIT'])
    .meta({ description: 'EXPLICIT: the pod dialled the proxy’s own address.' });
const Original = z.object({ src: socketAddress(), dst: socketAddress() });
const ttlMs = () => count().meta({ description: 'How long the answer may be kept, milliseconds.' });

const IDENTITY_REASONS = [
  'KEY_INVALID',
  'WORKLOAD_NOT_FOUND',
  'WORKLOAD_UNCONFIRMED',
  'AMBIGUOUS',
  'ASSURANCE_TOO_LOW',
  'NOT_SYNCED',
] as const;

export const Party = z
  .union([
    z.object({ workload: Workload, assurance: assurance() }),
    z.object({ workload: z.null(), reason: z.enum(IDENTITY_REASONS) }),
  ])
  .meta({ description: 'An end of a flow: a pod of this node, or why none is named.' });

export const Resolution = z.object({
  workload: Workload,
  direction: direction(),
  mode: mode().exactOptional(),
  original: Original,
  instance: text('Empty where no instance serves the pod.'),
  assurance: assurance(),
  epoch: z.string(),
  revision: count(),
  ttlMs: ttlMs(),
  source: Party,
  destination: Party,
});

export const PastResolution = z
  .object({
    workload: Workload,
    assurance: z.enum(['DATAPATH_RECORDED', 'IP_ONLY']),
    at: unixMs(),
    from: unixMs(),
    until: z.number().nullable().meta({ description: 'Null: the pod has the address still.' }),
    started: unixMs().exactOptional(),
    name: name(),
    direction: direction().exactOptional(),
    original: Original.exactOptional(),
    epoch: z.string(),
    revision: count(),
    ttlMs: ttlMs(),
  })
  .meta({ description: 'Who had an address, or whose flow it was, at a time.' });

export const PodResolution = z
  .object({
    workload: Workload,
    instance: text('Empty where no instance serves the pod.'),
    assurance: assurance().exactOptional().meta({ description: 'Of an address.' }),
    epoch: z.string(),
    revision: count(),
    ttlMs: ttlMs(),
  })
  .meta({ description: 'A pod that was asked for by another key than a flow.' });

export const ResolveAnswer = z.union([Resolution, PastResolution, PodResolution]);

export const Problem = z
  .object({
    type: z.string(),
    title: z.string(),
    status: count(),
    detail: z.string(),
    reason: z.enum([
      ...IDENTITY_REASONS,
      'HEADER_MISSING',
      'CALLER_NOT_ALLOWED',
      'INSTANCE_NOT_FOUND',
      'NOT_FOUND',
      'NOT_READY',
      'RATE_LIMITED',
      'INSTANCE_BUSY',
      'PROCESS_NOT_FOUND',
      'NOT_TCP',
      'NOT_LISTENING',
      'WRONG_NAMESPACE',
      'NOT_OWNER',
      'LISTENER_TAKEN',
      'NOT_ADOPTED',
      'INTERNAL',
    ]),
    blockers: z
      .array(z.string())
      .exactOptional()
      .meta({ description: 'With NOT_READY: what has to happen first.' }),
  })
  .meta({ description: 'RFC 9457.' });

export const BatchAnswer = z.object({
  results: z.array(z.union([z.object({ resolution: ResolveAnswer }), z.object({ problem: Problem })])),
});

export const Flow = z
  .object({
    startedMs: unixMs(),
    protocol: protocol(),
    src: socketAddress(),
    dst: socketAddress(),
    name: name(),
    asked: z.string().exactOptional().meta({
      description: 'Of an EXPLICIT flow: where the pod has asked its proxy to go, as that has told.',
    }),
    direction: direction(),
    mode: mode(),
    instance: z.string(),
    verdict: z.string(),
    namespace: z.string(),
    podName: z.string(),
    podUid: z.string(),
    endpointId: count(),
    generation: count(),
    ifindex: count(),
  })
  .meta({
    description: 'A flow, or a first packet that was refused. Names are empty where the pod is not known.',
  });

export const Told = z.object({ podUid: text('Of the pod whose flow it is.') });

export const Flows = z.object({ flows: z.array(Flow) });

export const FlowLine = z
  .union([Flow, z.object({ lost: count() })])
  .meta({ description: 'A line: an event, or how many were dropped here because the reader was slow.' });

const at = { epoch: z.string(), revision: count() };

export const IdentityLine = z
  .union([
    z.object({ type: z.enum(['SNAPSHOT', 'SNAPSHOT_DONE', 'HEARTBEAT', 'LOST']), ...at }),
    z.object({ type: z.literal('UPSERT'), ...at, workload: Workload }),
    z.object({ type: z.literal('REMOVED'), ...at, uid: z.string(), generation: count() }),
  ])
  .meta({ description: 'A line: the reader has all up to `revision`, and may come back from there.' });

const Listener = z.object({
  instance: z.string(),
  generation: z
    .literal(2)
    .exactOptional()
    .meta({ description: 'Of the set that takes turns with the first when the instance is upgraded.' }),
  protocol: z.literal('udp').exactOptional().meta({ description: 'Left out: TCP.' }),
  direction: z.enum(['outbound', 'inbound']),
  family: z.union([z.literal(4), z.literal(6)]),
  address: socketAddress(),
  adopted: z.boolean(),
  announced: z
    .literal(true)
    .exactOptional()
    .meta({ description: 'Its proxy announced it; left out: the configuration names its address.' }),
  pid: count().exactOptional(),
  process: z.string().exactOptional(),
  sockets: z.object({ all: count(), transparent: count() }),
  refused: z.string().exactOptional(),
  failure: failure(),
});

export const Listeners = z.object({
  listeners: z.array(Listener).meta({ description: 'All of the instance, as they are from now on.' }),
});

export const InstanceUpgrade = z
  .object({
    instance: z.string(),
    phase: z.enum(['CHECKING', 'CANARY', 'DRAINING', 'DONE', 'FAILED']),
    detail: text('What goes on, or why it failed.'),
    startedMs: unixMs(),
    canary: z
      .number()
      .exactOptional()
      .meta({ description: 'The share of new flows that the new one takes.' }),
    open: count().exactOptional().meta({ description: 'Connections that the old one still has.' }),
  })
  .meta({ description: 'How the upgrade of an instance stands.' });
const InstanceProcess = z.object({
  name: z.string(),
  state: z.enum(['STOPPED', 'STARTING', 'RUNNING', 'BACKOFF', 'STOPPING', 'FAILED']),
  pid: count().nullable(),
  restarts: count().meta({ description: 'After it had ended by itself.' }),
  startedAt: z.iso.datetime().nullable(),
  memoryBytes: count().meta({ description: 'Of all its processes, what they share counted once.' }),
  lastExit: text('Such as "exit code 1", "SIGKILL" or "out of memory"; empty where it has not ended yet.'),
  problem: text('Why it does not run though it should; empty where it does.'),
});

export const Instances = z.object({
  changes: count().meta({ description: 'Of the list, since the agent started.' }),
  problem: text('Why what the configuration says now does not hold; empty where it does.'),
  instances: z.array(
    z.object({
      name: z.string(),
      apps: z.array(z.string()).nullable().meta({ description: 'Null: all that no other instance serves.' }),
      owner: z
        .object({
          uid: count().exactOptional(),
          gid: count().exactOptional(),
          exe: z.string().exactOptional(),
          cgroup: z.string().exactOptional(),
        })
        .meta({ description: 'Who may hold its listeners.' }),
      listeners: z.array(Listener),
      pods: z
        .array(
          z.object({
            namespace: z.string(),
            podName: z.string(),
            app: z.string(),
            state: Interception.shape.state,
          }),
        )
        .meta({ description: 'That are to be intercepted.' }),
      generation: count().meta({ description: 'Grows with every upgrade; begins at 1.' }),
      health: z
        .object({
          state: z.enum(['UNKNOWN', 'ACCEPTING', 'HUNG', 'DOWN']),
          reason: text('Empty where nothing is wrong.'),
        })
        .meta({ description: 'Whether it accepts connections, by one of the agent’s own.' }),
      flowsStarted: count(),
      openFlows: count(),
      memoryBytes: count().nullable().meta({ description: 'Of the processes that hold its listeners.' }),
      memorySavedBytes: count()
        .nullable()
        .meta({ description: 'What as many proxies of this size as it has pods would need besides.' }),
      upgrade: InstanceUpgrade.nullable().meta({ description: 'The last one since the agent started.' }),
      process: InstanceProcess.nullable().meta({ description: 'Null where it has no command.' }),
    }),
  ),
});

export const Drain = z
  .object({
    scope: z.union([
      z.object({ pod: text('Its UID.') }),
      z.object({ app: z.string() }),
      z.object({ all: z.literal(true) }),
    ]),
    to: text('The instance that new flows go to; empty: past every proxy.'),
    since: unixMs(),
    deadline: z.number().nullable().meta({ description: 'Null: what is open may take as long as it wants.' }),
    pods: z.array(
      z.object({
        uid: z.string(),
        namespace: z.string(),
        podName: z.string(),
        state: Interception.shape.state,
        openFlows: count().meta({ description: 'That are still where they were before.' }),
      }),
    ),
  })
  .meta({ description: 'A drain, and the pods that it decides about.' });

export const Drains = z.object({
  problem: text('Why what was open after a deadline could not be ended; empty where it could.'),
  drains: z.array(Drain),
});

export const Resumed = z.object({ resumed: count().meta({ description: 'How many drains ended.' }) });

const totals = () => z.record(z.string(), count());

export const Status = z.object({
  version: z.string(),
  node: z.string(),
  pid: count(),
  uptimeMs: count(),
  epoch: z.string(),
  revision: count(),
  ready: z.boolean(),
  blockers: z.array(z.string()),
  sources: z.array(
    z.object({
      name: z.enum(['static', 'cri', 'kubernetes', 'cni']),
      synced: z.boolean(),
      lastError: text('Empty while the source is followed, and takes what the agent tells it.'),
    }),
  ),
  familiesOff: z.array(z.object({ family: z.union([z.literal(4), z.literal(6)]), reason: z.string() })),
  listeners: z.array(Listener),
  endpoints: z.record(Interception.shape.state, count()),
  repairs: z.record(
    z.enum([
      'policy-route',
      'nftables',
      'ipvs',
      'socket-lookup',
      'pin',
      'map',
      'attachment',
      'inbound',
      'sysctl',
    ]),
    count(),
  ),
  podsLate: count().exactOptional(),
  socketOption: z.object({ cgroups: count(), problem: text('Empty where nothing is wrong.') }),
  splice: z
    .object({
      mode: z.enum(['disabled', 'auto', 'enabled']),
      pods: count().meta({ description: 'That have it.' }),
      problem: text('Why no pod can have it; empty where pods can.'),
      flaws: z
        .array(z.string())
        .meta({ description: 'What this kernel gets wrong: why only pods that ask for it have it.' }),
      ends: count().meta({ description: 'Sockets that were taken in.' }),
      messages: count(),
      bytes: count(),
      leftToTcp: count().meta({ description: 'Messages of such sockets that went by TCP.' }),
      heldBack: count().meta({ description: 'Packets that had to be sent again, behind spliced bytes.' }),
    })
    .meta({ description: 'Bytes past the TCP stack; what is counted, since it was loaded.' }),
  packets: totals(),
  packetsReceived: totals(),
  eventsLost: z.object({ kernel: count(), agent: count() }),
});

export const Alive = z.object({ status: z.literal('alive') });
export const Ready = z.object({ status: z.literal('ready') });

/** By the names that they have in the document. */
export const SHAPES = {
  Workload,
  WorkloadReport,
  Workloads,
  Explanation,
  Services,
  Instances,
  InstanceUpgrade,
  Listeners,
  Told,
  Drain,
  Drains,
  Resumed,
  Capacity,
  Party,
  Resolution,
  PastResolution,
  PodResolution,
  ResolveAnswer,
  BatchAnswer,
  Problem,
  Flow,
  Flows,
  FlowLine,
  IdentityLine,
  Status,
  Alive,
  Ready,
} as const;

export type ShapeName = keyof typeof SHAPES;
