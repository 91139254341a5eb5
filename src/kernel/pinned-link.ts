/** One link, pinned so that it outlives the agent, and held by the agent so that it outlives its pin. */

import { existsSync, rmSync } from 'node:fs';
import { BpfLink, type BpfProgram } from '../native/bpf.js';
import { isGone } from '../native/errors.js';
import type { AttachResult } from './attachment.js';
import { detachPinned } from './pins.js';

export class PinnedLink {
  readonly #path: string;
  readonly #make: (program: BpfProgram) => BpfLink;
  #held: BpfLink | undefined;

  /** `path`: of the pin. `make` attaches the program where no link is. */
  constructor(path: string, make: (program: BpfProgram) => BpfLink) {
    this.#path = path;
    this.#make = make;
  }

  /** Idempotent. KernelError where the kernel refuses. */
  attach(program: BpfProgram): AttachResult {
    return this.#update(program) ?? this.#pinAgain(program) ?? this.#create(program);
  }

  close(): void {
    this.#hold(undefined);
  }

  /** True where there was something to take off. */
  detach(): boolean {
    this.#hold(undefined);
    return detachPinned(this.#path);
  }

  #update(program: BpfProgram): AttachResult | undefined {
    if (!existsSync(this.#path)) {
      return undefined;
    }
    const pinned = BpfLink.openPinned(this.#path);
    try {
      const done = pinned.programId === program.id ? 'kept' : 'updated';
      pinned.update(program); // also the same one: a link that somebody detached refuses it
      this.#hold(pinned);
      return done;
    } catch (error) {
      pinned.close();
      if (!isGone(error)) {
        throw error;
      }
    }
    this.#hold(undefined);
    rmSync(this.#path);
    return undefined;
  }

  /** Nobody would find it after us. */
  #pinAgain(program: BpfProgram): AttachResult | undefined {
    try {
      this.#held?.update(program);
    } catch (error) {
      if (!isGone(error)) {
        throw error;
      }
      this.#hold(undefined); // taken off as well
    }
    this.#held?.pin(this.#path);
    return this.#held && 'attached';
  }

  #hold(link: BpfLink | undefined): void {
    this.#held?.close();
    this.#held = link;
  }

  #create(program: BpfProgram): AttachResult {
    const link = this.#make(program);
    try {
      link.pin(this.#path);
    } catch (error) {
      link.close();
      throw error;
    }
    this.#hold(link);
    return 'attached';
  }
}
