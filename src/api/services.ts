/** The apps of this node for a registry that publishes the node in the place of each pod. */

import type { Family } from '../net/family.js';
import type {
  ListenerMessage,
  ServiceMessage,
  ServicesMessage,
  WorkloadMessage,
  WorkloadsMessage,
} from './messages.js';

/** Of `app` alone, or of all; sorted by namespace, app and instance. */
export function servicesOf(
  { epoch, revision, workloads }: WorkloadsMessage,
  listeners: readonly ListenerMessage[],
  node: string,
  app: string | undefined,
): ServicesMessage {
  const services = new Map<string, ServiceMessage>();
  // Two namespaces' apps of one name are two; workloads come sorted.
  for (const workload of workloads.filter((one) => isPublished(one) && (app ?? one.app) === one.app)) {
    const instance = inboundInstance(workload);
    const key = [workload.namespace, workload.app, instance].join('/');
    const pods = services.get(key)?.pods ?? [];
    services.set(key, {
      namespace: workload.namespace,
      app: workload.app,
      node,
      instance,
      inbound: { ipv4: inboundOf(listeners, instance, 4), ipv6: inboundOf(listeners, instance, 6) },
      pods: [...pods, podOf(workload)],
    });
  }
  const sorted = [...services].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, service]) => service);
  return { epoch, revision, services: sorted };
}

/** What nobody with authority has named is not for others to call. */
function isPublished({ app, state, spiffeId }: WorkloadMessage): boolean {
  return app !== '' && state === 'LIVE' && spiffeId !== '';
}

/** Empty where what the pod is sent goes straight to it. */
function inboundInstance({ interception }: WorkloadMessage): string {
  return interception.state === 'INTERCEPTED' && interception.directions === 'both'
    ? interception.instance
    : '';
}

function inboundOf(listeners: readonly ListenerMessage[], instance: string, family: Family): string | null {
  const found = listeners.find(
    (listener) =>
      listener.instance === instance &&
      listener.protocol === undefined &&
      listener.direction === 'inbound' &&
      listener.family === family &&
      listener.adopted,
  );
  return found?.address ?? null;
}

function podOf({ uid, generation, podName, spiffeId, ips }: WorkloadMessage): ServiceMessage['pods'][number] {
  return { uid, generation, podName, spiffeId, ips };
}
