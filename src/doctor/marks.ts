/** Which rules of others set, overwrite or match the bits of our mark. Masks are respected. */

import { CHAINS } from '../kernel/notrack-rules.js';
import { type Mark, parseMark } from '../net/mark.js';
import type { IptablesTable, NftChain, NftRule, NftSet, Rulesets } from './rulesets.js';

export interface MarkUse {
  /** `sets`: puts a bit of ours on a packet. `overwrites`: takes ours away. `matches`: decides by a bit of ours. */
  readonly does: 'sets' | 'overwrites' | 'matches';
  /** Table and chain, such as `ip mangle prerouting` or `iptables mangle PREROUTING`. */
  readonly where: string;
}

/** What a statement makes of a mark: (mark & keep) ^ flip. Everything a mask can say has this form. */
interface Effect {
  readonly keep: number;
  readonly flip: number;
}

const ALL = 0xffffffff;
/** Priorities at which our table takes the mark off and gives it back. */
const OWN_PREROUTING = CHAINS.flatMap(({ hook, prio }) =>
  hook === 'prerouting' && prio !== undefined ? [prio] : [],
);
/** A packet that meets these has been routed by its mark already. */
const AFTER_ROUTING = new Set(['input', 'forward', 'output', 'postrouting', 'egress']);

/** Whether an intercepted packet bears our mark there, and would miss it. */
type Bears = { readonly here: boolean; readonly missed: boolean };

/** Our table takes the mark off before the chains of others at prerouting, and gives it back after them. */
function bearsAt({ hook = '', prio }: Pick<NftChain, 'hook' | 'prio'>): Bears {
  const [first, last] = [Math.min(...OWN_PREROUTING), Math.max(...OWN_PREROUTING)];
  const isBetween = hook === 'prerouting' && prio !== undefined && prio > first && prio < last;
  return { here: !isBetween, missed: !isBetween && !AFTER_ROUTING.has(hook) };
}

/** Of a named set or map, such as `@marks`. */
type Elements = (name: string) => readonly unknown[];
type Json = Readonly<Record<string, unknown>>;

/** Connection marks count where a rule copies them to packets. Intercepted packets are untracked and have none. */
interface Found {
  readonly uses: MarkUse[];
  readonly connection: MarkUse[];
  restored: boolean;
}

/** One entry per use and chain, for rules that touch any of `bits`. */
export function markUses(
  { nftables, iptables }: Pick<Rulesets, 'nftables' | 'iptables'>,
  bits: number,
): MarkUse[] {
  const found: Found = { uses: [], connection: [], restored: false };
  const chains = new Map(nftables.chains.map((chain) => [chainOf({ ...chain, chain: chain.name }), chain]));
  for (const rule of nftables.rules) {
    inNftRule(rule, bearsAt(chains.get(chainOf(rule)) ?? {}), nftables.sets, bits, found);
  }
  for (const table of iptables) {
    for (const { chain, words } of table.rules) {
      inIptablesRule(table, chain, words, bits, found);
    }
  }
  const all = found.restored ? [...found.uses, ...found.connection] : found.uses;
  return [...new Map(all.map((use) => [`${use.does} ${use.where}`, use])).values()];
}

function effects(list: readonly Effect[], bits: number, where: string, isMissed: boolean): MarkUse[] {
  return list.flatMap(({ keep, flip }): MarkUse[] => {
    if ((flip & bits) !== 0) {
      return [{ does: 'sets', where }];
    }
    return (~keep & bits) !== 0 && isMissed ? [{ does: 'overwrites', where }] : [];
  });
}

function chainOf({ family, table, chain }: { family: string; table: string; chain: string }): string {
  return `${family} ${table} ${chain}`;
}

function inNftRule(rule: NftRule, bears: Bears, sets: readonly NftSet[], bits: number, found: Found): void {
  const where = chainOf(rule);
  const elements: Elements = (name) =>
    sets.find((set) => set.family === rule.family && set.table === rule.table && `@${set.name}` === name)
      ?.elem ?? [];
  for (const statement of (rule.expr ?? []).filter(isObject)) {
    const { mangle, match, vmap } = statement;
    if (isObject(mangle) && isMark(mangle.key, 'meta')) {
      const list = effectsOf(mangle.value, 'meta', elements);
      found.restored ||= list === 'of the connection';
      found.uses.push(...(list === 'of the connection' ? [] : effects(list, bits, where, bears.missed)));
    } else if (isObject(mangle) && isMark(mangle.key, 'ct')) {
      const list = effectsOf(mangle.value, 'ct', elements);
      found.connection.push(...(list === 'of the connection' ? [] : effects(list, bits, where, false)));
    } else if (isObject(match) && bears.here) {
      const mask = maskOf(match.left);
      const exact = match.op === '==' || match.op === 'in';
      if (exact ? hasBit(match.right, mask & bits, elements) : (mask & bits) !== 0) {
        found.uses.push({ does: 'matches', where });
      }
    } else if (
      isObject(vmap) &&
      bears.here &&
      hasBit(keysOf(vmap.data, elements), maskOf(vmap.key) & bits, elements)
    ) {
      found.uses.push({ does: 'matches', where });
    }
  }
}

/** An expression that cannot be computed overwrites every bit; one of the connection's mark is told apart. */
function effectsOf(
  value: unknown,
  self: 'meta' | 'ct',
  elements: Elements,
): readonly Effect[] | 'of the connection' {
  const unknown: readonly Effect[] = [{ keep: 0, flip: 0 }];
  if (typeof value === 'number') {
    return [{ keep: 0, flip: value }];
  }
  if (!isObject(value)) {
    return unknown;
  }
  if (isMark(value, self)) {
    return [{ keep: ALL, flip: 0 }];
  }
  if (isMark(value, self === 'meta' ? 'ct' : 'meta')) {
    return 'of the connection';
  }
  if (isObject(value.map)) {
    const values = pairs(value.map.data, elements).map(([, data]) => data);
    return values.length === 0
      ? unknown
      : values.map((data) => ({ keep: 0, flip: typeof data === 'number' ? data : 0 }));
  }
  for (const operator of ['&', '|', '^'] as const) {
    const operands = value[operator];
    if (Array.isArray(operands)) {
      const first = effectsOf(operands[0], self, elements);
      const constants = operands.slice(1);
      if (first === 'of the connection' || !constants.every((constant) => typeof constant === 'number')) {
        return first === 'of the connection' ? first : unknown;
      }
      return first.map((effect) => constants.reduce((sum, next) => combine(sum, operator, next), effect));
    }
  }
  return unknown;
}

function combine({ keep, flip }: Effect, operator: '&' | '|' | '^', constant: number): Effect {
  switch (operator) {
    case '&':
      return { keep: keep & constant, flip: flip & constant };
    case '|':
      return { keep: keep & ~constant, flip: (flip & ~constant) | constant };
    case '^':
      return { keep, flip: flip ^ constant };
  }
}

/** Which bits of the mark an expression looks at; 0 where it is about something else. */
function maskOf(left: unknown): number {
  if (isMark(left, 'meta')) {
    return ALL;
  }
  const operands = isObject(left) ? left['&'] : undefined;
  return Array.isArray(operands) && isMark(operands[0], 'meta') && typeof operands[1] === 'number'
    ? operands[1]
    : 0;
}

/** Whether a value, or one of a set or range, has one of `bits`. */
function hasBit(value: unknown, bits: number, elements: Elements): boolean {
  if (bits === 0) {
    return false;
  }
  if (typeof value === 'number') {
    return (value & bits) !== 0;
  }
  if (typeof value === 'string') {
    return value.startsWith('@') && hasBit(elements(value), bits, elements);
  }
  if (Array.isArray(value)) {
    return value.some((element) => hasBit(element, bits, elements));
  }
  if (!isObject(value)) {
    return false;
  }
  const { range } = value;
  if (Array.isArray(range)) {
    const [low, high] = range.map(Number);
    return Array.from({ length: 32 }, (_, bit) => 2 ** bit).some(
      (bit) => (bits & bit) !== 0 && rangeHas(low ?? 0, high ?? 0, bit),
    );
  }
  const inner = isObject(value.elem) ? value.elem.val : value.set;
  return inner !== undefined && hasBit(inner, bits, elements);
}

function rangeHas(low: number, high: number, bit: number): boolean {
  return (low & bit) !== 0 || Math.floor(low / (2 * bit)) * 2 * bit + bit <= high;
}

function keysOf(data: unknown, elements: Elements): unknown[] {
  return pairs(data, elements).map(([key]) => key);
}

function pairs(data: unknown, elements: Elements): unknown[][] {
  const list = typeof data === 'string' ? elements(data) : isObject(data) ? data.set : undefined;
  return Array.isArray(list) ? list.filter(Array.isArray) : [];
}

function isMark(value: unknown, of: 'meta' | 'ct'): boolean {
  return isObject(value) && isObject(value[of]) && value[of].key === 'mark';
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * iptables-extensions(8): what the options of `mark`, MARK, CONNMARK and TPROXY mean. No chain of iptables comes upon our
 * mark before routing: its PREROUTING is between the two of ours.
 */
function inIptablesRule(
  table: IptablesTable,
  chain: string,
  words: readonly string[],
  bits: number,
  found: Found,
): void {
  const where = `${table.command} ${table.name} ${chain}`;
  let scope = '';
  words.forEach((word, index) => {
    const next = words[index + 1] ?? '';
    if (word === '-m' || word === '-j') {
      scope = next;
    } else if (word === '--mark' && scope === 'mark') {
      const { value, mask } = valueAndMask(next);
      const looked = words[index - 1] === '!' ? mask : value & mask;
      if (chain !== 'PREROUTING' && (looked & bits) !== 0) {
        found.uses.push({ does: 'matches', where });
      }
    } else if (word === '--set-xmark' || word === '--set-mark' || word === '--tproxy-mark') {
      const { value, mask } = valueAndMask(next);
      const list = [{ keep: ~mask, flip: value }];
      if (scope === 'CONNMARK') {
        found.connection.push(...effects(list, bits, where, false));
      } else {
        found.uses.push(...effects(list, bits, where, false));
      }
    } else if (word === '--restore-mark') {
      found.restored = true;
    }
  });
}

/** What is no mark at all decides by every bit. */
function valueAndMask(text: string): Mark {
  return parseMark(text) ?? { value: 0, mask: ALL };
}
