/** For pods that ask for it: what their node's proxy needs for each of them, as requests of the pod, which the scheduler counts. */

import { asksForRequests, meshResourcesOf } from '../pods/annotations.js';
import { MESH_REQUESTS_ADDED } from '../pods/mesh-resources.js';
import { memoryText, parseCpu, parseMemory } from '../pods/quantity.js';
import type { PatchOperation } from './review.js';
import type { AdmittedPod } from './written-pod.js';

type Quantities = Readonly<Record<string, string>> | null | undefined;

/** Empty where nothing is to be added, or has been: a second call changes nothing. */
export function meshRequestsPatch({ metadata, spec }: AdmittedPod): PatchOperation[] {
  const own = meshResourcesOf(metadata)?.pod;
  const [first] = spec.containers;
  if (
    !asksForRequests(metadata) ||
    own === undefined ||
    first === undefined ||
    MESH_REQUESTS_ADDED in metadata.annotations
  ) {
    return [];
  }
  const { requests, limits, ...others } = first.resources ?? {};
  const cpu = { name: 'cpu', parse: parseCpu, added: own.cpuMillis, write: cpuText } as const;
  const memory = { name: 'memory', parse: parseMemory, added: own.memoryBytes, write: memoryText } as const;
  const added = (given: Quantities, isLimit: boolean): Record<string, string> => {
    const sums = [cpu, memory].flatMap(({ name, parse, added: more, write }) => {
      const text = given?.[name];
      const has = text === undefined ? 0 : parse(text);
      // A limit that is not there is none, and what we cannot read the API server refuses.
      return more === 0 || has === undefined || (isLimit && text === undefined)
        ? []
        : [[name, write(has + more)]];
    });
    return { ...given, ...Object.fromEntries(sums) };
  };
  const said = `cpu ${cpuText(own.cpuMillis)}, memory ${memoryText(own.memoryBytes)}`;
  const value = {
    ...others,
    requests: added(requests, false),
    ...(limits == null ? {} : { limits: added(limits, true) }),
  };
  return [
    { op: 'add', path: '/spec/containers/0/resources', value },
    {
      op: 'add',
      path: `/metadata/annotations/${MESH_REQUESTS_ADDED.replace('/', '~1')}`,
      value: said,
    },
  ];
}

function cpuText(millis: number): string {
  return `${millis}m`;
}
