/**
 * What the host firewall would do with an intercepted packet: untracked TCP, from a pod and with our mark on input,
 * to a pod on output. Conditions that cannot be told in advance, such as an address, are taken as not met.
 */

import { parseMark } from '../net/mark.js';
import type { IptablesTable, Nftables, Rulesets } from './rulesets.js';

export type Hook = 'input' | 'output';

export interface Refusal {
  readonly hook: Hook;
  /** Table and chain, such as `inet filter input` or `iptables filter INPUT`. */
  readonly where: string;
}

type Verdict =
  | { readonly kind: 'accept' }
  | { readonly kind: 'drop' }
  | { readonly kind: 'return' }
  | { readonly kind: 'continue' }
  | { readonly kind: 'jump' | 'goto'; readonly chain: string };

interface Rule {
  readonly met: boolean;
  readonly verdict: Verdict;
}

type Chains = ReadonlyMap<string, readonly Rule[]>;

/** The kernel follows no deeper (NFT_JUMP_STACK_SIZE). */
const DEPTH = 16;
const CONTINUE: Verdict = { kind: 'continue' };

const HOOKS = ['input', 'output'] as const;

/** `mark` is that of an intercepted packet. */
export function refusals(
  { nftables, iptables }: Pick<Rulesets, 'nftables' | 'iptables'>,
  mark: number,
): Refusal[] {
  return HOOKS.flatMap((hook) => {
    const packetMark = hook === 'input' ? mark : 0;
    return [
      ...nftRefusals(nftables, hook, packetMark),
      ...iptables.flatMap((table) => iptablesRefusals(table, hook, packetMark)),
    ];
  });
}

/** Undefined where the end of the chain is reached. */
function decide(chains: Chains, name: string, depth = 0): 'accept' | 'drop' | undefined {
  for (const { met, verdict } of depth < DEPTH ? (chains.get(name) ?? []) : []) {
    if (!met || verdict.kind === 'continue') {
      continue;
    }
    if (verdict.kind === 'return') {
      return undefined;
    }
    if (verdict.kind === 'accept' || verdict.kind === 'drop') {
      return verdict.kind;
    }
    const decided = decide(chains, verdict.chain, depth + 1);
    if (decided !== undefined || verdict.kind === 'goto') {
      return decided;
    }
  }
  return undefined;
}

function nftRefusals({ chains, rules }: Nftables, hook: Hook, mark: number): Refusal[] {
  const tables = new Map<string, Map<string, Rule[]>>();
  for (const { family, table, chain, expr } of rules) {
    const parsed = entry(tables, `${family} ${table}`, () => new Map<string, Rule[]>());
    entry(parsed, chain, () => []).push(nftRule(expr ?? [], mark));
  }
  return chains
    .filter((chain) => chain.hook === hook && ['ip', 'ip6', 'inet'].includes(chain.family))
    .flatMap(({ family, table, name, policy }) => {
      const decided = decide(tables.get(`${family} ${table}`) ?? new Map(), name) ?? policy;
      return decided === 'drop' ? [{ hook, where: `${family} ${table} ${name}` }] : [];
    });
}

function entry<T>(map: Map<string, T>, key: string, fresh: () => T): T {
  const value = map.get(key) ?? fresh();
  map.set(key, value);
  return value;
}

type Statement = Readonly<Record<string, unknown>>;

function nftRule(expr: readonly unknown[], mark: number): Rule {
  let met = true;
  let verdict = CONTINUE;
  for (const statement of expr as readonly Statement[]) {
    if ('match' in statement) {
      met &&= nftMatch(statement.match as Match, mark);
    } else if ('vmap' in statement) {
      verdict = nftMapped(statement.vmap as { key: unknown; data: { set?: unknown } | string });
    } else if ('limit' in statement || 'xt' in statement || 'queue' in statement) {
      met = false;
    } else {
      verdict = nftVerdict(statement) ?? verdict;
    }
  }
  return { met, verdict };
}

function nftVerdict(statement: Statement): Verdict | undefined {
  for (const kind of ['accept', 'drop', 'return'] as const) {
    if (kind in statement) {
      return { kind };
    }
  }
  for (const kind of ['jump', 'goto'] as const) {
    if (kind in statement) {
      return { kind, chain: (statement[kind] as { target: string }).target };
    }
  }
  return 'reject' in statement ? { kind: 'drop' } : undefined;
}

const POD_INTERFACE = 'the interface of a pod';
const KEYS: readonly (readonly [RegExp, string])[] = [
  [/^{"ct":{"key":"state"}}$/, 'untracked'],
  [/^{"meta":{"key":"l4proto"}}$/, 'tcp'],
  [/^{"payload":{"protocol":"ip6?","field":"(?:protocol|nexthdr)"}}$/, 'tcp'],
  [/^{"meta":{"key":"[io]if(?:name)?"}}$/, POD_INTERFACE],
];

/** What our packet has in that place; undefined where that cannot be said. */
function packetHas(key: unknown): string | undefined {
  const text = JSON.stringify(key);
  return KEYS.find(([pattern]) => pattern.test(text))?.[1];
}

interface Match {
  readonly op: string;
  readonly left: unknown;
  readonly right: unknown;
}

function nftMatch({ op, left, right }: Match, mark: number): boolean {
  const value = packetHas(left) ?? markUnder(left, mark);
  const values = valuesOf(right);
  if (value === undefined || (value === POD_INTERFACE && values.some((name) => name !== 'lo'))) {
    return false;
  }
  return op === '==' || op === 'in' ? values.includes(value) : op === '!=' && !values.includes(value);
}

/** Of `meta mark` or `meta mark & mask`. */
function markUnder(left: unknown, mark: number): number | undefined {
  const match = /^(?:{"&":\[)?{"meta":{"key":"mark"}}(?:,(\d+)\]})?$/.exec(JSON.stringify(left));
  return match === null ? undefined : (mark & Number(match[1] ?? mark)) >>> 0;
}

function valuesOf(right: unknown): unknown[] {
  const list = (right as { set?: unknown } | null)?.set ?? right;
  return Array.isArray(list) ? list : [list];
}

function nftMapped({ key, data }: { key: unknown; data: { set?: unknown } | string }): Verdict {
  const value = packetHas(key);
  const pairs = typeof data === 'string' ? [] : ((data.set ?? []) as [unknown, Statement][]);
  const mapped = value === undefined ? undefined : pairs.find(([name]) => name === value)?.[1];
  return (mapped === undefined ? undefined : nftVerdict(mapped)) ?? CONTINUE;
}

function iptablesRefusals(
  { command, name, chains, rules }: IptablesTable,
  hook: Hook,
  mark: number,
): Refusal[] {
  const parsed = new Map<string, Rule[]>();
  for (const { chain, words } of rules) {
    entry(parsed, chain, () => []).push(iptablesRule(words, mark));
  }
  const chain = hook.toUpperCase();
  const decided = decide(parsed, chain) ?? chains.get(chain)?.toLowerCase();
  return decided === 'drop' ? [{ hook, where: `${command} ${name} ${chain}` }] : [];
}

function iptablesRule(words: readonly string[], mark: number): Rule {
  let met = true;
  let negated = false;
  for (let index = 0; index < words.length; index++) {
    const option = words[index] ?? '';
    const value = words[index + 1] ?? '';
    if (option === '-j' || option === '-g') {
      return { met, verdict: iptablesVerdict(option, value) };
    }
    if (option === '!') {
      negated = true;
      continue;
    }
    if (option === '-p') {
      met &&= (value === 'tcp') !== negated;
    } else if (option === '-i' || option === '-o') {
      met &&= value === 'lo' && negated;
    } else if (option === '--ctstate' || option === '--state') {
      met &&= value.split(',').includes('UNTRACKED') !== negated;
    } else if (option === '--mark' && words[index - (negated ? 2 : 1)] === 'mark') {
      const wanted = parseMark(value);
      met &&= wanted !== undefined && ((mark & wanted.mask) >>> 0 === wanted.value) !== negated;
    } else if (option !== '-m' && option !== '--comment') {
      met = false;
    }
    negated = false;
    index++;
  }
  return { met, verdict: CONTINUE };
}

function iptablesVerdict(option: '-j' | '-g', target: string): Verdict {
  switch (target) {
    case 'ACCEPT':
      return { kind: 'accept' };
    case 'DROP':
    case 'REJECT':
      return { kind: 'drop' };
    case 'RETURN':
      return { kind: 'return' };
    default:
      // LOG, MARK and the like are no chains of the table, and a chain that is not there decides nothing.
      return { kind: option === '-g' ? 'goto' : 'jump', chain: target };
  }
}
