/**
 * Attaching to socket lookup (sk_lookup) of the network namespace that the agent works in: one pinned link, held as well,
 * so that it outlives its pin.
 */

import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { attachSkLookup, BpfLink, type BpfProgram } from '../native/bpf.js';
import { closeFd } from '../native/descriptors.js';
import { isGone } from '../native/errors.js';
import { openNamespace } from '../native/namespaces.js';
import type { AttachResult } from './attachment.js';
import { linkPin } from './object-set.js';
import { detachPinned } from './pins.js';

export class SocketLookup {
  readonly #path: string;
  #held: BpfLink | undefined;

  constructor(linksPath: string, role: string) {
    this.#path = join(linksPath, linkPin(role));
  }

  /** Idempotent: in the current network namespace where there is no link yet. KernelError where the kernel refuses. */
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
    const netns = openNamespace('/proc/thread-self/ns/net');
    try {
      const link = attachSkLookup(program, netns);
      try {
        link.pin(this.#path);
      } catch (error) {
        link.close();
        throw error;
      }
      this.#hold(link);
    } finally {
      closeFd(netns);
    }
    return 'attached';
  }
}
