/**
 * Per-interface sysctls: changed only where an interception needs it, recorded before, restored after. Node-wide
 * ones (`conf.all.*`) are somebody else's and are never written.
 *
 * The one case: with `src_valid_mark` on (WireGuard and some clouds set it) the reverse-path check looks a packet
 * up under its mark, finds our local route and drops it as a martian. `accept_local` on the pod's interface makes
 * that check pass (Documentation/networking/ip-sysctl.rst); for what pods are sent, on every interface of the node.
 */

import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

interface SysctlRecord {
  readonly interface: string;
  readonly ifindex: number;
  readonly name: string;
  readonly before: string;
}

/** How long what was read of the node, and of a single interface, is taken to hold. */
const NODE_WIDE_MS = 500;
const OWN_MS = 30_000;

interface NodeWide {
  readonly srcValidMark: boolean;
  readonly acceptLocal: boolean;
  readonly atMs: number;
}

export class InterfaceSysctls {
  readonly #recordPath: string;
  readonly #conf: string;
  readonly #own = new Map<number, { name: string; srcValidMark: boolean; atMs: number }>();
  #lastNodeWide: NodeWide | undefined;

  /** `procSys`: a view of /proc/sys that can be written. What is below net/ in it is the reader's own namespace. */
  constructor(runDir: string, procSys: string) {
    this.#recordPath = join(runDir, 'sysctls.json');
    this.#conf = join(procSys, 'net/ipv4/conf');
  }

  /** Whether `ensure` has nothing to change. */
  isRight(interfaceName: string, ifindex: number): boolean {
    const { srcValidMark, acceptLocal } = this.#nodeWide();
    return (
      acceptLocal ||
      !(srcValidMark || this.#asksForIt(interfaceName, ifindex)) ||
      this.#read(interfaceName, 'accept_local') !== '0'
    );
  }

  /** True if something had to be changed. Reads little: a file below /proc/sys costs more than a whole endpoint. */
  ensure(interfaceName: string, ifindex: number): boolean {
    if (this.isRight(interfaceName, ifindex)) {
      return false;
    }
    const records = this.#load().filter((record) => record.ifindex !== ifindex);
    this.#store([...records, { interface: interfaceName, ifindex, name: 'accept_local', before: '0' }]);
    this.#write(interfaceName, 'accept_local', '1');
    return true;
  }

  /** Whether every interface by which a connection comes in has to be asked for. */
  isNodeWide(): boolean {
    const { srcValidMark, acceptLocal } = this.#nodeWide();
    return srcValidMark && !acceptLocal;
  }

  #nodeWide(): NodeWide {
    const now = performance.now();
    if (this.#lastNodeWide === undefined || now - this.#lastNodeWide.atMs > NODE_WIDE_MS) {
      this.#lastNodeWide = {
        srcValidMark: this.#read('all', 'src_valid_mark') === '1',
        acceptLocal: this.#read('all', 'accept_local') === '1',
        atMs: now,
      };
    }
    return this.#lastNodeWide;
  }

  /** The same sysctl of the one interface, which hardly anybody sets. */
  #asksForIt(interfaceName: string, ifindex: number): boolean {
    const now = performance.now();
    const known = this.#own.get(ifindex);
    if (known !== undefined && known.name === interfaceName && now - known.atMs < OWN_MS) {
      return known.srcValidMark;
    }
    const srcValidMark = this.#read(interfaceName, 'src_valid_mark') === '1';
    // The next look is not at the same moment for all that came together.
    const atMs = now - Math.random() * OWN_MS * 0.5;
    this.#own.set(ifindex, { name: interfaceName, srcValidMark, atMs });
    return srcValidMark;
  }

  /** Puts back what was changed, for the given interface or for all. Interfaces that are gone need nothing. */
  restore(ifindex?: number): string[] {
    const restored: string[] = [];
    if (ifindex !== undefined) {
      this.#own.delete(ifindex);
    }
    const records = this.#load();
    for (const record of records) {
      if (ifindex !== undefined && record.ifindex !== ifindex) {
        continue;
      }
      if (currentIndex(record.interface) === record.ifindex) {
        this.#write(record.interface, record.name, record.before);
        restored.push(`sysctl net.ipv4.conf.${record.interface}.${record.name}`);
      }
    }
    this.#store(ifindex === undefined ? [] : records.filter((record) => record.ifindex !== ifindex));
    return restored;
  }

  #read(interfaceName: string, name: string): string | undefined {
    try {
      return readFileSync(join(this.#conf, interfaceName, name), 'utf8').trim();
    } catch {
      return undefined; // the interface has gone
    }
  }

  #write(interfaceName: string, name: string, value: string): void {
    writeFileSync(join(this.#conf, interfaceName, name), value);
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
