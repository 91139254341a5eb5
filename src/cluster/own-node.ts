/** The Node object of the agent's own node: what is asked of it and written to it. */

import { z } from 'zod';
import { type KubernetesClient, KubernetesError, type Write } from '../pods/sources/kubernetes-client.js';
import { firstProblem } from '../pods/sources/kubernetes-objects.js';

const taintSchema = z.looseObject({ key: z.string() });
const nodeSchema = z.looseObject({ spec: z.looseObject({ taints: z.array(taintSchema).optional() }) });
export type Taint = z.infer<typeof taintSchema>;

export class OwnNode {
  readonly #client: Pick<KubernetesClient, 'get' | 'write'>;
  readonly #name: string;

  constructor(client: Pick<KubernetesClient, 'get' | 'write'>, name: string) {
    this.#client = client;
    this.#name = name;
  }

  /** Throws KubernetesError. */
  async taints(signal: AbortSignal): Promise<readonly Taint[]> {
    const answer = nodeSchema.safeParse(await this.#client.get(this.#call('get'), signal));
    if (!answer.success) {
      throw new KubernetesError('INVALID', `get nodes ${this.#name}: ${firstProblem(answer.error)}`);
    }
    return answer.data.spec.taints ?? [];
  }

  /** Throws KubernetesError. */
  async patch(write: Write, signal: AbortSignal): Promise<void> {
    await this.#client.write(this.#call('patch'), write, signal);
  }

  #call(verb: string): { what: string; path: string } {
    return { what: `${verb} nodes ${this.#name}`, path: `/api/v1/nodes/${encodeURIComponent(this.#name)}` };
  }
}
