/** What of other people's is in the way: rules, routes, marks, firewalls, programs at our hook. */

import { familiesKnown } from '../kernel/families.js';
import { RouteSocket } from '../kernel/netlink.js';
import { ROUTE_PROTOCOL } from '../kernel/netlink-messages.js';
import { formatMark, type Mark } from '../net/mark.js';
import { endpointToHostDrops } from './calico.js';
import { type Check, type Finding, fail, ok, warn } from './check.js';
import { refusals } from './firewall.js';
import { hookFindings } from './hooks.js';
import { type MarkUse, markUses } from './marks.js';
import { type Rulesets, readRulesets } from './rulesets.js';
import { type Command, runCommand, some } from './system.js';

export interface Place {
  readonly mark: Mark;
  readonly table: number;
  readonly rulePriority: number;
}

/** Nothing is looked at before a check is run. */
export function neighbourChecks(place: Place, command: Command = runCommand): Check[] {
  let reading: Promise<Rulesets> | undefined;
  const rulesets = (): Promise<Rulesets> => {
    reading ??= readRulesets(command);
    return reading;
  };
  return [
    { name: 'policy rules', run: () => rules(place) },
    { name: `table ${place.table}`, run: () => routes(place) },
    { name: 'marks of others', run: async () => marks(place, await rulesets()) },
    { name: 'host firewall', run: async () => firewall(place, await rulesets()) },
    {
      name: 'programs of others',
      run: () => withSocket(async (socket) => hookFindings(await socket.links(), command)),
    },
  ];
}

/** Rejects as `body` does; the socket is closed in any case. */
export async function withSocket<T>(body: (socket: RouteSocket) => Promise<T>): Promise<T> {
  const socket = new RouteSocket();
  try {
    return await body(socket);
  } finally {
    socket.close();
  }
}

function rules({ mark, table, rulePriority }: Place): Promise<Finding[]> {
  return withSocket(async (socket) => {
    const found: Finding[] = [];
    for (const family of familiesKnown()) {
      for (const rule of await socket.rules(family)) {
        if (rule.protocol === ROUTE_PROTOCOL) {
          continue;
        }
        const what = `IPv${family} rule at priority ${rule.priority} of somebody else`;
        if (rule.table === table) {
          found.push(fail(`${what} uses table ${table}`, 'set interception.table to a free one'));
        }
        if ((rule.mask & mark.mask) !== 0) {
          found.push(
            warn(
              `${what} matches ${formatMark({ value: rule.mark, mask: rule.mask })}, which has bits of our ${formatMark(mark)}`,
              (rule.mark & mark.mask) === 0
                ? 'see that its packets never come from pods, or set interception.mark to bits nobody uses'
                : 'packets that bear its mark would be delivered to this node: set interception.mark to bits nobody uses',
            ),
          );
        }
        if (rule.priority === rulePriority) {
          found.push(warn(`${what} has our priority`, 'set interception.rulePriority to a free one'));
        }
      }
    }
    return found.length === 0
      ? [ok(`nobody else uses priority ${rulePriority}, table ${table} or mark ${formatMark(mark)}`)]
      : found;
  });
}

function routes({ table }: Place): Promise<Finding[]> {
  return withSocket(async (socket) => {
    const found: Finding[] = [];
    for (const family of familiesKnown()) {
      const foreign = socket.tableRoutes(family, table).filter(({ protocol }) => protocol !== ROUTE_PROTOCOL);
      if (foreign.length > 0) {
        found.push(
          fail(
            `IPv${family} routes of somebody else: ${foreign.length}`,
            'set interception.table to a free one',
          ),
        );
      }
    }
    return found.length === 0 ? [ok('no routes of others')] : found;
  });
}

const CONSEQUENCES = [
  {
    does: 'sets',
    verb: 'set bits of',
    advice:
      'forwarded packets lose it before they are routed, the node’s own that get it are delivered to this node: set interception.mark to bits nobody uses',
  },
  {
    does: 'overwrites',
    verb: 'overwrite the whole mark, with it',
    advice:
      'an intercepted packet that meets the rule is lost: give the rule a mask (value/mask) without our bits',
  },
  {
    does: 'matches',
    verb: 'match on bits of',
    advice:
      'intercepted packets meet the rule: set interception.mark to bits nobody uses, or see that it may be so',
  },
] as const satisfies readonly { does: MarkUse['does']; verb: string; advice: string }[];

function marks({ mark }: Place, rulesets: Rulesets): Finding[] {
  const uses = markUses(rulesets, mark.mask);
  const found = CONSEQUENCES.flatMap(({ does, verb, advice }) => {
    const places = uses.filter((use) => use.does === does).map(({ where }) => where);
    return places.length === 0 ? [] : [warn(`rules in ${some(places)} ${verb} ${formatMark(mark)}`, advice)];
  });
  return [
    ...(found.length === 0 && rulesets.unread.length === 0
      ? [ok(`no nftables or iptables rule touches ${formatMark(mark)}`)]
      : found),
    ...unread(rulesets),
  ];
}

function firewall({ mark }: Place, rulesets: Rulesets): Finding[] {
  const refused = refusals(rulesets, mark.value);
  if (refused.length > 0) {
    const hooks = [...new Set(refused.map(({ hook }) => hook))].join(' and ');
    const places = [...new Set(refused.map(({ where }) => where))];
    return [
      warn(
        `${hooks} drop by default`,
        `intercepted flows are untracked: accept "ct state untracked" (iptables: --ctstate UNTRACKED) in ${some(places)}; see docs/datapath.md`,
      ),
    ];
  }
  const drops = endpointToHostDrops(rulesets.iptables);
  if (drops.length > 0) {
    return [
      fail(
        `Calico drops what pods send to the node, and intercepted flows with it: ${some(drops)}`,
        "set Calico's DefaultEndpointToHostAction to Return or Accept (FelixConfiguration); see docs/cni-policy.md",
      ),
    ];
  }
  return rulesets.unread.length > 0
    ? unread(rulesets)
    : [ok('accepts untracked packets on input and output, as far as can be told')];
}

function unread({ unread: reasons }: Rulesets): Finding[] {
  return reasons.length === 0
    ? []
    : [fail(`could not be checked: ${some(reasons, 1)}`, 'run as root, or repair the command')];
}
