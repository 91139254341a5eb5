/** All objects of one resource, from as many pages as the API server makes of them. */

import { type KubernetesClient, KubernetesError } from './kubernetes-client.js';
import { firstProblem, listSchema } from './kubernetes-objects.js';

const PAGE_SIZE = '500';

export interface ListOfAll {
  /** As JSON gave them. */
  readonly objects: readonly unknown[];
  /** As of when, and where a watch goes on. */
  readonly resourceVersion: string;
}

/** Every page, or nothing: what is in force stays until the last page is here. Throws KubernetesError. */
export async function listAll(
  client: KubernetesClient,
  resource: string,
  query: Readonly<Record<string, string>>,
  signal: AbortSignal,
): Promise<ListOfAll> {
  const [what, path] = [`list ${resource}`, `/api/v1/${resource}`];
  const objects: unknown[] = [];
  let page: { resourceVersion: string; continue?: string | undefined };
  let token = '';
  do {
    const more = token === '' ? {} : { continue: token };
    const answer = await client.get({ what, path, query: { ...query, limit: PAGE_SIZE, ...more } }, signal);
    const parsed = listSchema.safeParse(answer);
    if (!parsed.success) {
      throw new KubernetesError('INVALID', `${what}: ${firstProblem(parsed.error)}`);
    }
    objects.push(...(parsed.data.items ?? []));
    page = parsed.data.metadata;
    token = page.continue ?? '';
  } while (token !== '');
  return { objects, resourceVersion: page.resourceVersion };
}
