/** Which pods were told of, in a file that outlives the agent: the next one neither says it again nor forgets the end. */

import { readFileSync, statSync } from 'node:fs';
import { z } from 'zod';
import { KeptText } from '../base/kept-text.js';
import type { Log } from '../base/log.js';
import type { PodUid } from '../pods/pod.js';
import { firstProblem } from '../pods/sources/kubernetes-objects.js';
import { parsePodUid } from '../pods/uid.js';

/** Of one pod. */
export interface Told {
  /** Names of the warnings since it was last intercepted. */
  readonly warned: readonly string[];
  /** How often each event was told, by its name. */
  readonly counts: Readonly<Record<string, number>>;
}

const VERSION = 1;
const MAX_BYTES = 8 << 20;

const fileSchema = z.strictObject({
  version: z.literal(VERSION),
  pods: z.record(
    z.string(),
    z.strictObject({ warned: z.array(z.string()), counts: z.record(z.string(), z.int().min(1)) }),
  ),
});

export class EventMemory {
  readonly #path: string;
  readonly #log: Log;
  readonly #text: KeptText;

  /** `path` such as /run/nodesentry/events.json. */
  constructor(path: string, log: Log) {
    this.#path = path;
    this.#log = log;
    this.#text = new KeptText(path, 'kubernetes: what was told of pods cannot be noted', log);
  }

  /** What was noted last; nothing, and one warning, where the file cannot be used. Never throws. */
  recall(): Map<PodUid, Told> {
    try {
      if (statSync(this.#path).size > MAX_BYTES) {
        throw new Error(`more than ${MAX_BYTES} bytes`);
      }
      const checked = fileSchema.safeParse(JSON.parse(readFileSync(this.#path, 'utf8')));
      if (!checked.success) {
        throw new Error(firstProblem(checked.error));
      }
      return new Map(
        Object.entries(checked.data.pods).flatMap(([given, told]): [PodUid, Told][] => {
          const uid = parsePodUid(given);
          return uid === undefined ? [] : [[uid, told]];
        }),
      );
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
        const fields = { err: error, path: this.#path };
        this.#log.warn(fields, 'kubernetes: what was told of pods before cannot be read and is not used');
      }
      return new Map();
    }
  }

  note(told: ReadonlyMap<PodUid, Told>): void {
    this.#text.write(JSON.stringify({ version: VERSION, pods: Object.fromEntries(told) }));
  }
}
