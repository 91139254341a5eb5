/** Processes of this node that are in other network namespaces than ours, for questions about them. */

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { parseIp } from '../net/ip.js';

export interface NodeProcess {
  readonly pid: string;
  /** Field 22 of /proc/<pid>/stat. */
  readonly startTime: string;
  /** Of its network namespace, canonical. */
  readonly addresses: ReadonlySet<string>;
}

/** One of each namespace that we may look at. */
export function foreignProcesses(): readonly NodeProcess[] {
  const seen = new Set([readlinkSync('/proc/self/ns/net')]);
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        const netns = readlinkSync(`/proc/${pid}/ns/net`);
        if (seen.has(netns)) {
          return [];
        }
        const found = { pid, startTime: startTimeOf(pid) ?? '', addresses: addressesOf(pid) };
        seen.add(netns);
        return [found];
      } catch {
        return []; // gone, or not ours to look at
      }
    });
}

/** Undefined where there is none (any more). proc_pid_stat(5): the name before may have anything in it. */
export function startTimeOf(pid: string): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined;
  }
}

function addressesOf(pid: string): ReadonlySet<string> {
  const trie = readFileSync(`/proc/${pid}/net/fib_trie`, 'utf8');
  const ipv4 = [...trie.matchAll(/\|-- (\S+)\n\s+\/32 host LOCAL/g)].map(([, ip = '']) => ip);
  return new Set([...ipv4, ...ipv6AddressesOf(pid)]);
}

function ipv6AddressesOf(pid: string): readonly string[] {
  try {
    return readFileSync(`/proc/${pid}/net/if_inet6`, 'utf8')
      .split('\n')
      .flatMap((line) => parseIp(line.slice(0, 32).replace(/(.{4})(?!$)/g, '$1:')) ?? []);
  } catch {
    return []; // a kernel without IPv6
  }
}
