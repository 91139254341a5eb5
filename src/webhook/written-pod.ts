/** What admission needs of a `v1` Pod: one that has no UID, perhaps no name, and no address yet. */

import { z } from 'zod';
import { ownerOf } from '../pods/sources/kubernetes-objects.js';
import type { WrittenPod } from '../reconcile/foretold.js';

const texts = z
  .record(z.string(), z.string())
  .nullish()
  .transform((given) => given ?? {});
const variable = z.looseObject({ name: z.string() });
/** A quantity may be written as a number. */
const quantities = z.record(z.string(), z.union([z.string(), z.number().transform(String)])).nullish();
const containers = z
  .array(
    z.looseObject({
      name: z.string(),
      env: z.array(variable).nullish(),
      resources: z.looseObject({ requests: quantities, limits: quantities }).nullish(),
    }),
  )
  .nullish()
  .transform((given) => given ?? []);

export const podSchema = z.looseObject({
  metadata: z.looseObject({
    labels: texts,
    annotations: texts,
    deletionTimestamp: z.string().nullish(),
    ownerReferences: z
      .array(z.looseObject({ kind: z.string(), name: z.string(), controller: z.boolean().optional() }))
      .nullish(),
  }),
  spec: z.looseObject({ hostNetwork: z.boolean().nullish(), containers, initContainers: containers }),
});
export type AdmittedPod = z.infer<typeof podSchema>;
export type Variable = z.infer<typeof variable>;

export function writtenPod({ metadata, spec }: AdmittedPod): WrittenPod {
  const { labels, annotations } = metadata;
  const owner = ownerOf(metadata);
  return {
    labels,
    annotations,
    hostNetwork: spec.hostNetwork ?? false,
    ...(owner === undefined ? {} : { owner }),
  };
}
