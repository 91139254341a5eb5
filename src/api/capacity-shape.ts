/** `GET /v1/capacity`, as src/capacity/report.ts has it. */

import { z } from 'zod';

const count = () => z.int().nonnegative();
const Resources = z.object({ cpuMillis: count(), memoryBytes: count() });
const needed = {
  pods: count(),
  shared: Resources,
  perPod: Resources.meta({ description: 'Of all its pods together.' }),
  sum: Resources,
};
const Allotment = z.object({ cpuMillis: count().nullable(), memoryBytes: count().nullable() });
const allotments = { requests: Allotment, limits: Allotment };

export const Capacity = z.object({
  mode: z.enum(['report', 'resize']),
  apps: z.array(
    z.object({
      namespace: z.string(),
      app: z.string().meta({ description: 'Empty for a pod of no app, which counts by itself.' }),
      ...needed,
      problem: z.string(),
    }),
  ),
  total: z.object(needed),
  target: z
    .object({
      namespace: z.string(),
      selector: z.string(),
      container: z.string(),
      state: z.enum(['UNKNOWN', 'FITS', 'RESIZING', 'DEGRADED']),
      reason: z.string().meta({ description: 'Why it does not have what is wanted; empty where it does.' }),
      podName: z.string(),
      now: z.object(allotments).nullable().meta({ description: 'As the pod’s spec has them.' }),
      actual: z.object(allotments).nullable().meta({ description: 'As the kubelet has carried them out.' }),
      usedMemoryBytes: count().nullable().meta({ description: 'What its processes hold.' }),
      wanted: Resources.meta({ description: 'Requests, with what is added and below the limit.' }),
      lastResize: z.object({ ...allotments, atMs: z.number() }).nullable(),
    })
    .nullable()
    .meta({ description: 'Null where the configuration names none.' }),
});
