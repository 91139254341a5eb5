/** Links as they come, change and go. */

import { checkFunction, checkPositive, throwingOutside } from './addon.js';
import { addon, type LinkEvent } from './kernel-addon.js';

export type { LinkEvent } from './kernel-addon.js';

export interface LinkEventOptions {
  /** Of the socket's buffer. */
  readonly receiveBytes?: number;
  /** How many events wait while JavaScript is busy, before a resync takes their place. */
  readonly queueLimit?: number;
}

/**
 * Links of the current network namespace as they come, change and go. `onResync` says that events were lost and
 * everything has to be read anew; events that come after it are newer. Does not keep the process alive.
 */
export function openLinkEvents(
  onEvents: (events: LinkEvent[]) => void,
  onResync: () => void,
  options: LinkEventOptions = {},
): { close(): void } {
  checkFunction(onEvents, 'onEvents');
  checkFunction(onResync, 'onResync');
  const { receiveBytes = 4 << 20, queueLimit = 65_536 } = options;
  checkPositive(receiveBytes, 'receiveBytes');
  checkPositive(queueLimit, 'queueLimit');
  return new addon.LinkEvents(
    throwingOutside((batch) => {
      // Null is a resync: always the first of its batch, for it takes the place of what was waiting.
      const events = batch.filter((event) => event !== null);
      if (events.length < batch.length) {
        onResync();
      }
      if (events.length > 0) {
        onEvents(events);
      }
    }),
    receiveBytes,
    queueLimit,
  );
}
