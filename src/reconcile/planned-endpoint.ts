import type { EndpointPlan } from '../datapath/endpoints.js';
import type { HostAttachment } from '../runtimes/location.js';

/** One interface of a pod that is to be intercepted. */
export interface PlannedEndpoint {
  readonly at: HostAttachment;
  readonly plan: EndpointPlan;
  /** Name of the IFB device that limits the rate of what comes from it. */
  readonly shaper?: string | undefined;
}
