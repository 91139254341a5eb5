/**
 * The `nft` command: rulesets go in as text and come out as JSON (libnftables-json(5)). As JSON they could not go in: nft
 * then opens /dev/stdin, which cannot be opened where it is a socket, as Node makes it.
 */

import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { DatapathError } from './errors.js';

const run = promisify(execFile);

export type Json = string | number | boolean | null | readonly Json[] | { readonly [key: string]: Json };

/** Applies a ruleset in one transaction. DatapathError NFT_FAILED with what nft said; nothing is changed then. */
export async function nftApply(ruleset: string): Promise<void> {
  await nft(['-f', '-'], ruleset);
}

/** The objects of a table; undefined where there is none. DatapathError NFT_FAILED. */
export async function nftTable(family: string, name: string): Promise<readonly unknown[] | undefined> {
  try {
    const listing = JSON.parse(await nft(['-j', 'list', 'table', family, name])) as { nftables: unknown[] };
    return listing.nftables;
  } catch (error) {
    if (error instanceof DatapathError && /No such file or directory/.test(error.message)) {
      return undefined;
    }
    throw error;
  }
}

async function nft(args: readonly string[], input = ''): Promise<string> {
  try {
    const child = run('nft', [...args], { maxBuffer: 64 << 20, timeout: 10_000 });
    // nft may end before it has read everything (EPIPE); its exit status and stderr say why.
    child.child.stdin?.on('error', () => undefined).end(input);
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
