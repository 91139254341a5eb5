/** Which pod of this node is the target, and its container's requests and limits, at the API server. */

import type { CapacityTarget } from '../config/config.js';
import { memoryText } from '../pods/quantity.js';
import { type Call, type KubernetesClient, KubernetesError } from '../pods/sources/kubernetes-client.js';
import { escapeSelector, firstProblem, listSchema } from '../pods/sources/kubernetes-objects.js';
import { containerOf, type TargetContainer, targetPodSchema } from './container.js';
import type { Allotment, Allotments } from './report.js';

export class TargetError extends Error {
  override readonly name = 'TargetError';

  constructor(
    readonly code: 'POD_NOT_FOUND' | 'POD_AMBIGUOUS' | 'CONTAINER_NOT_FOUND',
    message: string,
  ) {
    super(message);
  }
}

export class TargetApi {
  readonly #client: Pick<KubernetesClient, 'get' | 'write'>;
  readonly #target: CapacityTarget;
  readonly #node: string;

  constructor(client: Pick<KubernetesClient, 'get' | 'write'>, target: CapacityTarget, node: string) {
    this.#client = client;
    this.#target = target;
    this.#node = node;
  }

  /** Throws KubernetesError, and TargetError where there is not exactly one such pod that neither ends nor has ended. */
  async find(signal: AbortSignal): Promise<TargetContainer> {
    const { selector, container } = this.#target;
    const query = { labelSelector: selector, fieldSelector: `spec.nodeName=${escapeSelector(this.#node)}` };
    const call: Call = { what: 'list pods of the capacity target', path: this.#path, query };
    const list = listSchema.safeParse(await this.#client.get(call, signal));
    const read = targetPodSchema.array().safeParse(list.data?.items ?? []);
    const error = list.error ?? read.error;
    if (error !== undefined || !read.success) {
      throw new KubernetesError('INVALID', `${call.what}: ${error === undefined ? '' : firstProblem(error)}`);
    }
    const over = ['Succeeded', 'Failed'];
    const [pod, second] = read.data.filter(
      ({ metadata, status }) =>
        typeof metadata.deletionTimestamp !== 'string' && !over.includes(status.phase ?? ''),
    );
    if (pod === undefined) {
      throw new TargetError('POD_NOT_FOUND', `no pod of this node has the labels ${selector}`);
    }
    if (second !== undefined) {
      const names = `${pod.metadata.name}, ${second.metadata.name}`;
      throw new TargetError(
        'POD_AMBIGUOUS',
        `more than one pod of this node has the labels ${selector}: ${names}`,
      );
    }
    const found = containerOf(pod, container);
    if (found === undefined) {
      throw new TargetError('CONTAINER_NOT_FOUND', `pod ${pod.metadata.name} has no container ${container}`);
    }
    return found;
  }

  /** Throws KubernetesError. */
  async resize(podName: string, { requests, limits }: Allotments, signal: AbortSignal): Promise<void> {
    const resources = { requests: quantities(requests), limits: quantities(limits) };
    const call: Call = {
      what: 'patch pods/resize of the capacity target',
      path: `${this.#path}/${encodeURIComponent(podName)}/resize`,
    };
    try {
      const patch = { spec: { containers: [{ name: this.#target.container, resources }] } };
      await this.#client.write(call, { kind: 'strategic', patch }, signal);
    } catch (error) {
      if (error instanceof KubernetesError && error.code === 'NOT_FOUND') {
        const advice = 'the pod has gone, or Kubernetes is older than 1.33 and has no subresource resize';
        throw new KubernetesError('NOT_FOUND', `${error.message} (${advice})`, { cause: error });
      }
      throw error;
    }
  }

  get #path(): string {
    return `/api/v1/namespaces/${encodeURIComponent(this.#target.namespace)}/pods`;
  }
}

/** What the container has none of is left alone. */
function quantities({ cpuMillis, memoryBytes }: Allotment): Record<string, string> {
  return {
    ...(cpuMillis === null ? {} : { cpu: `${cpuMillis}m` }),
    ...(memoryBytes === null ? {} : { memory: memoryText(memoryBytes) }),
  };
}
