/** Single routing tables, filtered by the kernel. */

import { checkPositive } from './addon.js';
import { addon, type TableRoute } from './kernel-addon.js';
import { RouteHandle } from './route-handle.js';

export type { TableRoute } from './kernel-addon.js';

export class RouteTables extends RouteHandle {
  routes(family: 4 | 6, table: number): TableRoute[] {
    checkPositive(table, 'table', 0xffff_ffff);
    return this.ask((fd, sequence) => addon.tableRoutes(fd, sequence, family, table));
  }
}
