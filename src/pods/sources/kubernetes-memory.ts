/**
 * The pods that the API server told of, in a file that outlives the agent: an agent that starts while the API server
 * is away knows from it what the runtime does not, above all what a pod has from its namespace.
 */

import { readFileSync, statSync } from 'node:fs';
import { z } from 'zod';
import { KeptText } from '../../base/kept-text.js';
import type { Log } from '../../base/log.js';
import { parseIp } from '../../net/ip.js';
import { type Pod, RUNTIME_KINDS } from '../pod.js';
import { POD_UID_EXPECTED, parsePodUid } from '../uid.js';
import { firstProblem } from './kubernetes-objects.js';

export interface KubernetesMemoryOptions {
  /** Such as /run/nodesentry/kubernetes.json: gone with the next boot, as the sandboxes are. */
  readonly path: string;
  readonly log: Log;
  /** The file is written at most this often, in milliseconds. Default 1000. */
  readonly everyMs?: number;
}

const VERSION = 1;
/** 500 pods of 100 kB each are a bad day. */
const MAX_BYTES = 64 << 20;

const texts = z.record(z.string(), z.string());
const addresses = z.array(
  z.string().refine((text) => parseIp(text) === text, { error: 'expected an IP address' }),
);
const podSchema = z.strictObject({
  uid: z.string().transform((given, context) => {
    const uid = parsePodUid(given);
    if (uid === undefined) {
      context.addIssue({ code: 'custom', message: `expected ${POD_UID_EXPECTED}` });
      return z.NEVER;
    }
    return uid;
  }),
  namespace: z.string().min(1),
  name: z.string().min(1),
  serviceAccount: z.string(),
  labels: texts,
  annotations: texts,
  ips: addresses,
  interfaceIps: z.record(z.string(), addresses).exactOptional(),
  runtime: z.enum(RUNTIME_KINDS),
  runtimeHandler: z.string(),
  sandboxId: z.literal(''),
  hostNetwork: z.boolean(),
  owner: z.strictObject({ kind: z.string(), name: z.string() }).exactOptional(),
  sources: z.tuple([z.literal('kubernetes')]),
});
const fileSchema = z.strictObject({
  version: z.literal(VERSION),
  pods: z
    .array(podSchema)
    .refine((pods) => new Set(pods.map(({ uid }) => uid)).size === pods.length, { error: 'one UID twice' }),
});

export class KubernetesMemory {
  readonly #options: KubernetesMemoryOptions;
  #pods: readonly Pod[] | undefined;
  readonly #text: KeptText;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: KubernetesMemoryOptions) {
    this.#options = options;
    const failure = 'kubernetes: the pods cannot be noted for the next start';
    this.#text = new KeptText(options.path, failure, options.log);
  }

  /** What was noted last; nothing, and one warning, where the file cannot be used. Never throws. */
  recall(): readonly Pod[] {
    const { path, log } = this.#options;
    try {
      const { size } = statSync(path);
      if (size > MAX_BYTES) {
        throw new Error(`${size} bytes, which is more than ${MAX_BYTES}`);
      }
      const checked = fileSchema.safeParse(JSON.parse(readFileSync(path, 'utf8')));
      if (!checked.success) {
        throw new Error(firstProblem(checked.error));
      }
      return checked.data.pods;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
        log.warn(
          { err: error, path },
          'kubernetes: the pods of the last run cannot be read and are not used',
        );
      }
      return [];
    }
  }

  /** Written at once where nothing was within `everyMs`, else when that is over. */
  note(pods: readonly Pod[]): void {
    this.#pods = pods;
    if (this.#timer !== undefined) {
      return;
    }
    this.#write();
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      if (this.#pods !== undefined) {
        this.note(this.#pods);
      }
    }, this.#options.everyMs ?? 1_000).unref();
  }

  /** Writes what is still due. */
  close(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#write();
  }

  #write(): void {
    const pods = this.#pods;
    this.#pods = undefined;
    if (pods !== undefined) {
      this.#text.write(JSON.stringify({ version: VERSION, pods }));
    }
  }
}
