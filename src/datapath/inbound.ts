/** What interception of inbound connections needs once on the node: the agent's own interface, and the program at it. */

import type { Attachments } from '../kernel/attachment.js';
import { u32 } from '../kernel/struct.js';
import type { BpfMap, BpfProgram } from '../native/bpf.js';
import type { CanaryEntrance } from './canary.js';
import type { Layouts } from './layouts.js';
import type { Role } from './manifest.js';

const ROW = 0;

export interface InboundSteeringOptions {
  readonly link: {
    ensure(): Promise<{ readonly ifindex: number; readonly repaired: readonly string[] }>;
    remove(): Promise<readonly string[]>;
    /** The end that is not used. */
    readonly outside: CanaryEntrance['outside'];
  };
  readonly attachments: Pick<Attachments<Role>, 'attachAsync' | 'release'>;
  readonly program: BpfProgram;
  /** The map `steering`. */
  readonly map: BpfMap;
  readonly layouts: Pick<Layouts, 'steering'>;
  /** Settings of the interfaces by which connections to pods come in. Returns what was changed, in words. */
  readonly entrances: () => Promise<readonly string[]>;
  /** Some instance has an inbound listener, or an endpoint is still intercepted inbound. */
  readonly wanted: () => boolean;
}

export class InboundSteering {
  readonly #options: InboundSteeringOptions;
  #ifindex: number | undefined;

  constructor(options: InboundSteeringOptions) {
    this.#options = options;
  }

  /** Where canaries come in; undefined while nothing inbound is intercepted. */
  entrance(): CanaryEntrance | undefined {
    const { name, netns } = this.#options.link.outside;
    return this.#ifindex === undefined ? undefined : { ifindex: this.#ifindex, outside: { netns, name } };
  }

  /** Puts right what is not as it should be; nothing of it is there where nobody wants it. Returns what, in words. */
  async ensure(): Promise<string[]> {
    const { link, attachments, program, map, layouts, wanted } = this.#options;
    const held = layouts.steering.number(map.get(u32(ROW)) ?? Buffer.alloc(layouts.steering.size), 'ifindex');
    if (!wanted()) {
      this.#ifindex = undefined;
      if (held === 0) {
        return [];
      }
      this.#point(0);
      attachments.release({ role: 'inbound-steer', ifindex: held });
      await link.remove();
      return [];
    }
    const { ifindex, repaired } = await link.ensure();
    const changes = [...repaired, ...(await this.#options.entrances())];
    const done = await attachments.attachAsync({ role: 'inbound-steer', ifindex }, program);
    if (done !== 'kept') {
      changes.push(`inbound steering ${done}`);
    }
    if (held !== ifindex) {
      if (held !== 0) {
        attachments.release({ role: 'inbound-steer', ifindex: held });
      }
      this.#point(ifindex);
      changes.push('where inbound connections are steered to');
    }
    this.#ifindex = ifindex;
    return changes;
  }

  #point(ifindex: number): void {
    this.#options.map.set(u32(ROW), this.#options.layouts.steering.encode({ ifindex }));
  }
}
