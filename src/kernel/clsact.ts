/** Attaching on kernels before 6.6: a filter of our own in the clsact qdisc, which outlives the agent by itself. */

import { attachClsact, type BpfProgram, detachClsact, programInfo, queryClsact } from '../native/bpf.js';
import { unlessGone } from '../native/errors.js';
import type { Attachment, Attachments, AttachResult } from './attachment.js';
import { type Hook, hookOf, interfaceRoles, linkPin, type ObjectSet } from './object-set.js';

/** Our place among the filters of a hook: 0x4e53 is "NS". */
export const CLSACT = { priority: 0x4e53, handle: 0x4e53 } as const;

const HOOKS: readonly Hook[] = ['ingress', 'egress'];

export class ClsactFilters<R extends string = string> implements Attachments<R> {
  readonly #set: ObjectSet;
  /** Nothing is pinned that would name the interfaces: these are the ones that carry a filter of ours. */
  readonly #filters = new Map<string, Attachment<R>>();

  constructor(set: ObjectSet) {
    this.#set = set;
  }

  /** Finds the filters of an agent before us, by the names of their programs. */
  adopt(ifindexes: readonly number[]): void {
    const roles = new Map([...interfaceRoles(this.#set)].map(([role, program]) => [program, role]));
    for (const ifindex of ifindexes) {
      for (const hook of HOOKS) {
        const filter = unlessGone(() => queryClsact(ifindex, hook, CLSACT));
        const role = filter === undefined ? undefined : roles.get(programInfo(filter.programId)?.name ?? '');
        if (role !== undefined) {
          this.#hold({ role: role as R, ifindex });
        }
      }
    }
  }

  isAttached({ role, ifindex }: Attachment<R>, program: BpfProgram): boolean {
    const hook = hookOf(this.#set, role);
    return unlessGone(() => queryClsact(ifindex, hook, CLSACT))?.programId === program.id;
  }

  /** What there is to look at, is looked at by `isInPlace`. */
  look(): boolean {
    return false;
  }

  isInPlace(attachment: Attachment<R>, program: BpfProgram): boolean {
    const { role, ifindex } = attachment;
    return this.#filters.has(linkPin(role, ifindex)) && this.isAttached(attachment, program);
  }

  attach(attachment: Attachment<R>, program: BpfProgram): AttachResult {
    const { role, ifindex } = attachment;
    const hook = hookOf(this.#set, role);
    if (this.isAttached(attachment, program)) {
      this.#hold(attachment);
      return 'kept';
    }
    const before = queryClsact(ifindex, hook, CLSACT);
    attachClsact(program, ifindex, hook, CLSACT);
    this.#hold(attachment);
    return before === undefined ? 'attached' : 'updated';
  }

  async attachAsync(attachment: Attachment<R>, program: BpfProgram): Promise<AttachResult> {
    return this.attach(attachment, program);
  }

  detach(attachment: Attachment<R>): void {
    const { role, ifindex } = attachment;
    if (this.#filters.delete(linkPin(role, ifindex))) {
      unlessGone(() => detachClsact(ifindex, hookOf(this.#set, role), CLSACT));
    }
  }

  release(attachment: Attachment<R>): void {
    this.detach(attachment);
  }

  list(): Attachment<R>[] {
    return [...this.#filters.values()];
  }

  /** A filter is held by its interface alone. */
  close(): void {
    this.#filters.clear();
  }

  #hold(attachment: Attachment<R>): void {
    this.#filters.set(linkPin(attachment.role, attachment.ifindex), attachment);
  }
}
