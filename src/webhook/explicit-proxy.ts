/** For pods in explicit mode: the address of their node's proxy, as environment variables of every container. */

import { isExplicit } from '../pods/annotations.js';
import type { PatchOperation } from './review.js';
import type { AdmittedPod, Variable } from './written-pod.js';

export interface ExplicitProxy {
  /** Of the node's proxy, at the node's address. */
  readonly port: number;
  /** Comma-separated, as programs read NO_PROXY. */
  readonly noProxy: string;
}

const NODE_IP = 'NODESENTRY_NODE_IP';

/** Empty where nothing is missing, so that a second call changes nothing. */
export function explicitProxyPatch(pod: AdmittedPod, proxy: ExplicitProxy): PatchOperation[] {
  if (!isExplicit(pod.metadata)) {
    return [];
  }
  return (['initContainers', 'containers'] as const).flatMap((list) =>
    pod.spec[list].flatMap(({ env }, index) => {
      const given = env ?? [];
      const missing = missingVariables(given, proxy);
      return missing.length === 0
        ? []
        : [{ op: 'add' as const, path: `/spec/${list}/${index}/env`, value: [...given, ...missing] }];
    }),
  );
}

/**
 * After the container's own: `$(NAME)` is replaced only where NAME stands further up. A name that the container has, in
 * capitals or not, is left to it: programs read either, and must not find two answers.
 */
function missingVariables(given: readonly Variable[], { port, noProxy }: ExplicitProxy): object[] {
  const names = new Set(given.map(({ name }) => name));
  const url = `http://$(${NODE_IP}):${port}`;
  const texts = [
    ['HTTP_PROXY', url],
    ['HTTPS_PROXY', url],
    ['NO_PROXY', noProxy],
  ] as const;
  const missing = texts.flatMap(([name, value]) => {
    const spellings = [name, name.toLowerCase()];
    return spellings.some((spelling) => names.has(spelling))
      ? []
      : spellings.map((spelling) => ({ name: spelling, value }));
  });
  const nodeIp = { name: NODE_IP, valueFrom: { fieldRef: { apiVersion: 'v1', fieldPath: 'status.hostIP' } } };
  return [...(names.has(NODE_IP) ? [] : [nodeIp]), ...missing];
}
