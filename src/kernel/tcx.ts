/** Attaching by tcx links (Linux 6.6): pinned by role and ifindex, so that they outlive the agent. */

import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { attachTcx, attachTcxAsync, BpfLink, type BpfProgram, queryTcx } from '../native/bpf.js';
import { unlessGone } from '../native/errors.js';
import type { Attachment, Attachments, AttachResult } from './attachment.js';
import { linkPin, type ObjectSet, parseLinkPin } from './object-set.js';
import { detachPinned, pinsIn } from './pins.js';

export class TcxLinks<R extends string = string> implements Attachments<R> {
  readonly #set: ObjectSet;
  readonly #linksPath: string;
  readonly #underWay = new Map<string, Promise<void>>();

  constructor(set: ObjectSet, linksPath: string) {
    this.#set = set;
    this.#linksPath = linksPath;
  }

  isAttached({ ifindex }: Attachment<R>, program: BpfProgram): boolean {
    const entries = unlessGone(() => queryTcx(ifindex, 'ingress')) ?? [];
    return entries.some((entry) => entry.programId === program.id);
  }

  attach(attachment: Attachment<R>, program: BpfProgram): AttachResult {
    const done = this.#update(attachment, program);
    if (done === undefined) {
      this.#pin(attachment, attachTcx(program, attachment.ifindex, 'ingress'));
    }
    return done ?? 'attached';
  }

  async attachAsync(attachment: Attachment<R>, program: BpfProgram): Promise<AttachResult> {
    const path = this.#path(attachment);
    // A bridge is asked for by each of its pods.
    for (let other = this.#underWay.get(path); other !== undefined; other = this.#underWay.get(path)) {
      await other.catch(() => undefined);
    }
    const done = this.#update(attachment, program);
    if (done !== undefined) {
      return done;
    }
    const making = attachTcxAsync(program, attachment.ifindex, 'ingress').then((link) =>
      this.#pin(attachment, link),
    );
    this.#underWay.set(path, making);
    try {
      await making;
    } finally {
      this.#underWay.delete(path);
    }
    return 'attached';
  }

  detach(attachment: Attachment<R>): void {
    detachPinned(this.#path(attachment));
  }

  /** The link ends with its last holder, which is the pin. */
  release(attachment: Attachment<R>): void {
    rmSync(this.#path(attachment), { force: true });
  }

  list(): Attachment<R>[] {
    return pinsIn(this.#linksPath).flatMap((name) => {
      const { role, ifindex } = parseLinkPin(this.#set, name) ?? {};
      return ifindex === undefined ? [] : [{ role: role as R, ifindex }];
    });
  }

  /** What can be done with the link that is there; undefined: one has to be made. */
  #update(attachment: Attachment<R>, program: BpfProgram): AttachResult | undefined {
    const path = this.#path(attachment);
    // Without its pin a link may be on its way out, or nobody can find it after us: another one is made.
    if (!existsSync(path)) {
      return undefined;
    }
    if (this.isAttached(attachment, program)) {
      return 'kept';
    }
    const link = BpfLink.openPinned(path);
    try {
      if (queryTcx(attachment.ifindex, 'ingress').some((entry) => entry.linkId === link.id)) {
        link.update(program);
        return 'updated';
      }
    } finally {
      link.close();
    }
    rmSync(path); // of an interface that is gone, whose ifindex has come back
    return undefined;
  }

  #pin(attachment: Attachment<R>, link: BpfLink): void {
    try {
      link.pin(this.#path(attachment));
    } catch (error) {
      link.detach();
      throw error;
    } finally {
      link.close();
    }
  }

  #path({ role, ifindex }: Attachment<R>): string {
    return join(this.#linksPath, linkPin(role, ifindex));
  }
}
