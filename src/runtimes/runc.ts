import { locateByEvidence } from './locate.js';
import type { Runtime } from './runtime.js';

/** Ordinary containers: the application's sockets live in the host's kernel, inside the pod's namespace. */
export const runc: Runtime = {
  kind: 'runc',
  capabilities: { splice: true },
  locate: locateByEvidence,
};
