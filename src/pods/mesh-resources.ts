/** What a pod says its node's proxy needs for it: for its app once, and for the pod itself. */

import { z } from 'zod';
import { NOTHING, parseCpu, parseMemory, type Resources } from './quantity.js';

export const MESH_RESOURCES = 'nodesentry.io/mesh-resources';

/** Written by the webhook: what it has added. */
export const MESH_REQUESTS_ADDED = 'nodesentry.io/mesh-requests-added';

export const MESH_RESOURCES_EXPECTED =
  'JSON of quantities such as {"shared": {"cpu": "100m", "memory": "64Mi"}, "pod": {"cpu": "10m", "memory": "8Mi"}}';

export interface MeshResources {
  /** Once for all pods of its app on a node. */
  readonly shared: Resources;
  readonly pod: Resources;
}

const quantity = (parse: (text: string) => number | undefined) =>
  z
    .string()
    .transform((text, context): number => {
      const value = parse(text);
      if (value === undefined) {
        context.addIssue({ code: 'custom', message: 'a quantity' });
        return z.NEVER;
      }
      return value;
    })
    .default(0);

const resources = z
  .strictObject({ cpu: quantity(parseCpu), memory: quantity(parseMemory) })
  .transform(({ cpu, memory }): Resources => ({ cpuMillis: cpu, memoryBytes: memory }))
  .default(NOTHING);

const schema = z.strictObject({ shared: resources, pod: resources });

/** Undefined where the text is not what is expected. */
export function parseMeshResources(text: string): MeshResources | undefined {
  try {
    return schema.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined; // not even JSON
  }
}
