/** Links of the agent's own namespace and of pods' namespaces, over netlink. */

import type { Clock } from '../base/clock.js';
import { RouteSocket } from '../kernel/netlink.js';
import { closeFd } from '../native/descriptors.js';
import { interfacesText, netnsIdentity, openNamespace, withNetns } from '../native/namespaces.js';
import type { Link } from '../net/link.js';
import type { LinkReader } from './location.js';

/** Events tell which links have changed; what no event told is found at the latest after this time. */
const WHOLE_LIST_MS = 30_000;

export class PodLinks implements LinkReader {
  readonly #host: RouteSocket;
  readonly #nowMs: Clock;
  #links: Promise<Map<number, Link>> | undefined;
  #listedMs = 0;
  #version = 0;

  constructor(host: RouteSocket, nowMs: Clock = () => performance.now()) {
    this.#host = host;
    this.#nowMs = nowMs;
  }

  /** Another number whenever a question may be answered otherwise than before. */
  get version(): number {
    if (this.#isOld()) {
      this.forget();
    }
    return this.#version;
  }

  /** Forgets one link, or all: the next question about it is answered by the kernel. */
  forget(ifindex?: number): void {
    this.#version += 1;
    if (ifindex === undefined) {
      this.#links = undefined;
      return;
    }
    void this.#links?.then((links) => links.delete(ifindex));
  }

  async hostLinks(): Promise<readonly Link[]> {
    return [...(await this.#all()).values()];
  }

  async hostLink(index: number): Promise<Link | undefined> {
    const links = await this.#all();
    const known = links.get(index);
    if (known !== undefined) {
      return known;
    }
    const link = await this.#host.link(index);
    if (link !== undefined) {
      links.set(index, link);
    }
    return link;
  }

  async hostLinkByName(name: string): Promise<Link | undefined> {
    const link = await this.#host.link(name);
    if (link !== undefined) {
      (await this.#all()).set(link.index, link);
    }
    return link;
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

  /**
   * Another text once the network namespace at `netns` is another, or an interface has come to it or gone from it. Much
   * cheaper than `podLinks`. Throws where it cannot be entered.
   */
  podLinksText(netns: string): string {
    const fd = openNamespace(netns);
    try {
      const { dev, inode } = netnsIdentity(fd);
      return `${dev} ${inode}\n${withNetns(fd, interfacesText)}`;
    } finally {
      closeFd(fd);
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

  #isOld(): boolean {
    return this.#links !== undefined && this.#nowMs() - this.#listedMs > WHOLE_LIST_MS;
  }

  #all(): Promise<Map<number, Link>> {
    if (this.#links === undefined || this.#isOld()) {
      this.#listedMs = this.#nowMs();
      this.#version += 1;
      const listed = this.#host.links().then((links) => new Map(links.map((link) => [link.index, link])));
      // A list that failed is asked for again by the next question.
      listed.catch(() => {
        this.#links = undefined;
      });
      this.#links = listed;
    }
    return this.#links;
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
