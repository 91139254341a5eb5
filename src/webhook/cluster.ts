/** What the webhook reads and writes at the API server: its Secret and its two configurations. */

import { z } from 'zod';
import { type KubernetesClient, KubernetesError } from '../pods/sources/kubernetes-client.js';
import { firstProblem } from '../pods/sources/kubernetes-objects.js';
import type { Generation } from './certificates.js';

export interface ClusterNames {
  readonly namespace: string;
  readonly secret: string;
  /** Of both configurations. */
  readonly configuration: string;
}

/** `version` is what a change must be based on. */
export interface Stored {
  readonly version: string;
  readonly generations: readonly Generation[];
}

const KEY = 'generations.json';

const generationsSchema = z.array(
  z.strictObject({
    madeMs: z.number(),
    endsMs: z.number(),
    authority: z.string(),
    certificate: z.string(),
    key: z.string(),
  }),
);
const secretSchema = z.looseObject({
  metadata: z.looseObject({ resourceVersion: z.string() }),
  data: z.record(z.string(), z.string()).nullish(),
});
const configurationSchema = z.looseObject({
  metadata: z.looseObject({ resourceVersion: z.string() }),
  webhooks: z.array(z.looseObject({ clientConfig: z.looseObject({ caBundle: z.string().optional() }) })),
});

const CONFIGURATIONS = ['mutatingwebhookconfigurations', 'validatingwebhookconfigurations'] as const;

export class WebhookCluster {
  readonly #client: Pick<KubernetesClient, 'get' | 'write'>;
  readonly #names: ClusterNames;

  constructor(client: Pick<KubernetesClient, 'get' | 'write'>, names: ClusterNames) {
    this.#client = client;
    this.#names = names;
  }

  /** Throws KubernetesError. What cannot be read counts as nothing: new ones are made then. */
  async read(signal: AbortSignal): Promise<Stored> {
    const secret = await this.#client.get(
      { what: `get secret ${this.#names.secret}`, path: this.#secretPath() },
      signal,
    );
    return stored(parsed(secretSchema, secret, 'the secret'));
  }

  /** Throws KubernetesError: CONFLICT where another replica was faster. */
  async write(generations: readonly Generation[], version: string, signal: AbortSignal): Promise<Stored> {
    const data = { [KEY]: Buffer.from(JSON.stringify(generations)).toString('base64') };
    const secret = await this.#client.write(
      { what: `patch secret ${this.#names.secret}`, path: this.#secretPath() },
      { kind: 'merge', patch: { metadata: { resourceVersion: version }, data } },
      signal,
    );
    return stored(parsed(secretSchema, secret, 'the secret'));
  }

  /** These authorities, and no others, are trusted in both configurations afterwards. Throws KubernetesError. */
  async publish(authorities: readonly string[], signal: AbortSignal): Promise<void> {
    const caBundle = Buffer.from(authorities.map((pem) => `${pem.trim()}\n`).join('')).toString('base64');
    for (const resource of CONFIGURATIONS) {
      await this.#publishIn(resource, caBundle, signal);
    }
  }

  async #publishIn(resource: string, caBundle: string, signal: AbortSignal): Promise<void> {
    const { configuration } = this.#names;
    const path = `/apis/admissionregistration.k8s.io/v1/${resource}/${configuration}`;
    const object = await this.#client.get({ what: `get ${resource} ${configuration}`, path }, signal);
    const { metadata, webhooks } = parsed(configurationSchema, object, resource);
    if (webhooks.every(({ clientConfig }) => clientConfig.caBundle === caBundle)) {
      return;
    }
    // A list is replaced as a whole, which resourceVersion makes safe.
    const changed = webhooks.map((hook) => ({ ...hook, clientConfig: { ...hook.clientConfig, caBundle } }));
    await this.#client.write(
      { what: `patch ${resource} ${configuration}`, path },
      {
        kind: 'merge',
        patch: { metadata: { resourceVersion: metadata.resourceVersion }, webhooks: changed },
      },
      signal,
    );
  }

  #secretPath(): string {
    const { namespace, secret } = this.#names;
    return `/api/v1/namespaces/${namespace}/secrets/${secret}`;
  }
}

function parsed<T>(schema: z.ZodType<T>, object: unknown, what: string): T {
  const result = schema.safeParse(object);
  if (!result.success) {
    throw new KubernetesError('INVALID', `${what}: ${firstProblem(result.error)}`, { cause: result.error });
  }
  return result.data;
}

function stored({ metadata, data }: z.infer<typeof secretSchema>): Stored {
  const text = Buffer.from(data?.[KEY] ?? '', 'base64').toString('utf8');
  return { version: metadata.resourceVersion, generations: generationsIn(text) };
}

function generationsIn(text: string): Generation[] {
  try {
    return generationsSchema.parse(JSON.parse(text));
  } catch {
    return [];
  }
}
