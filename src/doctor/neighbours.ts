/** What of other people's is in the way: rules, routes, marks, firewalls, programs at our hook. */

import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { type Family, ROUTE_PROTOCOL, RouteSocket } from '../datapath/netlink.js';
import { TABLE } from '../datapath/nftables.js';
import { programInfo, queryTcx } from '../native/bpf.js';
import { type Check, fail, ok, warn } from './check.js';

const run = promisify(execFile);
const FAMILIES: readonly Family[] = [4, 6];
const OURS: ReadonlySet<string> = new Set(['pod_egress', 'bridge_steer']);

export interface Place {
  readonly mark: { readonly value: number; readonly mask: number };
  readonly table: number;
  readonly rulePriority: number;
}

export function neighbourChecks(place: Place): Check[] {
  return [
    { name: 'policy rules', run: () => rules(place) },
    { name: `table ${place.table}`, run: () => routes(place) },
    { name: 'marks of others', run: () => marks(place) },
    { name: 'host firewall', run: firewall },
    { name: 'programs of others', run: programs },
  ];
}

async function withSocket<T>(body: (socket: RouteSocket) => Promise<T>): Promise<T> {
  const socket = new RouteSocket();
  try {
    return await body(socket);
  } finally {
    socket.close();
  }
}

function rules({ mark, table, rulePriority }: Place) {
  return withSocket(async (socket) => {
    const found = [];
    for (const family of FAMILIES) {
      for (const rule of await socket.rules(family)) {
        if (rule.protocol === ROUTE_PROTOCOL) {
          continue;
        }
        const what = `IPv${family} rule at priority ${rule.priority} of somebody else`;
        if (rule.table === table) {
          found.push(fail(`${what} uses table ${table}`, 'set interception.table to a free one'));
        }
        if ((rule.mask & mark.mask) !== 0) {
          found.push(warn(`${what} matches our mark's bits`, 'set interception.mark to a bit nobody uses'));
        }
        if (rule.priority === rulePriority) {
          found.push(warn(`${what} has our priority`, 'set interception.rulePriority to a free one'));
        }
      }
    }
    return found.length === 0 ? [ok(`nobody uses priority ${rulePriority} or our mark`)] : found;
  });
}

function routes({ table }: Place) {
  return withSocket(async (socket) => {
    const found = [];
    for (const family of FAMILIES) {
      const foreign = (await socket.routes(family, table)).filter(
        ({ protocol }) => protocol !== ROUTE_PROTOCOL,
      );
      if (foreign.length > 0) {
        found.push(
          fail(
            `${foreign.length} IPv${family} routes of somebody else`,
            'set interception.table to a free one',
          ),
        );
      }
    }
    return found.length === 0 ? [ok('free')] : found;
  });
}

/** Values and masks that a rule set or match names after the word mark, in nft and iptables alike. */
export function marksIn(text: string): number[] {
  const found: number[] = [];
  for (const line of text.split('\n')) {
    for (const match of line.matchAll(/\bmark\b[^\n]*?(0x[0-9a-f]+)(?:\/(0x[0-9a-f]+))?/gi)) {
      found.push(Number(match[2] ?? match[1]));
    }
    for (const match of line.matchAll(
      /(?:--set-xmark|--set-mark|--or-mark)\s+(0x[0-9a-f]+)(?:\/(0x[0-9a-f]+))?/gi,
    )) {
      const [, value, mask] = match;
      found.push(mask === '0xffffffff' || mask === undefined ? Number(value) : Number(mask));
    }
  }
  return found;
}

async function listing(command: string, args: readonly string[]): Promise<string> {
  try {
    return (await run(command, [...args], { timeout: 10_000, maxBuffer: 64 << 20 })).stdout;
  } catch (error) {
    if ((error as { code?: string }).code === 'ENOENT') {
      return '';
    }
    throw error;
  }
}

/** The rule set without our own table. */
export function withoutOurs(ruleset: string): string {
  return ruleset.replace(new RegExp(`^table inet ${TABLE} \\{.*?^\\}`, 'gms'), '');
}

async function marks({ mark }: Place) {
  const nft = withoutOurs(await listing('nft', ['list', 'ruleset']));
  const texts: readonly (readonly [string, string])[] = [
    ['nftables', nft],
    ['iptables', await listing('iptables-legacy-save', [])],
    ['ip6tables', await listing('ip6tables-legacy-save', [])],
  ];
  const found = texts
    .filter(([, text]) => marksIn(text).some((value) => (value & mark.mask) !== 0))
    .map(([where]) => {
      const bits = `0x${mark.mask.toString(16)}`;
      return warn(`rules in ${where} use the bits ${bits}`, 'set interception.mark to a bit nobody uses');
    });
  return found.length === 0 ? [ok('none uses our bits')] : found;
}

async function firewall() {
  const ruleset = withoutOurs(await listing('nft', ['list', 'ruleset']));
  const strict = [...ruleset.matchAll(/hook (input|output) [^;]*; policy drop;/g)].map((match) => match[1]);
  return strict.length === 0
    ? [ok('no input or output chain drops by default')]
    : [
        warn(
          `${[...new Set(strict)].join(' and ')} drop by default`,
          'intercepted flows are untracked: accept "ct state untracked" there (docs/datapath.md)',
        ),
      ];
}

/** At tc ingress of veths, the hook that we share; tcx runs in the order shown. */
function programs() {
  return withSocket(async (socket) => {
    const found = [];
    for (const link of (await socket.links()).filter(({ kind }) => kind === 'veth')) {
      const names = queryTcx(link.index, 'ingress').map(
        ({ programId }) => programInfo(programId)?.name ?? `#${programId}`,
      );
      const ours = names.findIndex((name) => OURS.has(name));
      const before = ours === -1 ? names : names.slice(0, ours);
      if (before.length > 0) {
        const what = `${link.name}: ${before.join(', ')}${ours === -1 ? '' : ' before ours'}`;
        found.push(warn(what, 'see that it passes on what it does not handle (TCX_NEXT)'));
      }
    }
    return found.length === 0 ? [ok('none comes before ours at a veth')] : found;
  });
}
