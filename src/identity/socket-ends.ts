/** Both ends of a connection, by the cookie of its socket on this node. */

import type { SocketAddress } from '../net/socket-address.js';

export interface SocketEnds {
  readonly local: SocketAddress;
  readonly peer: SocketAddress;
}

/** Those that are found; each look is at every socket of the node. */
export type FindEnds = (
  cookies: readonly bigint[],
) => Promise<readonly (SocketEnds & { readonly cookie: bigint })[]>;

/** One look at a time: who asks during one is answered by the next, with all others who did. */
export class SocketLookups {
  readonly #find: FindEnds;
  #looking: Promise<unknown> = Promise.resolve();
  #next:
    | { readonly cookies: Set<bigint>; readonly found: Promise<ReadonlyMap<bigint, SocketEnds>> }
    | undefined;

  constructor(find: FindEnds) {
    this.#find = find;
  }

  /** Undefined where no connection has it. Rejects with KernelError. */
  async byCookie(cookie: bigint): Promise<SocketEnds | undefined> {
    this.#next ??= this.#afterThisOne();
    this.#next.cookies.add(cookie);
    return (await this.#next.found).get(cookie);
  }

  #afterThisOne() {
    const cookies = new Set<bigint>();
    const found = this.#looking.then(async () => {
      this.#next = undefined;
      const ends = await this.#find([...cookies]);
      return new Map(ends.map((one) => [one.cookie, one]));
    });
    this.#looking = found.catch(() => undefined);
    return { cookies, found };
  }
}
