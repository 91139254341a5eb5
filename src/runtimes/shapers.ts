/**
 * Pods whose rate a queue limits: the CNI bandwidth plugin (`kubernetes.io/egress-bandwidth`) sends all that comes from the
 * pod through an IFB device, by a filter at the pod's host-side interface.
 */

import type { Redirect } from '../native/redirects.js';
import type { LinkReader } from './location.js';

export class Shapers {
  readonly #redirects: () => readonly Redirect[];
  readonly #links: Pick<LinkReader, 'hostLink'>;
  #names: ReadonlyMap<number, string> = new Map();

  constructor(redirects: () => readonly Redirect[], links: Pick<LinkReader, 'hostLink'>) {
    this.#redirects = redirects;
    this.#links = links;
  }

  /** Asks the kernel anew. */
  async look(): Promise<void> {
    const names = new Map<number, string>();
    for (const { ifindex, target } of this.#redirects()) {
      const link = await this.#links.hostLink(target);
      if (link?.kind === 'ifb') {
        names.set(ifindex, link.name);
      }
    }
    this.#names = names;
  }

  /** Name of the device that limits what comes from this interface, as of the last look. */
  of(ifindex: number): string | undefined {
    return this.#names.get(ifindex);
  }
}
