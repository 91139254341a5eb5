/**
 * Keeps our nftables table as notrack-rules.ts has it: looked at as a whole where anybody has changed the ruleset, and
 * replaced in one transaction where it differs.
 */

import { isDeepStrictEqual } from 'node:util';
import { isKernelError } from '../native/errors.js';
import type { Netfilter } from '../native/netfilter.js';
import { familyOf } from '../net/family.js';
import { ipToNetworkBytes } from '../net/ip.js';
import type { Mark } from '../net/mark.js';
import { DatapathError } from './errors.js';
import { type Json, nftApply, nftTable } from './nft.js';
import { CHAINS, notrackRules } from './notrack-rules.js';

export const TABLE = 'nodesentry';

export interface NftSettings {
  readonly mark: Mark;
  readonly pods4: readonly string[];
  readonly pods6: readonly string[];
}

/** Of a listing: the shape of each object as far as it is looked at here. */
interface Listed {
  readonly chain?: { name: string; hook?: string; prio?: number; policy?: string };
  readonly rule?: { chain: string; comment?: string; expr?: readonly Json[] };
  readonly set?: { name: string; elem?: readonly unknown[] };
}

/** A table in a form that can be compared. */
interface Contents {
  readonly chains: readonly string[];
  /** In their order in each chain. */
  readonly rules: readonly {
    readonly chain: string;
    readonly comment: string;
    readonly expr: readonly Json[];
  }[];
  readonly sets: Readonly<Record<string, readonly string[]>>;
}

export interface EnsuredTable {
  /** What was put in place, in words. */
  readonly repaired: readonly string[];
  /** The rules as this nft lists them, seen right after they were written or found. */
  readonly rules: Contents['rules'];
}

/**
 * Compares the table with what is wanted and, where it differs, replaces it in one transaction. `seen`: the rules as they
 * were listed after the last such write. Another nft than the ones we know may write an expression otherwise: then one
 * look replaces the table, and from there on its own listing is what counts. DatapathError NFT_FAILED.
 */
export async function ensureTable(
  settings: NftSettings,
  seen: Contents['rules'] = notrackRules(settings.mark).map(({ chain, comment, expr }) => ({
    chain,
    comment,
    expr,
  })),
): Promise<EnsuredTable> {
  const before = await read();
  if (
    before !== undefined &&
    isAsWanted(before, settings) &&
    isDeepStrictEqual(before.rules, inOrder(seen))
  ) {
    return { repaired: [], rules: before.rules };
  }
  await nftApply(replacement(settings));
  const after = await read();
  if (after === undefined || !isAsWanted(after, settings)) {
    throw new DatapathError('NFT_FAILED', `the table inet ${TABLE} was accepted but does not read back`);
  }
  const what = before === undefined ? `table inet ${TABLE}` : `contents of table inet ${TABLE}`;
  return { repaired: [what], rules: after.rules };
}

/** All but the expressions of the rules, whose listing is nft's own. */
function isAsWanted(contents: Contents, { mark, pods4, pods6 }: NftSettings): boolean {
  const named = (rules: Contents['rules']) => rules.map(({ chain, comment }) => `${chain}: ${comment}`);
  return (
    isDeepStrictEqual(
      contents.chains,
      CHAINS.map((chain) => inWords({ ...chain, ...(chain.hook && { policy: 'accept' }) })).sort(),
    ) &&
    isDeepStrictEqual(named(contents.rules), named(inOrder(notrackRules(mark)))) &&
    isDeepStrictEqual(contents.sets, { pods4: [...pods4].sort(), pods6: [...pods6].sort() })
  );
}

function replacement({ mark, pods4, pods6 }: NftSettings): string {
  const elements = (ips: readonly string[]) => (ips.length === 0 ? '' : `elements = { ${ips.join(', ')} };`);
  const chains = CHAINS.map(({ name, hook, prio }) => {
    const rules = notrackRules(mark).filter(({ chain }) => chain === name);
    const at = hook === undefined ? '' : `    type filter hook ${hook} priority ${prio}; policy accept;\n`;
    return `  chain ${name} {
${at}${rules.map(({ text, comment }) => `    ${text} comment "${comment}"`).join('\n')}
  }`;
  });
  return `
add table inet ${TABLE}
delete table inet ${TABLE}
table inet ${TABLE} {
  set pods4 { type ipv4_addr; ${elements(pods4)} }
  set pods6 { type ipv6_addr; ${elements(pods6)} }
${chains.join('\n')}
}
`;
}

async function read(): Promise<Contents | undefined> {
  const listed = (await nftTable('inet', TABLE)) as readonly Listed[] | undefined;
  if (listed === undefined) {
    return undefined;
  }
  const chains = listed.flatMap(({ chain }) => (chain === undefined ? [] : [inWords(chain)]));
  const rules = listed.flatMap(({ rule }) =>
    rule === undefined ? [] : [{ chain: rule.chain, comment: rule.comment ?? '', expr: rule.expr ?? [] }],
  );
  const sets = listed.flatMap(({ set }) =>
    set === undefined ? [] : [[set.name, (set.elem ?? []).map(String).sort()] as const],
  );
  return { chains: chains.sort(), rules: inOrder(rules), sets: Object.fromEntries(sets) };
}

function inWords({ name, hook, prio, policy }: NonNullable<Listed['chain']>): string {
  return [name, hook, prio, policy].filter((word) => word !== undefined).join(' ');
}

/** By chain; within one the order is what runs. */
function inOrder(rules: Contents['rules']): Contents['rules'] {
  return [...rules].sort((a, b) => a.chain.localeCompare(b.chain));
}

/**
 * The table kept as wanted at little cost: the kernel counts the changes of the whole ruleset, so that a second look
 * needs no listing while nobody has changed anything, and addresses go in and out one by one.
 */
export class NotrackTable {
  readonly #netfilter: Netfilter;
  readonly #mark: Mark;
  #verified: { generation: number; readonly pods: Set<string>; of?: ReadonlySet<string> } | undefined;
  /** As this nft lists them; the mark stays the same as long as the agent runs. */
  #rules: Contents['rules'] | undefined;

  constructor(netfilter: Netfilter, mark: Mark) {
    this.#netfilter = netfilter;
    this.#mark = mark;
  }

  /** The whole table. Reads it anew unless nothing has changed since it was last seen to be right. */
  async ensure(pods: ReadonlySet<string>): Promise<{ readonly repaired: readonly string[] }> {
    const seen = this.#verified;
    if (seen !== undefined && seen.generation === this.#netfilter.generation()) {
      if (seen.of === pods) {
        return { repaired: [] };
      }
      const add = [...pods].filter((ip) => !seen.pods.has(ip));
      const remove = [...seen.pods].filter((ip) => !pods.has(ip));
      if (this.change({ add, remove })) {
        seen.of = pods;
        return { repaired: [] };
      }
    }
    this.#verified = undefined;
    // Before the look: a change during it makes the next one look again.
    const generation = this.#netfilter.generation();
    const ips = [...pods];
    const settings = {
      mark: this.#mark,
      pods4: ips.filter((ip) => familyOf(ip) === 4),
      pods6: ips.filter((ip) => familyOf(ip) === 6),
    };
    const { repaired, rules } = await ensureTable(settings, this.#rules);
    this.#rules = rules;
    const own = repaired.length > 0 ? 1 : 0;
    this.#verified = { generation: generation + own, pods: new Set(pods) };
    return { repaired };
  }

  /** Addresses in and out, at once. False where the table first has to be looked at as a whole. */
  change({ add, remove }: { add: readonly string[]; remove: readonly string[] }): boolean {
    const seen = this.#verified;
    if (seen === undefined) {
      return false;
    }
    if (add.length + remove.length > 0) {
      delete seen.of;
    }
    try {
      for (const [set, keySize, isOfSet] of SETS) {
        const ours = {
          add: add.filter(isOfSet).map(ipToNetworkBytes),
          remove: remove.filter(isOfSet).map(ipToNetworkBytes),
        };
        if (ours.add.length + ours.remove.length > 0) {
          this.#netfilter.changeElements({ table: TABLE, set, keySize, ...ours });
          seen.generation += 1; // off by somebody else's change in between: the next look is a full one then
        }
      }
    } catch (error) {
      if (!isKernelError(error)) {
        throw error;
      }
      this.#verified = undefined; // the table or an element is gone: the full look puts it right
      return false;
    }
    for (const ip of add) {
      seen.pods.add(ip);
    }
    for (const ip of remove) {
      seen.pods.delete(ip);
    }
    return true;
  }
}

const SETS = [
  ['pods4', 4, (ip: string) => familyOf(ip) === 4],
  ['pods6', 16, (ip: string) => familyOf(ip) === 6],
] as const;

/** Returns what was taken away, in words. DatapathError NFT_FAILED. */
export async function removeTable(): Promise<string[]> {
  if ((await read()) === undefined) {
    return [];
  }
  await nftApply(`delete table inet ${TABLE}`);
  return [`table inet ${TABLE}`];
}
