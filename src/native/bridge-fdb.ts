/** What bridges have learnt of their ports. */

import { checkPositive } from './addon.js';
import { addon } from './kernel-addon.js';

/** Renews the forwarding entries of bridges in the network namespace that was current when it was opened. */
export class BridgeFdb {
  readonly #fd: number;
  #sequence = 0;
  #closed = false;

  constructor() {
    this.#fd = addon.openRoutes();
  }

  /**
   * Makes what the bridge has learnt at this port as young as if it were learnt now; adds nothing. At most so many
   * entries. Returns how many. KernelError ENODEV, EINVAL where the interface is gone or no port of a bridge.
   */
  renew(port: number, most: number): number {
    checkPositive(port, 'port');
    checkPositive(most, 'most');
    if (this.#closed) {
      throw new TypeError('the socket is closed');
    }
    this.#sequence = (this.#sequence % 0x7fff_ffff) + 1;
    return addon.renewStations(this.#fd, this.#sequence, port, most);
  }

  close(): void {
    if (!this.#closed) {
      this.#closed = true;
      addon.closeFd(this.#fd);
    }
  }
}
