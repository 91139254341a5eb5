/**
 * One rule and one route per address family, whatever the number of pods:
 *
 *   ip rule add priority 90 fwmark 0x40/0x40 lookup 7340   a packet that a socket was assigned to …
 *   ip route add local default dev lo table 7340           … is delivered on this node, whatever its destination
 *
 * Priority 90 comes after `local` (0) and before the rules that CNIs are known to add from 9 to 110 with marks of
 * their own; ours matches nothing without our bit. Both carry protocol 73, so that clean-up needs no memory. What relies
 * on them: docs/datapath.md, "Who relies on whom".
 */

import type { TableRoute } from '../native/routes.js';
import { FAMILIES, type Family } from '../net/family.js';
import type { Mark } from '../net/mark.js';
import { DatapathError } from './errors.js';
import type { RouteSocket } from './netlink.js';
import { ROUTE_PROTOCOL, type Rule } from './netlink-messages.js';

export interface PolicyRoutesSettings {
  readonly mark: Mark;
  readonly table: number;
  readonly rulePriority: number;
}

export interface PolicyRoutesReport {
  /** What had to be put (back) in place, in words; empty when everything was there. */
  readonly repaired: readonly string[];
}

function isOurs(entry: { protocol: number }): boolean {
  return entry.protocol === ROUTE_PROTOCOL;
}

function isWanted(rule: Rule, settings: PolicyRoutesSettings): boolean {
  return (
    !rule.narrowed &&
    rule.table === settings.table &&
    rule.priority === settings.rulePriority &&
    rule.mark === settings.mark.value &&
    rule.mask === settings.mark.mask
  );
}

/** rtnetlink(7). */
const RTN_LOCAL = 2;

function isLocalDefault(route: TableRoute): boolean {
  return isOurs(route) && route.type === RTN_LOCAL && route.prefixLength === 0;
}

/** Asked for every family before anything is added: our route would catch what their rule sends to the table. */
function refuseForeign(
  family: Family,
  routes: readonly TableRoute[],
  rules: readonly Rule[],
  table: number,
): void {
  const route = routes.find((candidate) => !isOurs(candidate));
  if (route !== undefined) {
    throw new DatapathError(
      'ROUTE_CONFLICT',
      `routing table ${table} already holds an IPv${family} route of somebody else (protocol ${route.protocol}): set interception.table to a free one`,
    );
  }
  const rule = rules.find((candidate) => !isOurs(candidate) && candidate.table === table);
  if (rule !== undefined) {
    throw new DatapathError(
      'RULE_CONFLICT',
      `an IPv${family} rule of somebody else at priority ${rule.priority} uses table ${table}: set interception.table to a free one`,
    );
  }
}

export interface PolicyRoutesOptions {
  /** Those that the node has; default both. Nothing is asked of another, nor put in place or taken away. */
  readonly families?: readonly Family[];
  /**
   * Families whose table was ours at the last look: a route of somebody else's in it has come since, and would take our
   * packets elsewhere. It is taken out; found at the first look, it is a conflict instead.
   */
  readonly ours?: ReadonlySet<Family>;
}

/** Puts rule and route in place for each family and reads them back. Route first: a rule alone would drop. */
export async function ensurePolicyRoutes(
  socket: RouteSocket,
  settings: PolicyRoutesSettings,
  { families = FAMILIES, ours: tableIsOurs = new Set() }: PolicyRoutesOptions = {},
): Promise<PolicyRoutesReport> {
  const observed: { family: Family; routes: TableRoute[]; rules: Rule[] }[] = [];
  for (const family of families) {
    const routes = socket.tableRoutes(family, settings.table);
    const rules = await socket.rules(family);
    refuseForeign(family, tableIsOurs.has(family) ? [] : routes, rules, settings.table);
    observed.push({ family, routes, rules });
  }
  const repaired: string[] = [];
  for (const { family, routes, rules } of observed) {
    for (const route of routes.filter((candidate) => !isLocalDefault(candidate))) {
      await socket.deleteRoute(family, settings.table, route);
      const what = route.destination === '' ? 'default' : `${route.destination}/${route.prefixLength}`;
      repaired.push(`foreign IPv${family} route ${what} in table ${settings.table} removed`);
    }
    if (!routes.some(isLocalDefault)) {
      await socket.addLocalDefault(family, settings.table);
      repaired.push(`IPv${family} route in table ${settings.table}`);
    }
    const ours = rules.filter(isOurs);
    if (!ours.some((rule) => isWanted(rule, settings))) {
      await socket.addRule({
        family,
        priority: settings.rulePriority,
        table: settings.table,
        mark: settings.mark.value,
        mask: settings.mark.mask,
        protocol: ROUTE_PROTOCOL,
      });
      repaired.push(`IPv${family} rule at priority ${settings.rulePriority}`);
    }
    for (const rule of ours.filter((candidate) => !isWanted(candidate, settings))) {
      await socket.deleteRule(rule);
      repaired.push(`stale IPv${family} rule at priority ${rule.priority} removed`);
    }
  }
  if (repaired.length > 0) {
    await readBack(socket, settings, families);
  }
  return { repaired };
}

/** Whether a marked packet is delivered by our table now, asked of the kernel in one question per family. */
export async function marksAreDelivered(
  socket: RouteSocket,
  settings: PolicyRoutesSettings,
  families: readonly Family[] = FAMILIES,
): Promise<boolean> {
  for (const family of families) {
    const route = await socket.lookup(family, settings.mark.value);
    if (route?.type !== 'LOCAL' || route.table !== settings.table) {
      return false;
    }
  }
  return true;
}

async function readBack(
  socket: RouteSocket,
  settings: PolicyRoutesSettings,
  families: readonly Family[],
): Promise<void> {
  for (const family of families) {
    const [rules, routes] = [await socket.rules(family), socket.tableRoutes(family, settings.table)];
    if (!rules.some((rule) => isOurs(rule) && isWanted(rule, settings))) {
      throw new DatapathError('RULE_CONFLICT', `the IPv${family} rule was accepted but does not read back`);
    }
    if (!routes.some(isLocalDefault)) {
      throw new DatapathError('ROUTE_CONFLICT', `the IPv${family} route was accepted but does not read back`);
    }
  }
}

/** Rules before routes: without a route the mark would blackhole. Finds its own by protocol, in any table. */
export async function removePolicyRoutes(
  socket: RouteSocket,
  families: readonly Family[] = FAMILIES,
): Promise<string[]> {
  const removed: string[] = [];
  for (const family of families) {
    for (const rule of (await socket.rules(family)).filter(isOurs)) {
      await socket.deleteRule(rule);
      removed.push(`IPv${family} rule at priority ${rule.priority}`);
    }
    for (const route of (await socket.routes(family)).filter(
      (candidate) => isOurs(candidate) && candidate.type === 'LOCAL' && candidate.prefixLength === 0,
    )) {
      await socket.deleteLocalDefault(family, route.table);
      removed.push(`IPv${family} route in table ${route.table}`);
    }
  }
  return removed;
}
