/** Where programs of ours run at interfaces, whichever mechanism the kernel has for it: `TcxLinks`, `ClsactFilters`. */

import type { BpfProgram } from '../native/bpf.js';

export interface Attachment<R extends string = string> {
  /** Which program of the set it is: one of each role at an interface. */
  readonly role: R;
  readonly ifindex: number;
}

/** What was done: nothing, a fresh attachment, or an exchange of the program in place. */
export type AttachResult = 'kept' | 'attached' | 'updated';

export interface Attachments<R extends string = string> {
  /** Attached, and running exactly `program`. Read from the kernel, not remembered. */
  isAttached(attachment: Attachment<R>, program: BpfProgram): boolean;
  /** To be called before a series of `isInPlace`. Returns whether others are there than at the last look. */
  look(): boolean;
  /** As `isAttached`, and nothing of what the next agent finds it by has gone, as of the last `look`: `attach` would keep it. */
  isInPlace(attachment: Attachment<R>, program: BpfProgram): boolean;
  /** Idempotent. KernelError where the kernel refuses, ENODEV where the interface has gone. */
  attach(attachment: Attachment<R>, program: BpfProgram): AttachResult;
  /** As `attach`; the event loop goes on while the kernel waits. */
  attachAsync(attachment: Attachment<R>, program: BpfProgram): Promise<AttachResult>;
  /** Takes our program off; an interface that is gone has taken it along. */
  detach(attachment: Attachment<R>): void;
  /** As `detach`, without waiting where the kernel would have us wait: it takes the program off a moment later. */
  release(attachment: Attachment<R>): void;
  /** Every attachment that we hold. */
  list(): Attachment<R>[];
  /** Changes nothing in the kernel. */
  close(): void;
}
