/** A Unix socket at which other processes say one message each, with descriptors: unix(7), SCM_RIGHTS. */

import { checkFd, checkFunction, checkPositive, checkText, throwingOutside } from './addon.js';
import { type Announcement, addon } from './kernel-addon.js';

export type { Announcement } from './kernel-addon.js';

export interface AnnounceDoorOptions {
  /** Of a message; what is longer is cut off. */
  readonly longest?: number;
  readonly mostDescriptors?: number;
  /** So long who has connected may say nothing. */
  readonly patienceMs?: number;
  /** Of the file. */
  readonly mode?: number;
}

/**
 * Listens at `path`, where nothing may be yet: the file stays when it is closed. Every descriptor of an announcement is for the
 * callback to close, the connection too. Does not keep the process alive. KernelError, such as EADDRINUSE.
 */
export function openAnnounceDoor(
  path: string,
  onAnnouncements: (announcements: Announcement[]) => void,
  options: AnnounceDoorOptions = {},
): { close(): void } {
  checkText(path, 'path');
  checkFunction(onAnnouncements, 'onAnnouncements');
  const { longest = 4_096, mostDescriptors = 4, patienceMs = 1_000, mode = 0o600 } = options;
  checkPositive(longest, 'longest', 1 << 20);
  checkPositive(mostDescriptors, 'mostDescriptors', 253); // SCM_MAX_FD
  checkPositive(patienceMs, 'patienceMs');
  checkPositive(mode, 'mode', 0o777);
  const onBatch = throwingOutside(onAnnouncements);
  return new addon.AnnounceDoor(path, onBatch, patienceMs, longest, mostDescriptors, mode);
}

/** Says so to who has connected, if there is room at once; false where there is not, or the other end has gone. */
export function sendMessage(connection: number, text: string): boolean {
  checkFd(connection, 'connection');
  checkText(text, 'text');
  return addon.sendMessage(connection, text);
}
