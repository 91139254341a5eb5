/** Listeners that a proxy announces, or somebody for it: checked, put in the place of configured ones, and taken back. */

import { type Announced, type AnnouncedListener, isAt, isOf } from '../datapath/announced.js';
import {
  announcedAs,
  type ListeningSocket,
  listenerBehind,
  listenersOf,
  type Unfit,
} from '../datapath/announced-sockets.js';
import {
  type OwnerRule,
  type ProcessCredentials,
  refusalOfGroup,
  refusalOfProcess,
} from '../datapath/listener-owner.js';
import { textOf } from '../datapath/listener-slots.js';
import { type ListenerStatus, type Listeners, ownersOf } from '../datapath/listeners.js';
import {
  DIRECTIONS,
  type Direction,
  type OfDirections,
  parseDescriptorAnnouncement,
  parseProcessAnnouncement,
} from './announcement-request.js';
import { InstanceError } from './errors.js';
import type { ConfiguredInstance, InstanceGenerations } from './generations.js';

/** Who connected, and whether that process is there still: what /proc said was of it only then. */
export interface Announcer extends ProcessCredentials {
  isThere(): boolean;
}

interface Checked extends OfDirections<ListeningSocket> {
  readonly name: string;
  readonly pid: number;
  readonly replace: boolean;
}

export interface AnnouncingOptions {
  readonly instances: () => readonly ConfiguredInstance[];
  readonly generations: Pick<InstanceGenerations, 'servingOf'>;
  readonly announced: Announced;
  readonly listeners: Pick<Listeners, 'status' | 'takersOf'>;
  /** Every listener of this network namespace. */
  readonly all: () => readonly ListeningSocket[];
  /** Looks for what is wanted by now. */
  readonly look: () => Promise<void>;
}

export class Announcing {
  readonly #options: AnnouncingOptions;
  /** One after the other: each sees what the one before it has changed. */
  #working: Promise<unknown> = Promise.resolve();

  constructor(options: AnnouncingOptions) {
    this.#options = options;
  }

  /**
   * Of a proxy itself, with copies of its descriptors, which are the receiver's to close as soon as this has returned. Rejects
   * with InstanceError.
   */
  byDescriptor(text: string, descriptors: readonly number[], caller: Announcer): Promise<ListenerStatus[]> {
    return this.#checked(() => {
      const { instance: name, replace, ...indexes } = parseDescriptorAnnouncement(text, descriptors.length);
      const { owner } = this.#instance(name);
      const refusal =
        caller.pid === 0 ? 'its process is in another pid namespace' : refusalOfProcess(owner, caller);
      if (refusal !== undefined) {
        throw new InstanceError('CALLER_NOT_ALLOWED', refusal);
      }
      if (!caller.isThere()) {
        throw new InstanceError('PROCESS_NOT_FOUND', `process ${caller.pid}, which announced, has ended`);
      }
      const found = (direction: Direction) =>
        indexes[direction].map((index, place) =>
          usable(listenerBehind(descriptors[index] ?? -1), `${direction}[${place}]: the descriptor `),
        );
      return { name, pid: caller.pid, replace, outbound: found('outbound'), inbound: found('inbound') };
    });
  }

  /** What another process has open, named by its addresses; `body`: as it was sent. Rejects with InstanceError. */
  byProcess(name: string, body: unknown): Promise<ListenerStatus[]> {
    return this.#checked(() => {
      this.#instance(name);
      const { pid, replace, ...addresses } = parseProcessAnnouncement(body);
      const found = (direction: Direction) =>
        addresses[direction].flatMap((at) => usable(listenersOf(pid, at), `${direction}: `));
      return { name, pid, replace, outbound: found('outbound'), inbound: found('inbound') };
    });
  }

  /** The configured addresses, if any, are what is adopted again. Rejects with InstanceError. */
  async withdraw(name: string): Promise<ListenerStatus[]> {
    this.#instance(name);
    return this.#inTurn(async () => {
      const { announced, look } = this.#options;
      announced.set(announced.list().filter(({ instance }) => instance !== name));
      await look();
      return this.#statusOf(name);
    });
  }

  async #checked(check: () => Checked): Promise<ListenerStatus[]> {
    const found = check(); // while the descriptors are open
    return this.#inTurn(() => this.#adopt(found));
  }

  async #adopt({ name, pid, replace, ...sockets }: Checked): Promise<ListenerStatus[]> {
    const instance = this.#instance(name);
    const { announced, generations, look } = this.#options;
    await look(); // what has just gone takes no place
    const generation = generations.servingOf(name);
    const places = DIRECTIONS.filter((direction) => sockets[direction].length > 0).map((direction) => ({
      instance: name,
      generation,
      direction,
    }));
    const added = places.flatMap((place) => announcedAs(place, sockets[place.direction]));
    checkEach(added);
    for (const place of places) {
      this.#checkPlace(instance, place, added, sockets[place.direction], replace ? undefined : pid);
    }
    await checkOwner(instance.owner, this.#groupOf(added));
    const isReplaced = (listener: AnnouncedListener) => places.some((place) => isOf(listener, place));
    const before = announced.list().filter(isReplaced);
    const change = async (list: readonly AnnouncedListener[]) => {
      announced.set([...announced.list().filter((listener) => !isReplaced(listener)), ...list]);
      await look();
    };
    await change(added);
    const lost = added.find((listener) => !this.#isAdopted(listener));
    if (lost !== undefined) {
      await change(before);
      throw new InstanceError(
        'NOT_ADOPTED',
        `${lost.direction}: the listener at ${textOf(lost)} could not be adopted, and nothing has changed: the agent’s log says why`,
      );
    }
    return this.#statusOf(name);
  }

  /** `pid`: whose announcement it is; undefined: whoever's was there before makes room. */
  #checkPlace(
    instance: ConfiguredInstance,
    place: Pick<AnnouncedListener, 'instance' | 'generation' | 'direction'>,
    added: readonly AnnouncedListener[],
    sockets: readonly ListeningSocket[],
    pid: number | undefined,
  ): void {
    const { direction } = place;
    if (instance[direction].length === 0 && instance.announced?.includes(direction) !== true) {
      throw new InstanceError(
        'KEY_INVALID',
        `${direction}: the instance ${instance.name} has none: "announced: [${direction}]" in the configuration would allow it`,
      );
    }
    for (const socket of sockets) {
      const taker = this.#options.listeners
        .takersOf(socket)
        .find((slot) => slot.instance !== instance.name || slot.direction !== direction);
      if (taker !== undefined) {
        throw new InstanceError(
          'LISTENER_TAKEN',
          `${direction}: ${textOf({ ...socket, host: socket.address })} is the ${taker.direction} listener of the instance ${taker.instance}`,
        );
      }
    }
    const others = this.#statusOf(instance.name).filter(
      (listener) =>
        listener.direction === direction &&
        listener.announced &&
        listener.pid !== pid &&
        !added.some((one) => textOf(one) === listener.address),
    );
    const [other] = others;
    if (pid !== undefined && other !== undefined) {
      throw new InstanceError(
        'LISTENER_TAKEN',
        `${direction}: ${other.process}, pid ${other.pid}, has announced ${other.address} and still listens: "replace": true would take its place`,
      );
    }
  }

  /** All sockets at these addresses: the kernel may hand a connection to any of them. */
  #groupOf(added: readonly AnnouncedListener[]): readonly ListeningSocket[] {
    return this.#options
      .all()
      .filter((socket) => added.some((listener) => isAt(listener, socket.address, socket.port)));
  }

  #isAdopted(listener: AnnouncedListener): boolean {
    return this.#statusOf(listener.instance).some(
      ({ direction, adopted, announced, address }) =>
        adopted && announced === true && direction === listener.direction && address === textOf(listener),
    );
  }

  #statusOf(name: string): ListenerStatus[] {
    return this.#options.listeners.status().filter(({ instance }) => instance === name);
  }

  #instance(name: string): ConfiguredInstance {
    const found = this.#options.instances().find((instance) => instance.name === name);
    if (found === undefined) {
      throw new InstanceError('INSTANCE_NOT_FOUND', `there is no instance ${name} in the configuration`);
    }
    return found;
  }

  #inTurn<T>(step: () => Promise<T>): Promise<T> {
    const done = this.#working.then(step);
    this.#working = done.catch(() => undefined); // who asked for it is told
    return done;
  }
}

/** One for each direction and family. */
function checkEach(added: readonly AnnouncedListener[]): void {
  for (const [index, listener] of added.entries()) {
    for (const other of added.slice(0, index)) {
      const isSame = textOf(other) === textOf(listener);
      if (isSame || (other.direction === listener.direction && other.family === listener.family)) {
        const why = isSame
          ? 'it is the outbound listener besides'
          : `it would be the second one of IPv${listener.family}`;
        throw new InstanceError(
          'KEY_INVALID',
          `${listener.direction}: ${textOf(listener)} cannot be announced: ${why}`,
        );
      }
    }
  }
}

async function checkOwner(owner: OwnerRule, group: readonly ListeningSocket[]): Promise<void> {
  const refusal = refusalOfGroup(owner, group, await ownersOf(group));
  if (refusal !== undefined) {
    throw new InstanceError('NOT_OWNER', refusal);
  }
}

function usable<T extends object>(found: T | Unfit, what: string): T {
  if ('reason' in found) {
    throw new InstanceError(found.reason, `${what}${found.detail}`);
  }
  return found;
}
