/** The target's container, as the API server has its pod. */

import { z } from 'zod';
import { parseCpu, parseMemory } from '../pods/quantity.js';
import type { Allotment, Allotments } from './report.js';

const quantities = z
  .looseObject({ cpu: z.string().optional(), memory: z.string().optional() })
  .optional()
  .transform(
    (given): Allotment => ({
      cpuMillis: given?.cpu === undefined ? null : (parseCpu(given.cpu) ?? null),
      memoryBytes: given?.memory === undefined ? null : (parseMemory(given.memory) ?? null),
    }),
  );
const resources = z.looseObject({ requests: quantities, limits: quantities });

export const targetPodSchema = z.looseObject({
  metadata: z.looseObject({ name: z.string(), deletionTimestamp: z.string().nullish() }),
  spec: z.looseObject({
    containers: z.array(z.looseObject({ name: z.string(), resources: resources.prefault({}) })),
  }),
  status: z
    .looseObject({
      phase: z.string().optional(),
      qosClass: z.string().optional(),
      conditions: z
        .array(
          z.looseObject({
            type: z.string(),
            status: z.string(),
            reason: z.string().optional(),
            message: z.string().optional(),
          }),
        )
        .nullish(),
      containerStatuses: z
        .array(
          z.looseObject({
            name: z.string(),
            containerID: z.string().optional(),
            resources: resources.optional(),
          }),
        )
        .nullish(),
    })
    .prefault({}),
});
export type TargetPod = z.output<typeof targetPodSchema>;

export interface TargetContainer {
  readonly podName: string;
  readonly now: Allotments;
  /** Undefined before the kubelet has told. */
  readonly actual: Allotments | undefined;
  /** Of the runtime; empty while it does not run. */
  readonly id: string;
  /** Its limits are its requests and have to remain so: a resize may not change the pod's QoS class. */
  readonly guaranteed: boolean;
  /** Why the kubelet does not carry out what the spec has; empty where it does, or has. */
  readonly refused: string;
  readonly resizing: boolean;
}

/** Undefined where the pod has no container of this name. */
export function containerOf(pod: TargetPod, name: string): TargetContainer | undefined {
  const container = pod.spec.containers.find((one) => one.name === name);
  if (container === undefined) {
    return undefined;
  }
  const { qosClass, conditions, containerStatuses } = pod.status;
  const status = containerStatuses?.find((one) => one.name === name);
  const condition = (type: string) => conditions?.find((one) => one.type === type && one.status === 'True');
  const pending = condition('PodResizePending');
  const progress = condition('PodResizeInProgress');
  const wrong = pending ?? (progress?.reason === 'Error' ? progress : undefined);
  return {
    podName: pod.metadata.name,
    now: container.resources,
    actual: status?.resources,
    id: status?.containerID?.replace(/^.*:\/\//, '') ?? '',
    guaranteed: qosClass === 'Guaranteed',
    refused: wrong === undefined ? '' : `${wrong.reason ?? wrong.type}: ${wrong.message ?? ''}`,
    resizing: progress !== undefined,
  };
}
