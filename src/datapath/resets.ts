/** Counting the resets that proxies send, in `instance_counts`: only while somebody wants to know. */

import { openObjectFile } from '../kernel/pins.js';
import { attachTracepoint, type BpfLink, type BpfMap } from '../native/bpf.js';
import { isKernelError } from '../native/errors.js';

export interface ResetWatchOptions {
  /** Folder with the compiled objects. */
  readonly objects: string;
  /** All that the programs share. */
  readonly maps: Readonly<Record<string, BpfMap>>;
}

/** Until it is closed, resets are counted. Undefined, with why, where this kernel cannot: it has no BTF, or another hook. */
export function watchResets({
  objects,
  maps,
}: ResetWatchOptions): { readonly link: BpfLink } | { readonly problem: string } {
  const object = openObjectFile(objects, 'resets');
  try {
    for (const [name, map] of Object.entries(maps)) {
      object.reuseMap(name, map);
    }
    object.load();
    const program = object.program('count_reset');
    try {
      return { link: attachTracepoint(program) };
    } finally {
      program.close();
    }
  } catch (error) {
    if (!isKernelError(error)) {
      throw error;
    }
    return { problem: `this kernel does not tell of resets (${error.message.split('\n', 1)[0]})` };
  } finally {
    object.close();
  }
}
