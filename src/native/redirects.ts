/** Interfaces whose ingress filters send packets out by another one: tc-mirred(8). */

import { addon, type Redirect } from './kernel-addon.js';
import { RouteHandle } from './route-handle.js';

export type { Redirect } from './kernel-addon.js';

export class Redirects extends RouteHandle {
  /** One question for all interfaces, and one more for each that has a queueing discipline at ingress. */
  list(): Redirect[] {
    return this.ask((fd, sequence) => addon.redirects(fd, sequence));
  }
}
