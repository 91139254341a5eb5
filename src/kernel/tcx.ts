/**
 * Attaching by tcx links (Linux 6.6): pinned by role and ifindex, so that they outlive the agent. The agent holds each of
 * them too, so that they outlive their pins: whoever unmounts the bpffs, or removes a pin, uncovers no pod.
 */

import { existsSync, rmSync } from 'node:fs';
import { basename } from 'node:path';
import { attachTcx, attachTcxAsync, BpfLink, type BpfProgram, queryTcx, tcxPrograms } from '../native/bpf.js';
import { unlessGone } from '../native/errors.js';
import type { Attachment, Attachments, AttachResult } from './attachment.js';
import { hookOf, linkPin, type ObjectSet, parseLinkPin } from './object-set.js';
import { detachPinned, pinsIn } from './pins.js';

export class TcxLinks<R extends string = string> implements Attachments<R> {
  readonly #set: ObjectSet;
  readonly #linksPath: string;
  readonly #underWay = new Map<string, Promise<void>>();
  /** By the path of the pin. */
  readonly #held = new Map<string, BpfLink>();
  /** Names, as of the last look: one reading of the folder is less than asking for each. */
  #pins: ReadonlySet<string> = new Set();
  /** The interfaces that those name. */
  #interfaces: ReadonlyMap<R, readonly number[]> = new Map();
  /** The programs at them, as of the last look. */
  #running: ReadonlyMap<R, ReadonlyMap<number, readonly number[]>> = new Map();

  constructor(set: ObjectSet, linksPath: string) {
    this.#set = set;
    this.#linksPath = linksPath;
  }

  isAttached({ role, ifindex }: Attachment<R>, program: BpfProgram): boolean {
    const entries = unlessGone(() => queryTcx(ifindex, hookOf(this.#set, role))) ?? [];
    return entries.some((entry) => entry.programId === program.id);
  }

  look(): boolean {
    const before = this.#pins;
    this.#pins = new Set(pinsIn(this.#linksPath));
    const isAnother = this.#pins.size !== before.size || [...this.#pins].some((name) => !before.has(name));
    if (isAnother) {
      this.#interfaces = this.#named();
    }
    this.#running = new Map(
      [...this.#interfaces].map(([role, ifindexes]) => [
        role,
        tcxPrograms(ifindexes, hookOf(this.#set, role)),
      ]),
    );
    return isAnother;
  }

  #named(): Map<R, number[]> {
    const named = new Map<R, number[]>();
    for (const { role, ifindex } of [...this.#pins].flatMap((name) => this.#parse(name))) {
      const others = named.get(role);
      if (others === undefined) {
        named.set(role, [ifindex]);
      } else {
        others.push(ifindex);
      }
    }
    return named;
  }

  isInPlace(attachment: Attachment<R>, program: BpfProgram): boolean {
    const { role, ifindex } = attachment;
    return (
      this.#running.get(role)?.get(ifindex)?.includes(program.id) === true &&
      this.#held.has(this.#path(attachment))
    );
  }

  attach(attachment: Attachment<R>, program: BpfProgram): AttachResult {
    const done = this.#update(attachment, program);
    if (done === undefined) {
      this.#pin(attachment, attachTcx(program, attachment.ifindex, hookOf(this.#set, attachment.role)));
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
    const making = attachTcxAsync(program, attachment.ifindex, hookOf(this.#set, attachment.role)).then(
      (link) => this.#pin(attachment, link),
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
    const path = this.#path(attachment);
    this.#letGo(path);
    detachPinned(path);
  }

  /** The link ends with its last holder. That has to be the pin: for it the kernel works later, for us at once. */
  release(attachment: Attachment<R>): void {
    const path = this.#path(attachment);
    this.#letGo(path);
    rmSync(path, { force: true });
  }

  close(): void {
    for (const path of [...this.#held.keys()]) {
      this.#letGo(path);
    }
  }

  /** Pins, and what we hold without one. */
  list(): Attachment<R>[] {
    const held = [...this.#held.keys()].map((path) => basename(path));
    return [...new Set([...pinsIn(this.#linksPath), ...held])].flatMap((name) => this.#parse(name));
  }

  #parse(name: string): Attachment<R>[] {
    const { role, ifindex } = parseLinkPin(this.#set, name) ?? {};
    return ifindex === undefined ? [] : [{ role: role as R, ifindex }];
  }

  /** What can be done with the link that is there; undefined: one has to be made. */
  #update(attachment: Attachment<R>, program: BpfProgram): AttachResult | undefined {
    const path = this.#path(attachment);
    if (!existsSync(path)) {
      return this.#pinAgain(attachment, program);
    }
    if (this.#held.has(path) && this.isAttached(attachment, program)) {
      return 'kept';
    }
    const there = queryTcx(attachment.ifindex, hookOf(this.#set, attachment.role));
    const link = BpfLink.openPinned(path);
    const entry = there.find(({ linkId }) => linkId === link.id);
    if (entry === undefined) {
      // Of an interface that is gone, whose ifindex has come back, or taken off it by somebody.
      link.close();
      this.#letGo(path);
      rmSync(path);
      return undefined;
    }
    this.#hold(path, link);
    if (entry.programId === program.id) {
      return 'kept';
    }
    link.update(program);
    return 'updated';
  }

  /** A link that we hold has lost its pin: nobody would find it after us. Undefined where another has to be made. */
  #pinAgain(attachment: Attachment<R>, program: BpfProgram): AttachResult | undefined {
    const path = this.#path(attachment);
    const link = this.#held.get(path);
    if (link === undefined) {
      return undefined; // of nobody, or on its way out
    }
    const there = queryTcx(attachment.ifindex, hookOf(this.#set, attachment.role));
    if (!there.some(({ linkId }) => linkId === link.id)) {
      this.#letGo(path);
      return undefined;
    }
    link.update(program);
    link.pin(path);
    return 'attached';
  }

  #hold(path: string, link: BpfLink): void {
    const before = this.#held.get(path);
    this.#held.set(path, link);
    before?.close();
  }

  #letGo(path: string): void {
    this.#held.get(path)?.close();
    this.#held.delete(path);
  }

  #pin(attachment: Attachment<R>, link: BpfLink): void {
    const path = this.#path(attachment);
    try {
      link.pin(path);
    } catch (error) {
      link.detach();
      link.close();
      throw error;
    }
    this.#hold(path, link);
  }

  #path({ role, ifindex }: Attachment<R>): string {
    return `${this.#linksPath}/${linkPin(role, ifindex)}`;
  }
}
