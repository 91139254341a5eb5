/**
 * Listeners that are opened for an instance and handed to it from descriptor 3 on: sd_listen_fds(3). A copy of each is kept,
 * so that who connects while it is restarted waits in the queue.
 */

import type { Instance } from '../config/config.js';
import { closeFd } from '../native/descriptors.js';
import { isKernelError } from '../native/errors.js';
import { openListener, pidfdGetfd, pidfdOpen, socketInfo } from '../native/sockets.js';
import { InstanceStartError } from './errors.js';

const FIRST_FD = 3;

interface Wanted {
  readonly name: 'outbound' | 'inbound';
  readonly host: string;
  readonly port: number;
  readonly v6only: boolean;
  /** Name and address. */
  readonly text: string;
}

export class HandedSockets {
  #held: readonly { readonly text: string; readonly fd: number }[] = [];

  /** In the order of their descriptors. */
  get texts(): string[] {
    return this.#held.map(({ text }) => text);
  }

  get fds(): number[] {
    return this.#held.map(({ fd }) => fd);
  }

  /**
   * Those of the instance and no others; what is open already stays open. Returns whether any was opened. Throws
   * InstanceStartError.
   */
  open(instance: Instance): boolean {
    const wanted = socketsOf(instance);
    const unwanted = this.#held.filter(({ text }) => !wanted.some((other) => other.text === text));
    this.#held = this.#held.filter((held) => !unwanted.includes(held));
    const fresh: number[] = [];
    try {
      for (const { fd } of unwanted) {
        closeFd(fd);
      }
      this.#held = wanted.map(({ text, host, port, v6only }) => {
        const held = this.#held.find((other) => other.text === text);
        if (held !== undefined) {
          return held;
        }
        const fd = openListener(host, port, { v6only });
        fresh.push(fd);
        return { text, fd };
      });
      return fresh.length > 0;
    } catch (error) {
      fresh.forEach(closeFd);
      throw new InstanceStartError('LISTEN_FAILED', (error as Error).message, { cause: error });
    }
  }

  /** From a process that was handed them by somebody before; returns what it does not have any more. */
  takeBack(pid: number, texts: readonly string[]): string[] {
    const pidfd = pidfdOpen(pid);
    try {
      const taken = texts.map((text, index) => ({ text, fd: copyOf(pidfd, FIRST_FD + index, text) }));
      this.#held = taken.flatMap(({ text, fd }) => (fd === undefined ? [] : [{ text, fd }]));
      return taken.filter(({ fd }) => fd === undefined).map(({ text }) => text);
    } finally {
      closeFd(pidfd);
    }
  }

  close(): void {
    for (const { fd } of this.#held) {
      closeFd(fd);
    }
    this.#held = [];
  }
}

/** Of LISTEN_FDNAMES. */
export function namesOf(texts: readonly string[]): string {
  return texts.map((text) => text.split(' ', 1)[0]).join(':');
}

/** Of the sockets that an instance would be handed. */
export function textsOf(instance: Instance): string[] {
  return socketsOf(instance).map(({ text }) => text);
}

function socketsOf(instance: Instance): Wanted[] {
  return (['outbound', 'inbound'] as const).flatMap((name) =>
    instance[name].map(({ host, port, text }, _index, list) => ({
      name,
      host,
      port,
      v6only: host !== '::' || list.length > 1,
      text: `${name} ${text}`,
    })),
  );
}

function copyOf(pidfd: number, fd: number, text: string): number | undefined {
  let copy: number;
  try {
    copy = pidfdGetfd(pidfd, fd);
  } catch (error) {
    if (isKernelError(error) && error.code === 'EBADF') {
      return undefined;
    }
    throw error;
  }
  if (isListenerAt(copy, text)) {
    return copy;
  }
  closeFd(copy);
  return undefined;
}

function isListenerAt(fd: number, text: string): boolean {
  try {
    const { listening, port } = socketInfo(fd);
    return listening && text.endsWith(`:${port}`);
  } catch {
    return false; // no socket at all
  }
}
