/**
 * Our own nftables table, beside everybody else's. Intercepted packets and their replies are left out of connection
 * tracking, so that a DNAT rule in `nat PREROUTING` (kube-proxy's) does not change the destination that the proxy
 * sees. Replies are found by what they are: they go to an enrolled pod's address, from a transparent socket of this
 * node. The same goes for a pod's packets whose connection is at such a socket already: should our program be missing
 * for a moment, they are marked here and go on to the proxy, instead of to a destination that knows nothing of them.
 *
 * While the raw chains of others run, intercepted packets do not bear our mark: a reverse-path check by mark (Calico's
 * `rpfilter --validmark`) would find our local route and drop them all. They get it back by the socket that they were
 * given; one that did not would be dropped by the stack, which forwards no packet that has a socket (ip_forward).
 */

import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { isKernelError } from '../native/errors.js';
import type { Netfilter } from '../native/netfilter.js';
import { familyOf } from '../net/family.js';
import { ipToNetworkBytes } from '../net/ip.js';
import { DatapathError } from './errors.js';

const run = promisify(execFile);

export const TABLE = 'nodesentry';

export interface NftSettings {
  readonly mark: { readonly value: number; readonly mask: number };
  readonly pods4: readonly string[];
  readonly pods6: readonly string[];
}

interface NftObject {
  readonly chain?: { name: string; hook?: string; prio?: number; policy?: string };
  readonly rule?: { chain: string; comment?: string };
  readonly set?: { name: string; elem?: unknown[] };
}

interface Observed {
  readonly chains: string;
  readonly rules: string;
  readonly elements: Readonly<Record<string, string>>;
}

const CHAINS = 'after_raw/prerouting/-290/accept output/output/-300/accept prerouting/prerouting/-310/accept';

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}

/** Rule comments double as fingerprints: they name all that the rule depends on. */
function ruleComments(settings: NftSettings): string[] {
  const mark = `${hex(settings.mark.value)}/${hex(settings.mark.mask)}`;
  return [
    'output replies IPv4',
    'output replies IPv6',
    `prerouting connected IPv4 ${mark}`,
    `prerouting connected IPv6 ${mark}`,
    `prerouting intercepted ${mark}`,
    `prerouting marked again ${mark}`,
  ];
}

function ruleset(settings: NftSettings): string {
  const [replies4, replies6, connected4, connected6, intercepted, again] = ruleComments(settings);
  const { value, mask } = settings.mark;
  // A wildcard socket is a listener: a new connection is never marked here.
  const connected = 'meta l4proto tcp socket transparent 1 socket wildcard 0';
  const setMark = `meta mark set meta mark and ${hex(~mask >>> 0)} or ${hex(value)}`;
  const elements = (ips: readonly string[]) => (ips.length === 0 ? '' : `elements = { ${ips.join(', ')} };`);
  return `
add table inet ${TABLE}
delete table inet ${TABLE}
table inet ${TABLE} {
  set pods4 { type ipv4_addr; ${elements(settings.pods4)} }
  set pods6 { type ipv6_addr; ${elements(settings.pods6)} }
  chain prerouting {
    type filter hook prerouting priority -310; policy accept;
    ip saddr @pods4 ${connected} ${setMark} comment "${connected4}"
    ip6 saddr @pods6 ${connected} ${setMark} comment "${connected6}"
    meta mark and ${hex(mask)} == ${hex(value)} notrack meta mark set meta mark and ${hex(~mask >>> 0)} comment "${intercepted}"
  }
  chain after_raw {
    type filter hook prerouting priority -290; policy accept;
    ct state untracked meta l4proto tcp socket transparent 1 ${setMark} comment "${again}"
  }
  chain output {
    type filter hook output priority -300; policy accept;
    meta l4proto tcp ip daddr @pods4 socket transparent 1 notrack comment "${replies4}"
    meta l4proto tcp ip6 daddr @pods6 socket transparent 1 notrack comment "${replies6}"
  }
}
`;
}

async function nft(args: readonly string[], input?: string): Promise<string> {
  try {
    const child = run('nft', [...args], { maxBuffer: 64 << 20, timeout: 10_000 });
    // nft may end before it has read everything (EPIPE); its exit status and stderr say why.
    child.child.stdin?.on('error', () => undefined).end(input ?? '');
    return (await child).stdout;
  } catch (error) {
    const { stderr, code } = error as { stderr?: string; code?: string | number };
    const why =
      code === 'ENOENT'
        ? 'the nft command is not installed (Debian package nftables)'
        : (stderr ?? '').trim();
    throw new DatapathError('NFT_FAILED', `nft ${args.join(' ')}: ${why || String(error)}`, error);
  }
}

function observe(listing: string): Observed {
  const objects = (JSON.parse(listing) as { nftables: NftObject[] }).nftables;
  const chains: string[] = [];
  const rules: string[] = [];
  const elements: Record<string, string> = {};
  for (const { chain, rule, set } of objects) {
    if (chain !== undefined) {
      chains.push(`${chain.name}/${chain.hook ?? ''}/${chain.prio ?? ''}/${chain.policy ?? ''}`);
    }
    if (rule !== undefined) {
      rules.push(rule.comment ?? `unknown rule in ${rule.chain}`);
    }
    if (set !== undefined) {
      elements[set.name] = (set.elem ?? []).map(String).sort().join(' ');
    }
  }
  return { chains: chains.sort().join(' '), rules: rules.sort().join('\n'), elements };
}

async function read(): Promise<Observed | undefined> {
  try {
    return observe(await nft(['-j', 'list', 'table', 'inet', TABLE]));
  } catch (error) {
    if (error instanceof DatapathError && /No such file or directory/.test(error.message)) {
      return undefined;
    }
    throw error;
  }
}

function matches(observed: Observed | undefined, settings: NftSettings): boolean {
  return (
    observed !== undefined &&
    observed.chains === CHAINS &&
    observed.rules === ruleComments(settings).sort().join('\n') &&
    observed.elements.pods4 === [...settings.pods4].sort().join(' ') &&
    observed.elements.pods6 === [...settings.pods6].sort().join(' ')
  );
}

/** Compares the table with what is wanted and, where it differs, replaces it in one transaction. */
export async function ensureTable(settings: NftSettings): Promise<{ readonly repaired: readonly string[] }> {
  const before = await read();
  if (matches(before, settings)) {
    return { repaired: [] };
  }
  await nft(['-f', '-'], ruleset(settings));
  if (!matches(await read(), settings)) {
    throw new DatapathError('NFT_FAILED', `the table inet ${TABLE} was accepted but does not read back`);
  }
  return { repaired: [before === undefined ? `table inet ${TABLE}` : `contents of table inet ${TABLE}`] };
}

/**
 * The table kept as wanted at little cost: the kernel counts the changes of the whole ruleset, so that a second look
 * needs no listing while nobody has changed anything, and addresses go in and out one by one.
 */
export class NotrackTable {
  readonly #netfilter: Netfilter;
  readonly #mark: NftSettings['mark'];
  #verified: { generation: number; readonly pods: Set<string> } | undefined;

  constructor(netfilter: Netfilter, mark: NftSettings['mark']) {
    this.#netfilter = netfilter;
    this.#mark = mark;
  }

  /** The whole table. Reads it anew unless nothing has changed since it was last seen to be right. */
  async ensure(pods: ReadonlySet<string>): Promise<{ readonly repaired: readonly string[] }> {
    const seen = this.#verified;
    if (seen !== undefined && seen.generation === this.#netfilter.generation()) {
      const add = [...pods].filter((ip) => !seen.pods.has(ip));
      const remove = [...seen.pods].filter((ip) => !pods.has(ip));
      if (this.change({ add, remove })) {
        return { repaired: [] };
      }
    }
    this.#verified = undefined;
    // Before the look: a change during it makes the next one look again.
    const generation = this.#netfilter.generation();
    const ips = [...pods];
    const { repaired } = await ensureTable({
      mark: this.#mark,
      pods4: ips.filter((ip) => familyOf(ip) === 4),
      pods6: ips.filter((ip) => familyOf(ip) === 6),
    });
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

export async function removeTable(): Promise<string[]> {
  if ((await read()) === undefined) {
    return [];
  }
  await nft(['delete', 'table', 'inet', TABLE]);
  return [`table inet ${TABLE}`];
}
