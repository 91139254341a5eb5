/**
 * Per-interface sysctls: changed only where an interception needs it, recorded before, restored after. Node-wide
 * ones (`conf.all.*`) are somebody else's and are never written.
 *
 * The one case: with `src_valid_mark` on (WireGuard and some clouds set it) the reverse-path check looks a packet
 * up under its mark, finds our local route and drops it as a martian. `accept_local` on the pod's interface makes
 * that check pass (Documentation/networking/ip-sysctl.rst).
 */

import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

const PROC = '/proc/sys/net/ipv4/conf';

interface SysctlRecord {
  readonly interface: string;
  readonly ifindex: number;
  readonly name: string;
  readonly before: string;
}

export class InterfaceSysctls {
  readonly #recordPath: string;

  constructor(runDir: string) {
    this.#recordPath = join(runDir, 'sysctls.json');
  }

  /** True if something had to be changed. */
  ensure(interfaceName: string, ifindex: number): boolean {
    const srcValidMark =
      read('all', 'src_valid_mark') === '1' || read(interfaceName, 'src_valid_mark') === '1';
    if (!srcValidMark || read('all', 'accept_local') === '1' || read(interfaceName, 'accept_local') !== '0') {
      return false;
    }
    const records = this.#load().filter((record) => record.ifindex !== ifindex);
    this.#store([...records, { interface: interfaceName, ifindex, name: 'accept_local', before: '0' }]);
    write(interfaceName, 'accept_local', '1');
    return true;
  }

  /** Puts back what was changed, for the given interface or for all. Interfaces that are gone need nothing. */
  restore(ifindex?: number): string[] {
    const restored: string[] = [];
    const records = this.#load();
    for (const record of records) {
      if (ifindex !== undefined && record.ifindex !== ifindex) {
        continue;
      }
      if (currentIndex(record.interface) === record.ifindex) {
        write(record.interface, record.name, record.before);
        restored.push(`sysctl net.ipv4.conf.${record.interface}.${record.name}`);
      }
    }
    this.#store(ifindex === undefined ? [] : records.filter((record) => record.ifindex !== ifindex));
    return restored;
  }

  #load(): SysctlRecord[] {
    return existsSync(this.#recordPath)
      ? (JSON.parse(readFileSync(this.#recordPath, 'utf8')) as SysctlRecord[])
      : [];
  }

  #store(records: readonly SysctlRecord[]): void {
    if (records.length === 0) {
      rmSync(this.#recordPath, { force: true });
      return;
    }
    mkdirSync(dirname(this.#recordPath), { recursive: true });
    writeFileSync(`${this.#recordPath}.new`, JSON.stringify(records));
    renameSync(`${this.#recordPath}.new`, this.#recordPath);
  }
}

function read(interfaceName: string, name: string): string | undefined {
  try {
    return readFileSync(join(PROC, interfaceName, name), 'utf8').trim();
  } catch {
    return undefined; // the interface has gone
  }
}

function write(interfaceName: string, name: string, value: string): void {
  writeFileSync(join(PROC, interfaceName, name), value);
}

/** /sys/class/net is of the namespace that mounted /sys; /proc/net is of ours. */
function currentIndex(interfaceName: string): number | undefined {
  const known = readFileSync('/proc/net/dev_mcast', 'utf8');
  for (const line of known.split('\n')) {
    const [index, name] = line.trim().split(/\s+/);
    if (name === interfaceName) {
      return Number(index);
    }
  }
  return undefined;
}
