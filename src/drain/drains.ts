/** Which pods are drained: their new flows go past the proxy. Kept in a file, for the next agent is to know it too. */

import { readFileSync, statSync } from 'node:fs';
import { z } from 'zod';
import { KeptText } from '../base/kept-text.js';
import type { Log } from '../base/log.js';
import type { PodUid } from '../pods/pod.js';
import { parsePodUid } from '../pods/uid.js';

export type DrainScope =
  | { readonly pod: PodUid }
  | { readonly app: string }
  /** Every pod of the node. */
  | { readonly all: true };

export interface Drain {
  readonly scope: DrainScope;
  /** The instance that new flows go to; undefined: past every proxy. */
  readonly to?: string | undefined;
  /** Unix time, milliseconds. */
  readonly sinceMs: number;
  /** After which what is open still is ended; undefined: it may take as long as it wants. */
  readonly deadlineMs?: number | undefined;
}

const VERSION = 1;
const MAX_BYTES = 8 << 20;

const podUid = z.custom<PodUid>((given) => typeof given === 'string' && parsePodUid(given) !== undefined);

const fileSchema = z.strictObject({
  version: z.literal(VERSION),
  drains: z.array(
    z.strictObject({
      scope: z.union([
        z.strictObject({ pod: podUid }),
        z.strictObject({ app: z.string().min(1) }),
        z.strictObject({ all: z.literal(true) }),
      ]),
      to: z.string().optional(),
      sinceMs: z.number(),
      deadlineMs: z.number().optional(),
    }),
  ),
});

export class Drains {
  readonly #path: string;
  readonly #log: Pick<Log, 'warn'>;
  readonly #text: KeptText;
  readonly #entries: Map<string, Drain>;

  /** `path` such as /run/nodesentry/drains.json. */
  constructor(path: string, log: Pick<Log, 'warn'>) {
    this.#path = path;
    this.#log = log;
    this.#text = new KeptText(
      path,
      'which pods are drained cannot be noted: the next agent will not know',
      log,
    );
    this.#entries = new Map(this.#recall().map((drain) => [keyOf(drain.scope), drain]));
  }

  list(): readonly Drain[] {
    return [...this.#entries.values()];
  }

  /** A pod's own comes before its app's, and that before the node's. */
  of(uid: PodUid, app: string | undefined): Drain | undefined {
    return (
      this.#entries.get(keyOf({ pod: uid })) ??
      (app === undefined ? undefined : this.#entries.get(keyOf({ app }))) ??
      this.#entries.get(keyOf({ all: true }))
    );
  }

  /** In the place of one of the same scope. */
  add(drain: Drain): void {
    this.#entries.set(keyOf(drain.scope), drain);
    this.#note();
  }

  /** Exactly that scope's; of the whole node, every one. Returns how many there were. */
  remove(scope: DrainScope): number {
    const keys = 'all' in scope ? [...this.#entries.keys()] : [keyOf(scope)];
    const removed = keys.filter((key) => this.#entries.delete(key)).length;
    this.#note();
    return removed;
  }

  /** Forgets those of pods that are no more. */
  forgetPods(isGone: (uid: PodUid) => boolean): void {
    for (const [key, { scope }] of this.#entries) {
      if ('pod' in scope && isGone(scope.pod)) {
        this.#entries.delete(key);
      }
    }
    this.#note();
  }

  #note(): void {
    this.#text.write(JSON.stringify({ version: VERSION, drains: this.list() }));
  }

  /** Nothing, and one warning, where the file cannot be used. */
  #recall(): readonly Drain[] {
    try {
      if (statSync(this.#path).size > MAX_BYTES) {
        throw new Error(`more than ${MAX_BYTES} bytes`);
      }
      return fileSchema.parse(JSON.parse(readFileSync(this.#path, 'utf8'))).drains;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
        const fields = { err: error, path: this.#path };
        this.#log.warn(fields, 'which pods were drained cannot be read: none is');
      }
      return [];
    }
  }
}

function keyOf(scope: DrainScope): string {
  return JSON.stringify(scope);
}
