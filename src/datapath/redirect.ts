/**
 * Attaching our programs to interfaces: tcx links where the kernel has them (6.6), a clsact filter of our own
 * where it does not. Links are pinned by ifindex, so that they outlive the agent.
 */

import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import {
  attachClsact,
  attachSkLookup,
  attachTcx,
  attachTcxAsync,
  BpfLink,
  type BpfProgram,
  detachClsact,
  programInfo,
  queryClsact,
  queryTcx,
} from '../native/bpf.js';
import { isKernelError } from '../native/errors.js';
import { closeFd, openNamespace } from '../native/kernel.js';

/** Our place among the filters of a clsact hook: 0x4e53 is "NS". */
export const CLSACT = { priority: 0x4e53, handle: 0x4e53 } as const;

export type Role = 'egress' | 'steer';

export interface Attachment {
  readonly role: Role;
  readonly ifindex: number;
}

export interface RedirectOptions {
  readonly linksPath: string;
  /** False for kernels before 6.6. */
  readonly tcx: boolean;
}

const LOOKUP_PIN = 'lookup';
const ROLE_OF: Readonly<Record<string, Role>> = { pod_egress: 'egress', bridge_steer: 'steer' };
const PROGRAM_OF = { egress: 'pod_egress', steer: 'bridge_steer' } as const;

/** The program that runs by a link of this pin name, and the interface; undefined where we call no link so. */
export function pinnedLink(
  name: string,
): { readonly program: 'pod_egress' | 'bridge_steer' | 'reuse'; readonly ifindex?: number } | undefined {
  const attachment = parsePinName(name);
  if (attachment !== undefined) {
    return { program: PROGRAM_OF[attachment.role], ifindex: attachment.ifindex };
  }
  return name === LOOKUP_PIN ? { program: 'reuse' } : undefined;
}

function pinName({ role, ifindex }: Attachment): string {
  return `${role}-${ifindex}`;
}

function parsePinName(name: string): Attachment | undefined {
  const match = /^(egress|steer)-(\d+)$/.exec(name);
  return match === null ? undefined : { role: match[1] as Role, ifindex: Number(match[2]) };
}

export class Redirect {
  readonly #options: RedirectOptions;
  /** Without tcx nothing is pinned: these are the interfaces that carry a filter of ours. */
  readonly #filters = new Map<string, Attachment>();
  readonly #underWay = new Map<string, Promise<void>>();

  constructor(options: RedirectOptions) {
    this.#options = options;
  }

  /** Finds the filters of an agent before us: without tcx nothing is pinned that would name their interfaces. */
  adoptFilters(ifindexes: readonly number[]): void {
    if (this.#options.tcx) {
      return;
    }
    for (const ifindex of ifindexes) {
      const filter = unlessGone(() => queryClsact(ifindex, 'ingress', CLSACT));
      const role = filter === undefined ? undefined : ROLE_OF[programInfo(filter.programId)?.name ?? ''];
      if (role !== undefined) {
        const attachment: Attachment = { role, ifindex };
        this.#filters.set(pinName(attachment), attachment);
      }
    }
  }

  /** Attached, and running exactly `program`. Read from the kernel, not remembered. */
  isAttached(attachment: Attachment, program: BpfProgram): boolean {
    const attached = unlessGone(() =>
      this.#options.tcx
        ? queryTcx(attachment.ifindex, 'ingress').some((entry) => entry.programId === program.id)
        : queryClsact(attachment.ifindex, 'ingress', CLSACT)?.programId === program.id,
    );
    return attached === true;
  }

  /** Idempotent. Returns what was done: nothing, a fresh attachment, or an exchange of the program in place. */
  attach(attachment: Attachment, program: BpfProgram): 'kept' | 'attached' | 'updated' {
    const done = this.#reuse(attachment, program);
    if (done === undefined) {
      this.#pin(attachment, attachTcx(program, attachment.ifindex, 'ingress'));
    }
    return done ?? 'attached';
  }

  /** As `attach`; the event loop goes on while the kernel waits. */
  async attachAsync(attachment: Attachment, program: BpfProgram): Promise<'kept' | 'attached' | 'updated'> {
    const name = pinName(attachment);
    // A bridge is asked for by each of its pods.
    for (let other = this.#underWay.get(name); other !== undefined; other = this.#underWay.get(name)) {
      await other.catch(() => undefined);
    }
    const done = this.#reuse(attachment, program);
    if (done !== undefined) {
      return done;
    }
    const making = attachTcxAsync(program, attachment.ifindex, 'ingress').then((link) =>
      this.#pin(attachment, link),
    );
    this.#underWay.set(name, making);
    try {
      await making;
    } finally {
      this.#underWay.delete(name);
    }
    return 'attached';
  }

  /** What can be done with what is there; undefined: a tcx link has to be made. */
  #reuse(attachment: Attachment, program: BpfProgram): 'kept' | 'attached' | 'updated' | undefined {
    const { ifindex } = attachment;
    const path = join(this.#options.linksPath, pinName(attachment));
    // Without its pin a link may be on its way out, or nobody can find it after us: another one is made.
    const isHeld = !this.#options.tcx || existsSync(path);
    if (isHeld && this.isAttached(attachment, program)) {
      this.#filters.set(pinName(attachment), attachment);
      return 'kept';
    }
    if (!this.#options.tcx) {
      const before = queryClsact(ifindex, 'ingress', CLSACT);
      attachClsact(program, ifindex, 'ingress', CLSACT);
      this.#filters.set(pinName(attachment), attachment);
      return before === undefined ? 'attached' : 'updated';
    }
    if (isHeld) {
      const link = BpfLink.openPinned(path);
      try {
        if (queryTcx(ifindex, 'ingress').some((entry) => entry.linkId === link.id)) {
          link.update(program);
          return 'updated';
        }
      } finally {
        link.close();
      }
      rmSync(path); // of an interface that is gone, whose ifindex has come back
    }
    return undefined;
  }

  #pin(attachment: Attachment, link: BpfLink): void {
    try {
      link.pin(join(this.#options.linksPath, pinName(attachment)));
    } catch (error) {
      link.detach();
      throw error;
    } finally {
      link.close();
    }
  }

  /**
   * Attaches `program` to socket lookup in the current network namespace. Returns what was done, as `attach` does.
   */
  attachLookup(program: BpfProgram): 'kept' | 'attached' | 'updated' {
    const path = join(this.#options.linksPath, LOOKUP_PIN);
    if (existsSync(path)) {
      const pinned = BpfLink.openPinned(path);
      try {
        const done = pinned.programId === program.id ? 'kept' : 'updated';
        pinned.update(program); // also the same one: a link that somebody detached refuses it
        return done;
      } catch (error) {
        if (!isGone(error)) {
          throw error;
        }
      } finally {
        pinned.close();
      }
      rmSync(path);
    }
    const netns = openNamespace('/proc/thread-self/ns/net');
    try {
      const link = attachSkLookup(program, netns);
      try {
        link.pin(path);
      } finally {
        link.close();
      }
    } finally {
      closeFd(netns);
    }
    return 'attached';
  }

  /** True where there was something to take off. */
  detachLookup(): boolean {
    return this.#detachPinned(join(this.#options.linksPath, LOOKUP_PIN));
  }

  /** Takes our program off; an interface that is gone has taken it along. */
  detach(attachment: Attachment): void {
    this.#detachPinned(join(this.#options.linksPath, pinName(attachment)));
    if (this.#filters.delete(pinName(attachment)) && !this.#options.tcx) {
      unlessGone(() => detachClsact(attachment.ifindex, 'ingress', CLSACT));
    }
  }

  /**
   * Lets go of our program, which the kernel takes off a moment later: without waiting for it, as `detach` does. An
   * interface that is about to go need not be waited for.
   */
  release(attachment: Attachment): void {
    if (this.#options.tcx) {
      rmSync(join(this.#options.linksPath, pinName(attachment)), { force: true });
      this.#filters.delete(pinName(attachment));
    } else {
      this.detach(attachment);
    }
  }

  /** Every attachment that we hold, by pin or by filter. */
  list(): Attachment[] {
    const pinned = existsSync(this.#options.linksPath) ? readdirSync(this.#options.linksPath) : [];
    const found = new Map(this.#filters);
    for (const name of pinned) {
      const attachment = parsePinName(name);
      if (attachment !== undefined) {
        found.set(name, attachment);
      }
    }
    return [...found.values()];
  }

  #detachPinned(path: string): boolean {
    if (!existsSync(path)) {
      return false;
    }
    const link = BpfLink.openPinned(path);
    try {
      unlessGone(() => link.detach());
    } finally {
      link.close();
    }
    rmSync(path, { force: true });
    return true;
  }
}

/** Interfaces, and what is attached to them, may go at any moment. */
export function unlessGone<T>(step: () => T): T | undefined {
  try {
    return step();
  } catch (error) {
    if (isGone(error)) {
      return undefined;
    }
    throw error;
  }
}

export function isGone(error: unknown): boolean {
  return (
    isKernelError(error) && (error.code === 'ENODEV' || error.code === 'ENOLINK' || error.code === 'ENOENT')
  );
}
