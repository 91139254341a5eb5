/** nftables where a process of `nft` would cost too much: the ruleset's generation, elements of sets. */

import { checkBytes, checkPositive, checkText } from './addon.js';
import { addon } from './kernel-addon.js';

/** A netfilter socket of the network namespace that was current when it was opened. */
export class Netfilter {
  readonly #fd: number;
  #sequence = 1;
  #closed = false;

  constructor() {
    this.#fd = addon.openNetfilter();
  }

  /** Grows by one with every change of the nftables ruleset, whoever makes it. */
  generation(): number {
    return addon.nftGeneration(this.#fd, this.#next(1));
  }

  /**
   * Puts elements into a set of an `inet` table and takes others out, in one transaction. One to add may be there
   * already; one to remove that is not there is KernelError ENOENT, and nothing is changed then.
   */
  changeElements(change: {
    readonly table: string;
    readonly set: string;
    /** Of each element, bytes. */
    readonly keySize: number;
    readonly add: readonly Uint8Array[];
    readonly remove: readonly Uint8Array[];
  }): void {
    const { table, set, keySize, add, remove } = change;
    checkText(table, 'table');
    checkText(set, 'set');
    checkPositive(keySize, 'keySize', 64);
    for (const [name, keys] of Object.entries({ add, remove })) {
      keys.forEach((key, index) => {
        checkBytes(key, `${name}[${index}]`, keySize);
      });
    }
    const sequence = this.#next(add.length + remove.length + 2); // a number for each message, of which there are fewer
    addon.nftChangeElements(
      this.#fd,
      sequence,
      table,
      set,
      keySize,
      Buffer.concat(add),
      Buffer.concat(remove),
    );
  }

  close(): void {
    if (!this.#closed) {
      this.#closed = true;
      addon.closeFd(this.#fd);
    }
  }

  #next(count: number): number {
    if (this.#closed) {
      throw new TypeError('the netfilter socket is closed');
    }
    const first = this.#sequence;
    this.#sequence = (first + count) % 0x7fff_ffff;
    return first;
  }
}
