/** Address families that the node does not have: nothing is wanted of them, and nothing waits for them. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { FAMILIES, type Family } from '../net/family.js';

export interface FamilyOff {
  readonly family: Family;
  readonly reason: string;
  /** Interfaces of pods have it off as well, as far as the settings for all of them tell. */
  readonly everywhere: boolean;
  /** The kernel does not even answer questions about it. */
  readonly unknown: boolean;
}

/**
 * IPv4 is always there. Marked packets of a family are delivered by way of lo, which refuses the route while IPv6 is off
 * there (EACCES). With `ipv6.disable=1` the kernel has no such settings at all, and no AF_INET6 (EAFNOSUPPORT).
 */
export function familiesOff(procSys = '/proc/sys'): readonly FamilyOff[] {
  const isOff = (name: string) => read(procSys, `${name}/disable_ipv6`);
  const lo = isOff('lo');
  if (lo === 'absent') {
    const reason = 'the kernel has no IPv6 (ipv6.disable=1)';
    return [{ family: 6, reason, everywhere: true, unknown: true }];
  }
  const everywhere = isOff('all') === '1' && isOff('default') === '1';
  const reason = `net.ipv6.conf.${everywhere ? 'all' : 'lo'}.disable_ipv6 is 1`;
  return lo === '1' ? [{ family: 6, reason, everywhere, unknown: false }] : [];
}

export function familiesOn(off: readonly FamilyOff[]): Family[] {
  return FAMILIES.filter((family) => !off.some((candidate) => candidate.family === family));
}

/** Those that rules and routes can be asked of. */
export function familiesKnown(procSys?: string): Family[] {
  return familiesOn(familiesOff(procSys).filter(({ unknown }) => unknown));
}

function read(procSys: string, name: string): string {
  try {
    return readFileSync(join(procSys, 'net/ipv6/conf', name), 'utf8').trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') {
      return 'absent';
    }
    throw error;
  }
}
