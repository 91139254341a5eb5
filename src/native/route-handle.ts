/** An rtnetlink socket of our own addon, and what all that asks by one shares. */

import { addon } from './kernel-addon.js';

/** Asks in the network namespace that was current when it was opened. */
export abstract class RouteHandle {
  readonly #fd: number;
  #sequence = 0;
  #closed = false;

  constructor() {
    this.#fd = addon.openRoutes();
  }

  /** `sequence` tells an answer from one that is left over from a request that was given up. */
  protected ask<T>(question: (fd: number, sequence: number) => T): T {
    if (this.#closed) {
      throw new TypeError('the route socket is closed');
    }
    this.#sequence = (this.#sequence % 0x7fff_ffff) + 1;
    return question(this.#fd, this.#sequence);
  }

  close(): void {
    if (!this.#closed) {
      this.#closed = true;
      addon.closeFd(this.#fd);
    }
  }
}
