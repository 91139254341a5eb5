import { locateByEvidence } from './locate.js';
import type { Runtime } from './runtime.js';

/**
 * gVisor: its netstack reads frames from the pod's eth0 by AF_PACKET and takes the address off it, so neither the
 * sockets nor the addresses can be learnt inside the namespace; the interface pair itself stays in place.
 */
export const runsc: Runtime = {
  kind: 'runsc',
  capabilities: { splice: false },
  locate: locateByEvidence,
};
