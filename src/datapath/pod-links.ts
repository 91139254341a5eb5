/** Links of the agent's own namespace and of pods' namespaces, over netlink. */

import { closeFd, netnsIdentity, openNamespace, withNetns } from '../native/kernel.js';
import type { Link, LinkReader } from '../runtimes/runtime.js';
import { RouteSocket } from './netlink.js';

export class PodLinks implements LinkReader {
  readonly #host: RouteSocket;
  #hostLinks: Promise<readonly Link[]> | undefined;

  constructor(host: RouteSocket) {
    this.#host = host;
  }

  /** Forgets the links of the last round. */
  refresh(): void {
    this.#hostLinks = undefined;
  }

  hostLinks(): Promise<readonly Link[]> {
    this.#hostLinks ??= this.#host.links();
    return this.#hostLinks;
  }

  /** The socket is made inside the pod's namespace and stays there; the thread comes straight back. */
  async podLinks(netns: string): Promise<readonly Link[]> {
    const fd = openNamespace(netns);
    let socket: RouteSocket;
    try {
      socket = withNetns(fd, () => new RouteSocket());
    } finally {
      closeFd(fd);
    }
    try {
      return await socket.links();
    } finally {
      socket.close();
    }
  }

  async namespaceId(netns: string): Promise<number | undefined> {
    const fd = openNamespace(netns);
    try {
      return await this.#host.namespaceId(fd);
    } finally {
      closeFd(fd);
    }
  }

  async isHost(netns: string): Promise<boolean> {
    const [own, other] = [identityOf('/proc/self/ns/net'), identityOf(netns)];
    return own.dev === other.dev && own.inode === other.inode;
  }
}

function identityOf(path: string): { dev: bigint; inode: bigint } {
  const fd = openNamespace(path);
  try {
    return netnsIdentity(fd);
  } finally {
    closeFd(fd);
  }
}
