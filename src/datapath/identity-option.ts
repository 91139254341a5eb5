/** Proxies ask by getsockopt(2) who is at the ends of a connection: the program that answers, where they have their sockets. */

import type { Log } from '../base/log.js';
import type { CgroupLinks } from '../kernel/cgroup-links.js';
import { u32 } from '../kernel/struct.js';
import type { BpfMap, BpfProgram } from '../native/bpf.js';
import type { Layouts } from './layouts.js';

export interface IdentityOptionOptions {
  readonly links: Pick<CgroupLinks, 'ensure'>;
  readonly program: BpfProgram;
  /** The map `node`. */
  readonly map: BpfMap;
  readonly layouts: Pick<Layouts, 'node'>;
  /** Of the network namespace that the agent works in. */
  readonly netnsCookie: () => bigint;
  /** Where proxies have their listeners. */
  readonly cgroups: () => ReadonlySet<number>;
  /** Told what was put in place that had been there before. */
  readonly repaired: (what: string) => void;
  readonly log: Pick<Log, 'info' | 'warn'>;
}

/** How the door is: in how many cgroups it is open, and what is wrong, if anything. */
export interface IdentityOptionStatus {
  readonly cgroups: number;
  /** Empty where nothing is. */
  readonly problem: string;
}

export class IdentityOption {
  readonly #options: IdentityOptionOptions;
  #known: ReadonlySet<number> = new Set();
  #problem = '';

  constructor(options: IdentityOptionOptions) {
    this.#options = options;
  }

  status(): IdentityOptionStatus {
    return { cgroups: this.#problem === '' ? this.#known.size : 0, problem: this.#problem };
  }

  /** Idempotent; never throws: without it proxies have the other doors. */
  ensure(): void {
    const { links, program, cgroups, log, repaired } = this.#options;
    const wanted = cgroups();
    try {
      this.#writeNode();
      for (const what of links.ensure(wanted, program)) {
        if (this.#problem === '' && [...wanted].every((cgroup) => this.#known.has(cgroup))) {
          repaired(what);
        } else {
          log.info({ what }, 'put in place');
        }
      }
      this.#known = wanted;
      this.#problem = '';
    } catch (error) {
      const problem = error instanceof Error ? error.message : String(error);
      if (problem !== this.#problem) {
        log.warn({ reason: problem }, 'proxies cannot ask by system call who is at the end of a connection');
      }
      this.#problem = problem;
    }
  }

  #writeNode(): void {
    const { map, layouts, netnsCookie } = this.#options;
    const row = layouts.node.encode({ netns_cookie: netnsCookie() });
    if (map.get(u32(0))?.equals(row) !== true) {
      map.set(u32(0), row);
    }
  }
}
