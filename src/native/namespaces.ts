/** Network namespaces: what Node has no call for. */

import { checkFd, checkFunction, checkText } from './addon.js';
import { addon } from './kernel-addon.js';

/**
 * A descriptor for the network namespace at `path`, such as /run/netns/x or /proc/1/ns/net; for the caller to close.
 */
export function openNamespace(path: string): number {
  checkText(path, 'path');
  return addon.openNamespace(path);
}

/**
 * Runs `body` with this thread in the network namespace behind `fd`, and comes back however it ends (setns(2)).
 * Synchronous only: a promise would go on after the return. The process aborts if there is no way back. Throws what
 * `body` throws; TypeError where it returns a promise.
 */
export function withNetns<T>(fd: number, body: () => T): T {
  checkFd(fd);
  checkFunction(body, 'body');
  const result = addon.withNetns(fd, body);
  if (result instanceof Promise) {
    throw new TypeError('body must be synchronous: it returned a Promise, which runs outside the namespace');
  }
  return result;
}

/** What a namespace is, whatever path or process it was reached by. */
export function netnsIdentity(fd: number): { dev: bigint; inode: bigint } {
  checkFd(fd);
  return addon.netnsIdentity(fd);
}

/** ifindex in the current network namespace. */
export function interfaceIndex(name: string): number | undefined {
  checkText(name, 'name');
  return addon.interfaceIndex(name);
}

/** Index and name of each interface of the current network namespace, a line each: another text once one comes or goes. */
export function interfacesText(): string {
  return addon.interfaces();
}
