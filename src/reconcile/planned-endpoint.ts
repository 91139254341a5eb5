import type { EndpointPlan } from '../datapath/endpoints.js';
import type { HostAttachment } from '../runtimes/location.js';

/** One interface of a pod that is to be intercepted. */
export interface PlannedEndpoint {
  readonly at: HostAttachment;
  readonly plan: EndpointPlan;
}
