/** What bridges have learnt of their ports. */

import { checkPositive } from './addon.js';
import { addon } from './kernel-addon.js';
import { RouteHandle } from './route-handle.js';

export class BridgeFdb extends RouteHandle {
  /**
   * Makes what the bridge has learnt at this port as young as if it were learnt now; adds nothing. At most so many
   * entries. Returns how many. KernelError ENODEV, EINVAL where the interface is gone or no port of a bridge.
   */
  renew(port: number, most: number): number {
    checkPositive(port, 'port');
    checkPositive(most, 'most');
    return this.ask((fd, sequence) => addon.renewStations(fd, sequence, port, most));
  }
}
