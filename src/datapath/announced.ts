/**
 * Listeners that proxies have announced, which no configuration knows. The agent keeps no copy of them, which would hold
 * them open after their owner has died: they are known by their cookies, and are gone when none of these listens any more.
 */

import { readFileSync } from 'node:fs';
import { z } from 'zod';
import { KeptText } from '../base/kept-text.js';
import type { Log } from '../base/log.js';
import type { ListeningSocket } from '../native/sockets.js';
import { opensAs } from './listener-owner.js';
import { type Slot, serves, type WantedListener } from './listener-slots.js';

export interface AnnouncedListener extends WantedListener {
  readonly instance: string;
  /** Of its two sets of listeners: the one that served when it was announced. */
  readonly generation: 1 | 2;
  readonly direction: 'outbound' | 'inbound';
  /** Of the sockets at this address, one per worker of a proxy with SO_REUSEPORT, as they were last seen. */
  readonly cookies: readonly bigint[];
}

const VERSION = 1;

const fileSchema = z.strictObject({
  version: z.literal(VERSION),
  listeners: z.array(
    z.strictObject({
      instance: z.string(),
      generation: z.union([z.literal(1), z.literal(2)]),
      direction: z.enum(['outbound', 'inbound']),
      host: z.string(),
      port: z.int(),
      family: z.union([z.literal(4), z.literal(6)]),
      cookies: z.array(
        z
          .string()
          .regex(/^\d{1,20}$/)
          .transform(BigInt),
      ),
    }),
  ),
});

export class Announced {
  readonly #path: string;
  readonly #log: Pick<Log, 'warn'>;
  readonly #text: KeptText;
  #listeners: readonly AnnouncedListener[];

  /** `path` such as /run/nodesentry/announced.json. */
  constructor(path: string, log: Pick<Log, 'warn'>) {
    this.#path = path;
    this.#log = log;
    const failure = 'which listeners were announced cannot be noted: the next agent will not know';
    this.#text = new KeptText(path, failure, log);
    this.#listeners = this.#recall();
  }

  list(): readonly AnnouncedListener[] {
    return this.#listeners;
  }

  /** Exactly these from now on. */
  set(listeners: readonly AnnouncedListener[]): void {
    this.#listeners = listeners;
    const plain = listeners.map((listener) => ({ ...listener, cookies: listener.cookies.map(String) }));
    this.#text.write(JSON.stringify({ version: VERSION, listeners: plain }));
  }

  /** Where the one that takes a slot's place listens; undefined where none is there, or it is not its owner's any more. */
  of(
    slot: Pick<Slot, 'instance' | 'generation' | 'direction' | 'family' | 'owner'>,
    sockets: readonly ListeningSocket[],
  ): WantedListener | undefined {
    const found = this.#listeners.filter(
      (listener) =>
        isOf(listener, slot) &&
        sockets.some(
          (socket) =>
            listener.cookies.includes(socket.cookie) &&
            serves(socket, listener, slot.family) &&
            opensAs(slot.owner, socket),
        ),
    );
    // What serves both families comes after what was announced for this one alone.
    return found.find(({ family }) => family === slot.family) ?? found[0];
  }

  /** A proxy's workers come and go: who listens beside one that was announced, and was found to be its owner's, goes on for it. */
  follow(slot: Pick<Slot, 'instance' | 'generation' | 'direction'>, group: readonly ListeningSocket[]): void {
    const cookies = group.map(({ cookie }) => cookie);
    const isFollowed = (listener: AnnouncedListener) =>
      isOf(listener, slot) && group.some(({ address, port }) => isAt(listener, address, port));
    if (this.#listeners.some(isFollowed)) {
      this.set(
        this.#listeners.map((listener) => (isFollowed(listener) ? { ...listener, cookies } : listener)),
      );
    }
  }

  /** Forgets what has gone, and what is of another instance than these. */
  keep(sockets: readonly ListeningSocket[], instances: ReadonlySet<string>): void {
    const present = new Set(sockets.map(({ cookie }) => cookie));
    const kept = this.#listeners.filter(
      ({ instance, cookies }) => instances.has(instance) && cookies.some((cookie) => present.has(cookie)),
    );
    if (kept.length < this.#listeners.length) {
      this.set(kept);
    }
  }

  /** Nothing, and one warning, where the file cannot be used. */
  #recall(): readonly AnnouncedListener[] {
    try {
      return fileSchema.parse(JSON.parse(readFileSync(this.#path, 'utf8'))).listeners;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
        const fields = { err: error, path: this.#path };
        this.#log.warn(fields, 'which listeners were announced cannot be read: none was');
      }
      return [];
    }
  }
}

export function isOf(
  listener: AnnouncedListener,
  { instance, generation, direction }: Pick<Slot, 'instance' | 'generation' | 'direction'>,
): boolean {
  return (
    listener.instance === instance && listener.generation === generation && listener.direction === direction
  );
}

export function isAt(listener: WantedListener, address: string, port: number): boolean {
  return listener.host === address && listener.port === port;
}
