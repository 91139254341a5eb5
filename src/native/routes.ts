/** Single routing tables, filtered by the kernel. */

import { checkPositive } from './addon.js';
import { addon, type TableRoute } from './kernel-addon.js';

export type { TableRoute } from './kernel-addon.js';

/** Reads single routing tables of the network namespace that was current when it was opened. */
export class RouteTables {
  readonly #fd: number;
  #sequence = 0;
  #closed = false;

  constructor() {
    this.#fd = addon.openRoutes();
  }

  routes(family: 4 | 6, table: number): TableRoute[] {
    checkPositive(table, 'table', 0xffff_ffff);
    if (this.#closed) {
      throw new TypeError('the route socket is closed');
    }
    this.#sequence = (this.#sequence % 0x7fff_ffff) + 1;
    return addon.tableRoutes(this.#fd, this.#sequence, family, table);
  }

  close(): void {
    if (!this.#closed) {
      this.#closed = true;
      addon.closeFd(this.#fd);
    }
  }
}
