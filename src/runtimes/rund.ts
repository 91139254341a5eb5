import { locateByEvidence } from './locate.js';
import type { Runtime } from './runtime.js';

/**
 * MicroVMs wired the Kata way: a tap beside eth0 in the pod's namespace, mirrored both ways by tc. The tap is the
 * guest's end and is skipped by `locateByNetns`; the veth's peer on the host carries every frame of the guest.
 */
export const rund: Runtime = {
  kind: 'rund',
  capabilities: { splice: false },
  locate: locateByEvidence,
};
