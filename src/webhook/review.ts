/** AdmissionReview of `admission.k8s.io/v1`, in and out (Kubernetes, "Dynamic Admission Control"). */

import { z } from 'zod';
import { firstProblem } from '../pods/sources/kubernetes-objects.js';
import { podSchema } from './written-pod.js';

const reviewSchema = z.looseObject({
  apiVersion: z.literal('admission.k8s.io/v1'),
  kind: z.literal('AdmissionReview'),
  request: z.looseObject({
    uid: z.string().min(1),
    kind: z.looseObject({ group: z.literal(''), version: z.literal('v1'), kind: z.literal('Pod') }),
    operation: z.enum(['CREATE', 'UPDATE']),
    object: podSchema,
    oldObject: podSchema.nullish(),
  }),
});
export type AdmissionRequest = z.infer<typeof reviewSchema>['request'];

export interface PatchOperation {
  readonly op: 'add';
  readonly path: string;
  readonly value: unknown;
}

export interface Verdict {
  /** Why it is refused; undefined: it is not. */
  readonly refusal?: string | undefined;
  readonly patch?: readonly PatchOperation[];
}

export class ReviewError extends Error {
  override readonly name = 'ReviewError';
  readonly code = 'REVIEW_INVALID';
}

/** Throws ReviewError, which names the field that is wrong. */
export function readReview(body: unknown): AdmissionRequest {
  const parsed = reviewSchema.safeParse(body);
  if (!parsed.success) {
    throw new ReviewError(
      `expected an AdmissionReview of admission.k8s.io/v1 for a Pod: ${firstProblem(parsed.error)}`,
      { cause: parsed.error },
    );
  }
  return parsed.data.request;
}

export function reviewAnswer(
  { uid }: Pick<AdmissionRequest, 'uid'>,
  { refusal, patch = [] }: Verdict,
): object {
  const refused =
    refusal === undefined ? {} : { status: { code: 403, reason: 'Forbidden', message: refusal } };
  const patched =
    patch.length === 0
      ? {}
      : { patchType: 'JSONPatch', patch: Buffer.from(JSON.stringify(patch)).toString('base64') };
  return {
    apiVersion: 'admission.k8s.io/v1',
    kind: 'AdmissionReview',
    response: { uid, allowed: refusal === undefined, ...refused, ...patched },
  };
}
