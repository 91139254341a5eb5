/**
 * Keeping IPVS (kube-proxy in that mode) from what is intercepted. At LOCAL_IN IPVS takes every packet to an address of a
 * service, whatever socket it was given. It asks for a service by firewall mark before one by address: ours has this node
 * as its only destination, by direct routing, and so lets a packet with exactly our mark go on to its socket
 * (docs/datapath.md, "IPVS"). The service of each family is known as ours by its destination's weight.
 */

import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { promisify } from 'node:util';
import type { Family } from '../net/family.js';
import type { Mark } from '../net/mark.js';
import { DatapathError } from './errors.js';

const run = promisify(execFile);

/** "NS", as everywhere. */
export const WEIGHT = 0x4e53;
/** The process's own network namespace. There as soon as the module is loaded. */
const PRESENT = '/proc/thread-self/net/ip_vs';
const DESTINATION = { 4: '127.0.0.1:0', 6: '[::1]:0' } as const;

/** The kernel has IPVS, whether or not anybody uses it. */
export function ipvsPresent(): boolean {
  return existsSync(PRESENT);
}

export type IpvsCommand = (args: readonly string[]) => Promise<string>;

/** Its stdout. DatapathError IPVS_FAILED. */
const ipvsadm: IpvsCommand = async (args) => {
  try {
    return (await run('ipvsadm', [...args], { timeout: 10_000, maxBuffer: 256 << 20 })).stdout;
  } catch (error) {
    const { stderr, code } = error as { stderr?: string; code?: string | number };
    const why =
      code === 'ENOENT'
        ? 'IPVS is in use here, and the ipvsadm command is not installed (Debian package ipvsadm)'
        : (stderr ?? '').trim();
    throw new DatapathError('IPVS_FAILED', `ipvsadm ${args.join(' ')}: ${why || String(error)}`, error);
  }
};

interface MarkService {
  readonly family: Family;
  readonly mark: number;
  readonly isOurs: boolean;
}

/** Of `ipvsadm --save`: firewall-mark services, each with whether its only destination is ours. */
export function markServices(saved: string): MarkService[] {
  const services = new Map<string, { family: Family; mark: number; destinations: string[] }>();
  for (const line of saved.split('\n')) {
    const words = line.trim().split(/\s+/);
    const mark = words[words.indexOf('-f') + 1];
    if (!words.includes('-f') || mark === undefined) {
      continue;
    }
    const family = words.includes('-6') ? 6 : 4;
    const key = `${family} ${mark}`;
    const service = services.get(key) ?? { family, mark: Number(mark), destinations: [] };
    services.set(key, service);
    if (words[0] === '-a') {
      service.destinations.push(line);
    }
  }
  return [...services.values()].map(({ family, mark, destinations }) => ({
    family,
    mark,
    isOurs: destinations.length === 1 && isOurDestination(family, destinations[0] ?? ''),
  }));
}

function isOurDestination(family: Family, line: string): boolean {
  const words = line.split(/\s+/);
  const after = (option: string) => words[words.indexOf(option) + 1];
  return after('-r') === DESTINATION[family] && after('-w') === String(WEIGHT);
}

export class IpvsBypass {
  readonly #mark: number;
  readonly #ipvsadm: IpvsCommand;
  readonly #isPresent: () => boolean;
  #lookedForOthers = false;

  constructor(
    { value }: Mark,
    { command = ipvsadm, isPresent = ipvsPresent }: { command?: IpvsCommand; isPresent?: () => boolean } = {},
  ) {
    this.#mark = value;
    this.#ipvsadm = command;
    this.#isPresent = isPresent;
  }

  /** Returns what was put in place, in words; nothing where there is no IPVS. DatapathError IPVS_FAILED, IPVS_CONFLICT. */
  async ensure(families: readonly Family[]): Promise<string[]> {
    if (!this.#isPresent()) {
      return [];
    }
    const repaired = this.#lookedForOthers ? [] : await this.#removeStale();
    this.#lookedForOthers = true;
    for (const family of families) {
      const is = await this.#look(family);
      if (is === 'ours') {
        continue;
      }
      if (is === 'foreign') {
        throw new DatapathError(
          'IPVS_CONFLICT',
          `IPVS already has an IPv${family} service for firewall mark ${this.#mark}: set interception.mark to another bit`,
        );
      }
      if (is === 'absent') {
        await this.#ipvsadm(['-A', ...service(family, this.#mark), '-s', 'rr']);
      }
      await this.#ipvsadm([
        '-a',
        ...service(family, this.#mark),
        '-r',
        DESTINATION[family],
        '-g',
        '-w',
        String(WEIGHT),
      ]);
      if ((await this.#look(family)) !== 'ours') {
        throw new DatapathError(
          'IPVS_FAILED',
          `the IPVS service for IPv${family} (firewall mark ${this.#mark}) was accepted but does not read back`,
        );
      }
      repaired.push(`IPVS service for IPv${family}`);
    }
    return repaired;
  }

  /** One question, whatever the number of services. */
  async #look(family: Family): Promise<'ours' | 'foreign' | 'empty' | 'absent'> {
    let listed: string;
    try {
      listed = await this.#ipvsadm(['-L', '-n', ...service(family, this.#mark)]);
    } catch (error) {
      if (error instanceof DatapathError && /no such service/i.test(error.message)) {
        return 'absent';
      }
      throw error;
    }
    const destinations = [...listed.matchAll(/^\s*->\s+(\S+:\d+)\s+\S+\s+(\d+)/gm)];
    if (destinations.length === 0) {
      return 'empty';
    }
    const [, address, weight] = destinations[0] ?? [];
    return destinations.length === 1 && address === DESTINATION[family] && weight === String(WEIGHT)
      ? 'ours'
      : 'foreign';
  }

  async #removeStale(): Promise<string[]> {
    const saved = await this.#ipvsadm(['--save', '-n']);
    const stale = markServices(saved).filter(({ isOurs, mark }) => isOurs && mark !== this.#mark);
    for (const { family, mark } of stale) {
      await this.#ipvsadm(['-D', ...service(family, mark)]);
    }
    return stale.map(({ family }) => `stale IPVS service for IPv${family} removed`);
  }
}

function service(family: Family, mark: number): string[] {
  return ['-f', String(mark), ...(family === 6 ? ['-6'] : [])];
}

/** Those of ours, by whatever mark. Returns what was taken away, in words. */
export async function removeIpvsServices(): Promise<string[]> {
  if (!ipvsPresent()) {
    return [];
  }
  const ours = markServices(await ipvsadm(['--save', '-n'])).filter(({ isOurs }) => isOurs);
  for (const { family, mark } of ours) {
    await ipvsadm(['-D', ...service(family, mark)]);
  }
  return ours.map(({ family }) => `IPVS service for IPv${family}`);
}
