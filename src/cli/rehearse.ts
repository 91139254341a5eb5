import { setTimeout as delay } from 'node:timers/promises';
import { Command } from 'commander';
import type { ApiClient } from '../api/client.js';
import type { FlowMessage, WorkloadMessage } from '../api/messages.js';
import { loadConfig } from '../config/load.js';
import { type CheckResult, runChecks } from '../doctor/check.js';
import { neighbourChecks, type Place } from '../doctor/neighbours.js';
import { parseSocketAddress, type SocketAddress } from '../net/socket-address.js';
import { globalOptions, seconds } from './options.js';
import { json, type Print, printToStdout, table } from './output.js';
import { withAgent } from './with-agent.js';

const DEFAULT_SECONDS = 60;

/** What would become of flows that were seen meanwhile. */
const OUTCOMES = {
  WOULD_INTERCEPT: 'would be intercepted',
  WOULD_REFUSE: 'would be refused',
  EXCLUDED: 'excluded',
  FLOW_STARTED: 'is intercepted',
  EXPLICIT: 'dials the proxy by itself',
  OBSERVED: 'open before, would be spared',
} as const;

type Outcome = keyof typeof OUTCOMES;

interface RehearsedFlows {
  /** `namespace/name`. */
  readonly pod: string;
  readonly direction: FlowMessage['direction'];
  /** The destination of what the pod dials; the pod's own port of what dials it. */
  readonly to: string;
  readonly outcome: Outcome;
  /** Whose listeners they are for; empty where for none. */
  readonly instance: string;
  /** Why, where that can be told. */
  readonly rule: string;
  readonly flows: number;
}

interface Rehearsal {
  readonly seconds: number;
  readonly pods: readonly { readonly pod: string; readonly state: string; readonly reason: string }[];
  readonly flows: readonly RehearsedFlows[];
  /** More than could be told. */
  readonly leftOut: number;
  /** Programs, rules and firewalls of others that stand in the way. */
  readonly neighbours: readonly CheckResult[];
}

export function rehearseCommand(print: Print = printToStdout): Command {
  return new Command('rehearse')
    .description(
      'what would become of the flows of observed pods: watches them for a while, and changes nothing',
    )
    .option('--for <time>', 'for so long, such as 60s, 5m or 1h', seconds, DEFAULT_SECONDS)
    .option('--json', 'print JSON')
    .action((options: { for: number; json?: true }, command: Command) =>
      withAgent(command, async (client) => {
        // Before anything is watched: a mistake in it would cost all that was seen.
        const { interception } = loadConfig(globalOptions(command).config);
        const rehearsal = await rehearse(client, options.for, interception);
        print(options.json ? json(rehearsal) : describe(rehearsal));
      }),
    );
}

async function rehearse(client: ApiClient, forSeconds: number, place: Place): Promise<Rehearsal> {
  const stop = new AbortController();
  const interrupt = () => stop.abort();
  process.once('SIGINT', interrupt);
  process.once('SIGTERM', interrupt);
  const seen = new Map<string, { flow: FlowMessage; to: string; outcome: Outcome; count: number }>();
  const open = new Set<string>();
  let leftOut = 0;
  try {
    void delay(forSeconds * 1_000, undefined, { signal: stop.signal }).then(interrupt, () => undefined);
    for await (const line of client.followFlows(stop.signal)) {
      if ('lost' in line) {
        leftOut += line.lost;
        continue;
      }
      const outcome = outcomeOf(line);
      // Both ends' packets are of one connection.
      const pair = [line.src, line.dst].sort().join();
      if (outcome === undefined || (outcome === 'OBSERVED' && open.has(pair))) {
        continue;
      }
      open.add(pair);
      const place = line.direction === 'EGRESS' ? line.dst : `port ${parseSocketAddress(line.dst)?.port}`;
      const to = line.protocol === 'udp' ? `${place} UDP` : place;
      const key = [line.podUid, line.direction, to, outcome, line.instance].join();
      const before = seen.get(key);
      seen.set(key, { flow: line, to, outcome, count: (before?.count ?? 0) + 1 });
    }
  } finally {
    process.off('SIGINT', interrupt);
    process.off('SIGTERM', interrupt);
    stop.abort();
  }
  const flows: RehearsedFlows[] = [];
  for (const { flow, to, outcome, count } of seen.values()) {
    flows.push({
      pod: flow.podName === '' ? '(gone)' : `${flow.namespace}/${flow.podName}`,
      direction: flow.direction,
      to,
      outcome,
      instance: outcome === 'EXCLUDED' || outcome === 'OBSERVED' ? '' : flow.instance,
      rule: outcome === 'OBSERVED' ? '' : await ruleOf(client, flow),
      flows: count,
    });
  }
  const { workloads } = await client.workloads();
  return {
    seconds: forSeconds,
    pods: workloads.filter(({ interception }) => interception.desired).map(stateOf),
    flows: flows.sort((a, b) => a.pod.localeCompare(b.pod) || b.flows - a.flows),
    leftOut,
    neighbours: await neighboursOf(place),
  };
}

function outcomeOf({ verdict }: FlowMessage): Outcome | undefined {
  return verdict in OUTCOMES ? (verdict as Outcome) : undefined;
}

/** As the rules are now; empty where the pod has gone. */
async function ruleOf(
  client: ApiClient,
  { podUid, protocol, direction, src, dst }: FlowMessage,
): Promise<string> {
  const [from, to] = [parseSocketAddress(src), parseSocketAddress(dst)];
  if (from === undefined || to === undefined) {
    return '';
  }
  const flow: { dst: SocketAddress } | { src: SocketAddress } =
    direction === 'EGRESS' ? { dst: to } : { src: { ip: from.ip, port: to.port } };
  try {
    return (await client.explain(podUid, { ...flow, protocol })).rule;
  } catch {
    return '';
  }
}

function stateOf({ namespace, podName, interception }: WorkloadMessage) {
  return { pod: `${namespace}/${podName}`, state: interception.state, reason: interception.reason };
}

/** Only what somebody should look at. */
async function neighboursOf(place: Place): Promise<CheckResult[]> {
  return (await runChecks(neighbourChecks(place))).filter(({ status }) => status !== 'ok');
}

function describe({ seconds: length, pods, flows, leftOut, neighbours }: Rehearsal): string {
  const parts = [
    pods.length === 0
      ? 'No pods: none is enrolled.'
      : table(
          ['POD', 'STATE', 'REASON'],
          pods.map(({ pod, state, reason }) => [pod, state, reason]),
        ),
    flows.length === 0
      ? `No flow within ${length} seconds.`
      : table(
          ['POD', 'DIRECTION', 'TO', 'FLOWS', 'OUTCOME', 'INSTANCE', 'RULE'],
          flows.map(({ pod, direction, to, flows: count, outcome, instance, rule }) => [
            pod,
            direction,
            to,
            String(count),
            OUTCOMES[outcome],
            instance,
            rule,
          ]),
        ),
    ...(leftOut === 0 ? [] : [`${leftOut} more flows, left out: more than can be told.`]),
    neighbours.length === 0
      ? 'Nothing of others stands in the way.'
      : table(
          ['IN THE WAY', 'FOUND', 'WHAT TO DO'],
          neighbours.map(({ name, found, advice }) => [name, found, advice]),
        ),
  ];
  return parts.join('\n\n');
}
