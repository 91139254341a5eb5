/**
 * Attaching to the cgroups of version 2 that some sockets were opened in, which the kernel knows by number. One that has
 * gone has taken its link along.
 */

import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { attachCgroup, type BpfLink, type BpfProgram, type CgroupHook } from '../native/bpf.js';
import type { CgroupTree } from './cgroups.js';
import { linkPin, type ObjectSet, parseLinkPin } from './object-set.js';
import { PinnedLink } from './pinned-link.js';
import { pinsIn } from './pins.js';

export class CgroupLinks {
  readonly #set: ObjectSet;
  readonly #linksPath: string;
  readonly #role: string;
  readonly #tree: Pick<CgroupTree, 'find'>;
  readonly #links = new Map<number, PinnedLink>();

  constructor(set: ObjectSet, linksPath: string, role: string, tree: Pick<CgroupTree, 'find'>) {
    this.#set = set;
    this.#linksPath = linksPath;
    this.#role = role;
    this.#tree = tree;
  }

  /**
   * Exactly these cgroups run the program from now on. Returns what was done, in words. KernelError where the kernel
   * refuses; Error where a cgroup is not found.
   */
  ensure(cgroups: ReadonlySet<number>, program: BpfProgram): string[] {
    const changes: string[] = [];
    for (const cgroup of this.list().filter((other) => !cgroups.has(other))) {
      this.detach(cgroup);
    }
    for (const cgroup of cgroups) {
      const done = this.#link(cgroup).attach(program);
      if (done !== 'kept') {
        changes.push(`${this.#role} at cgroup ${cgroup} ${done}`);
      }
    }
    return changes;
  }

  /** Numbers of the cgroups that a link of ours is for. */
  list(): number[] {
    const pinned = pinsIn(this.#linksPath).flatMap((name) => {
      const { role, cgroup } = parseLinkPin(this.#set, name) ?? {};
      return role === this.#role && cgroup !== undefined ? [cgroup] : [];
    });
    return [...new Set([...pinned, ...this.#links.keys()])];
  }

  detach(cgroup: number): void {
    this.#link(cgroup).detach();
    this.#links.delete(cgroup);
  }

  close(): void {
    for (const link of this.#links.values()) {
      link.close();
    }
    this.#links.clear();
  }

  #link(cgroup: number): PinnedLink {
    const known = this.#links.get(cgroup);
    if (known !== undefined) {
      return known;
    }
    const link = new PinnedLink(join(this.#linksPath, linkPin(this.#role, cgroup)), (program) =>
      this.#attach(program, cgroup),
    );
    this.#links.set(cgroup, link);
    return link;
  }

  #attach(program: BpfProgram, cgroup: number): BpfLink {
    const path = this.#tree.find(cgroup);
    if (path === undefined) {
      throw new Error(`no cgroup of version 2 has the number ${cgroup} in what this agent sees of them`);
    }
    return attachAt(path, program, 'getsockopt');
  }
}

/** `path`: of a cgroup's folder. KernelError where the kernel refuses. */
export function attachAt(path: string, program: BpfProgram, hook: CgroupHook): BpfLink {
  const fd = openSync(path, 'r');
  try {
    return attachCgroup(program, fd, hook);
  } finally {
    closeSync(fd);
  }
}
