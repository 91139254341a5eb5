/** Whether the node's proxy has what the pods say that it needs, by the agent's word. */

import type { Config } from '../config/config.js';
import { type Check, type Finding, ok, warn } from './check.js';

/** Of what the agent answers. */
export interface CapacityAnswer {
  readonly target: { readonly state: string; readonly reason: string } | null;
}

/** `ask` rejects where no agent answers. Nothing is looked at before a check is run. */
export function capacityChecks({ capacity }: Config, ask: () => Promise<CapacityAnswer>): Check[] {
  return capacity.target === undefined ? [] : [{ name: 'capacity', run: async () => [await found(ask)] }];
}

async function found(ask: () => Promise<CapacityAnswer>): Promise<Finding> {
  try {
    const { target } = await ask();
    return target?.state === 'DEGRADED'
      ? warn(`the proxy does not have what the pods need: ${target.reason}`, 'see docs/capacity.md')
      : ok(`the proxy: ${target?.state ?? 'no target since the agent started'}`);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return warn(`could not be asked for: ${why}`, 'start the agent');
  }
}
