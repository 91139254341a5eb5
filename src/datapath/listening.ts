/** Word from the kernel that TCP sockets of this network namespace have begun to listen, or have stopped. */

import { openObjectFile } from '../kernel/pins.js';
import { u32 } from '../kernel/struct.js';
import { attachTracepoint, openRingBuffer } from '../native/bpf.js';
import { closeFd } from '../native/descriptors.js';
import { isKernelError } from '../native/errors.js';
import { netnsIdentity, openNamespace } from '../native/namespaces.js';

export interface ListeningOptions {
  /** Folder with the compiled objects. */
  readonly objects: string;
  /** Called once for as many sockets as have come or gone since; the socket may be in the kernel's table a moment later only. */
  readonly changed: () => void;
}

/** Until it is closed. Or why this kernel does not tell: it has no BTF, or refuses such programs. */
export function watchListening({
  objects,
  changed,
}: ListeningOptions): { close(): void } | { readonly problem: string } {
  const object = openObjectFile(objects, 'listen');
  try {
    object.load();
    const [netns, events] = [object.map('listen_netns'), object.map('listen_events')];
    const program = object.program('listening');
    try {
      netns.set(u32(0), u32(ownNetns()));
      const ring = openRingBuffer(events, changed);
      try {
        const link = attachTracepoint(program);
        return {
          close: () => {
            link.close();
            ring.close();
          },
        };
      } catch (error) {
        ring.close();
        throw error;
      }
    } finally {
      program.close();
      netns.close();
      events.close();
    }
  } catch (error) {
    if (!isKernelError(error)) {
      throw error;
    }
    return { problem: error.message.split('\n', 1)[0] ?? '' };
  } finally {
    object.close();
  }
}

function ownNetns(): number {
  const fd = openNamespace('/proc/self/ns/net');
  try {
    return Number(netnsIdentity(fd).inode);
  } finally {
    closeFd(fd);
  }
}
