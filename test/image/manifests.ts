/** deploy/ as `kubectl apply -k` would send it, and the part of its shape that the tests read. */

import { join } from 'node:path';
import { parseAllDocuments } from 'yaml';
import { run } from '../lab/exec.js';

export const ROOT = join(import.meta.dirname, '../..');

export interface SecurityContext {
  readonly runAsUser: number;
  readonly runAsGroup?: number;
  readonly readOnlyRootFilesystem: boolean;
  readonly allowPrivilegeEscalation: boolean;
  readonly seccompProfile: { readonly type: 'RuntimeDefault' };
  /** Without it: the runtime's default. */
  readonly appArmorProfile?: { readonly type: 'Unconfined' };
  readonly capabilities: { readonly drop: readonly string[]; readonly add?: readonly string[] };
}

export interface Container {
  readonly name: string;
  readonly image: string;
  readonly command?: readonly string[];
  readonly args?: readonly string[];
  readonly env?: readonly {
    readonly name: string;
    readonly value?: string;
    readonly valueFrom?: { readonly fieldRef: { readonly fieldPath: string } };
  }[];
  readonly securityContext: SecurityContext;
  readonly volumeMounts?: readonly {
    readonly name: string;
    readonly mountPath: string;
    readonly mountPropagation?: 'HostToContainer';
    readonly readOnly?: boolean;
  }[];
  readonly resources?: { readonly limits?: { readonly memory?: string } };
  readonly startupProbe?: Probe;
  readonly livenessProbe?: Probe;
  readonly readinessProbe?: Probe;
}

export interface Probe {
  readonly exec: { readonly command: readonly string[] };
  readonly timeoutSeconds: number;
}

export interface PodSpec {
  readonly serviceAccountName?: string;
  readonly automountServiceAccountToken?: boolean;
  readonly hostNetwork?: boolean;
  readonly hostPID?: boolean;
  readonly initContainers?: readonly Container[];
  readonly containers: readonly Container[];
  readonly volumes?: readonly {
    readonly name: string;
    readonly hostPath?: { readonly path: string; readonly type: string };
    readonly configMap?: { readonly name: string };
  }[];
}

export interface Manifest {
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly namespace?: string };
  /** Of a ConfigMap. */
  readonly data?: Readonly<Record<string, string>>;
  /** Of a ClusterRole. */
  readonly rules?: readonly {
    readonly apiGroups: string[];
    readonly resources: string[];
    readonly verbs: string[];
  }[];
  /** Of a ClusterRoleBinding. */
  readonly subjects?: readonly { readonly kind: string; readonly name: string; readonly namespace: string }[];
  /** Of a DaemonSet. */
  readonly spec?: { readonly template: { readonly spec: PodSpec } };
}

/** `overlay` is a folder of deploy/. */
export async function kustomize(overlay: string): Promise<Manifest[]> {
  await run(join(ROOT, 'scripts/install-go-tools'), ['kustomize'], { timeoutMs: 600_000 });
  const text = await run(join(ROOT, '.cache/bin/kustomize'), ['build', join(ROOT, 'deploy', overlay)]);
  return parseAllDocuments(text).map((document) => document.toJS() as Manifest);
}

export function only(manifests: readonly Manifest[], kind: string): Manifest {
  const [found, ...more] = manifests.filter((manifest) => manifest.kind === kind);
  if (found === undefined || more.length > 0) {
    throw new Error(`there are ${more.length + (found === undefined ? 0 : 1)} objects of kind ${kind}`);
  }
  return found;
}

export function podSpec(manifests: readonly Manifest[]): PodSpec {
  const spec = only(manifests, 'DaemonSet').spec?.template.spec;
  if (spec === undefined) {
    throw new Error('the DaemonSet has no pod template');
  }
  return spec;
}
