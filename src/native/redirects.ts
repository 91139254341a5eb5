/** Interfaces whose ingress filters send packets out by another one: tc-mirred(8). */

import { addon } from './kernel-addon.js';

export interface Redirect {
  readonly ifindex: number;
  /** ifindex of the interface that the packets go to. */
  readonly target: number;
}

/** Reads the filters of the network namespace that was current when it was opened. */
export class Redirects {
  readonly #fd: number;
  #sequence = 0;
  #closed = false;

  constructor() {
    this.#fd = addon.openRoutes();
  }

  /** One question for all interfaces, and one more for each that has a queueing discipline at ingress. */
  list(): Redirect[] {
    if (this.#closed) {
      throw new TypeError('the socket is closed');
    }
    this.#sequence = (this.#sequence % 0x7fff_ffff) + 1;
    return addon.redirects(this.#fd, this.#sequence);
  }

  close(): void {
    if (!this.#closed) {
      this.#closed = true;
      addon.closeFd(this.#fd);
    }
  }
}
