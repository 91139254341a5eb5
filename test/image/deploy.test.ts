/** The manifests against what the agent needs: its capabilities, its paths, its configuration. */

import { Command } from 'commander';
import { beforeAll, describe, expect, it } from 'vitest';
import { addGlobalOptions, type GlobalOptions } from '../../src/cli/options.js';
import { CNI_DEFAULTS } from '../../src/config/config.js';
import { parseConfig } from '../../src/config/load.js';
import { CAPABILITIES } from '../../src/kernel/capabilities.js';
import { type Container, kustomize, type Manifest, only, type PodSpec, podSpec } from './manifests.js';

const OURS = new Set(CAPABILITIES.map(({ name }) => name.replace('CAP_', '')));

let base: Manifest[];
let cleanup: Manifest[];
let agent: Container;
let config: string;

beforeAll(async () => {
  [base, cleanup] = [await kustomize('base'), await kustomize('cleanup')];
  agent = podSpec(base).containers[0] as Container;
  config = only(base, 'ConfigMap').data?.['config.yaml'] ?? '';
}, 600_000);

const all = (spec: PodSpec): Container[] => [...(spec.initContainers ?? []), ...spec.containers];
/** Longest mount that holds the path: path on the node, and where. */
function mountOf(
  path: string,
  { volumeMounts = [] }: Container = agent,
  spec: PodSpec = podSpec(base),
): { hostPath: string | undefined; readOnly: boolean } | undefined {
  const mount = volumeMounts
    .filter(({ mountPath }) => path === mountPath || path.startsWith(`${mountPath}/`))
    .sort((a, b) => b.mountPath.length - a.mountPath.length)[0];
  const volume = spec.volumes?.find(({ name }) => name === mount?.name);
  return mount && { hostPath: volume?.hostPath?.path, readOnly: mount.readOnly === true };
}

describe('the DaemonSet', () => {
  it('grants every capability that the agent proves at start, and none more', () => {
    const { add, drop } = agent.securityContext.capabilities;
    expect([...(add ?? [])].sort()).toEqual([...OURS].sort());
    expect(drop).toEqual(['ALL']);
  });

  it('mounts every path that the agent uses by default, at its own place', () => {
    const defaults = addGlobalOptions(new Command()).opts<GlobalOptions>();
    expect(mountOf(defaults.runDir)).toEqual({ hostPath: '/run/nodesentry', readOnly: false });
    expect(mountOf(defaults.bpffs)).toEqual({ hostPath: '/sys/fs/bpf', readOnly: false });
    expect(mountOf(defaults.config)).toEqual({ hostPath: undefined, readOnly: true });
    const env = Object.fromEntries((agent.env ?? []).map(({ name, value }) => [name, value]));
    expect(mountOf(`${env.NODESENTRY_PROC_SYS}/net`)).toEqual({ hostPath: '/proc/sys/net', readOnly: false });
    expect(mountOf('/run/netns/cni-1')).toEqual({ hostPath: '/run/netns', readOnly: true });
    expect(mountOf('/etc/cni/net.d')).toEqual({ hostPath: '/etc/cni/net.d', readOnly: false });
    expect(mountOf('/opt/cni/bin')).toEqual({ hostPath: '/opt/cni/bin', readOnly: false });
    expect(mountOf('/var/lib/nodesentry')).toEqual({ hostPath: '/var/lib/nodesentry', readOnly: false });
  });

  it('mounts the folder of the container runtime that the configuration names', () => {
    const { cri } = parseConfig(config, 'config.yaml').sources;
    const socket = cri?.endpoint.replace('unix://', '') ?? '';
    expect(mountOf(socket)).toEqual({ hostPath: '/run/containerd', readOnly: true });
  });

  it('asks only for answers that the command line has', () => {
    for (const kind of ['startupProbe', 'livenessProbe', 'readinessProbe'] as const) {
      const command = agent[kind]?.exec.command.join(' ');
      expect(command, kind).toMatch(/^nodesentry status --check (live|ready)$/);
    }
  });
});

describe('cleanup', () => {
  it('can reach, where the agent had it, all that it takes away or restores', () => {
    const [container] = podSpec(cleanup).initContainers ?? [];
    const { runDir, bpffs } = addGlobalOptions(new Command()).opts<GlobalOptions>();
    for (const path of [runDir, bpffs, ...Object.values(CNI_DEFAULTS)]) {
      expect(mountOf(path), path).toBeDefined();
      expect(mountOf(path, container, podSpec(cleanup)), path).toEqual(mountOf(path));
    }
  });
});

describe('the config map', () => {
  it('leaves the name of the node to the downward API', () => {
    expect(parseConfig(config, 'config.yaml', 'node-7').node).toBe('node-7');
  });

  it('asks the API server for names, and gives no pod a name that it would have to guess', () => {
    const { sources } = parseConfig(config, 'config.yaml');
    expect(Object.keys(sources).sort()).toEqual(['cni', 'cri', 'kubernetes']);
    expect(sources.kubernetes).toEqual({ events: true, removeStartupTaint: true, annotateNode: true });
    expect(sources.cri?.serviceAccount).toBeUndefined();
  });

  it('leaves the chain of the CNI alone: a node would start no pod once the agent was deleted', () => {
    const { cni } = parseConfig(config, 'config.yaml').sources;
    expect(cni).toMatchObject({ install: false });
    for (const folder of [cni?.confDir, cni?.binDir, cni?.stateDir]) {
      expect(mountOf(folder ?? ''), folder).toMatchObject({ readOnly: false });
    }
  });
});

describe('access to the API server', () => {
  it('is given to the agent by the account that the role is bound to', () => {
    const spec = podSpec(base);
    const [subject] = only(base, 'ClusterRoleBinding').subjects ?? [];
    expect(subject).toMatchObject({ kind: 'ServiceAccount', name: spec.serviceAccountName });
    expect(only(base, 'ServiceAccount').metadata).toMatchObject({
      name: subject?.name,
      namespace: subject?.namespace,
    });
    expect(spec.automountServiceAccountToken).not.toBe(false);
  });

  it('is reading pods and namespaces, telling of pods and of nodes, and nothing else', () => {
    expect(only(base, 'ClusterRole').rules).toEqual([
      { apiGroups: [''], resources: ['pods', 'namespaces'], verbs: ['get', 'list', 'watch'] },
      { apiGroups: ['events.k8s.io'], resources: ['events'], verbs: ['create', 'patch'] },
      { apiGroups: [''], resources: ['nodes'], verbs: ['get', 'patch'] },
    ]);
  });

  it('is not given to cleanup', () => {
    expect(podSpec(cleanup)).toMatchObject({ automountServiceAccountToken: false });
  });
});

describe('every container', () => {
  it('drops all capabilities, adds only known ones, and cannot write its root or gain privileges', () => {
    for (const { name, securityContext } of [...all(podSpec(base)), ...all(podSpec(cleanup))]) {
      expect(securityContext, name).toMatchObject({
        readOnlyRootFilesystem: true,
        allowPrivilegeEscalation: false,
        seccompProfile: { type: 'RuntimeDefault' },
        capabilities: { drop: ['ALL'] },
      });
      const unknown = (securityContext.capabilities.add ?? []).filter((capability) => !OURS.has(capability));
      expect(unknown, name).toEqual([]);
    }
  });

  it('runs the same image', () => {
    const images = [...all(podSpec(base)), ...all(podSpec(cleanup))].map(({ image }) => image);
    expect(new Set(images).size).toBe(1);
  });
});
