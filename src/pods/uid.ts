import type { PodUid } from './pod.js';

/** `struct workload` in bpf/include/layout.h holds 63 bytes and a NUL; a slash would break API paths. */
export const POD_UID_EXPECTED = 'a pod UID of 1 to 63 ASCII characters without space or slash';

/** Undefined where the text cannot serve as a pod's UID. */
export function parsePodUid(text: string): PodUid | undefined {
  return /^[!-.0-~]{1,63}$/.test(text) ? (text as PodUid) : undefined;
}
