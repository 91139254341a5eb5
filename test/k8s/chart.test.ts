/** The chart, by Helm, to a real API server: it validates every field, and refuses what may not be changed. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { stringify } from 'yaml';
import { kustomize, type Manifest, ROOT } from '../image/manifests.js';
import { Cleanup, run } from '../lab/exec.js';
import { ControlPlane } from './control-plane.js';

const NAMESPACE = 'nodesentry-system';
const CHART = join(ROOT, 'deploy/chart');

const cleanup = new Cleanup();
let folder: string;
let plane: ControlPlane;

beforeAll(async () => {
  await run(join(ROOT, 'scripts/install-go-tools'), ['helm'], { timeoutMs: 600_000 });
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-chart-'));
  cleanup.add('the folder', () => rmSync(folder, { recursive: true, force: true }));
  plane = await ControlPlane.start({ directory: folder, cleanup });
  await plane.call('POST', '/apis/rbac.authorization.k8s.io/v1/clusterrolebindings', {
    metadata: { name: 'installer' },
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: 'cluster-admin' },
    subjects: [{ kind: 'ServiceAccount', name: 'default', namespace: 'installer' }],
  });
  await plane.createNamespace('installer');
  await plane.writeKubeconfig(join(folder, 'kubeconfig'), { namespace: 'installer', name: 'default' });
}, 900_000);
afterAll(() => cleanup.run());

function helm(command: readonly string[], values: object = {}): Promise<string> {
  const args = [...command, '--namespace', NAMESPACE, '--kubeconfig', join(folder, 'kubeconfig')];
  // Its cache and settings are a user's own.
  return run(join(ROOT, '.cache/bin/helm'), args, { input: stringify(values), env: { HOME: folder } });
}

const upgrade = (values: object, ...more: string[]) =>
  helm(['upgrade', '--install', '--create-namespace', 'nodesentry', CHART, '--values', '-', ...more], values);
const daemonSet = () => plane.call('GET', `/apis/apps/v1/namespaces/${NAMESPACE}/daemonsets/nodesentry`);
const configMap = async () =>
  (await plane.call('GET', `/api/v1/namespaces/${NAMESPACE}/configmaps/nodesentry-config`)).data;

/** As kubectl's client-side apply leaves it. */
async function apply(object: Manifest): Promise<void> {
  const { apiVersion, kind, metadata } = object as Manifest & { apiVersion: string };
  const group = apiVersion === 'v1' ? 'api/v1' : `apis/${apiVersion}`;
  const place = metadata.namespace === undefined ? '' : `/namespaces/${metadata.namespace}`;
  const path = `/${group}${place}/${kind.toLowerCase()}s?fieldManager=kubectl-client-side-apply`;
  await plane.call('POST', path, object);
}

test('takes over what kubectl apply has installed, where it is told to', async () => {
  for (const object of await kustomize('base')) {
    await apply(object);
  }
  const { uid } = (await daemonSet()).metadata;
  await expect(upgrade({})).rejects.toThrow('cannot be imported into the current release');
  await upgrade({}, '--take-ownership', '--force-conflicts');
  expect((await daemonSet()).metadata.uid).toBe(uid);
  expect(await configMap()).toMatchObject({ 'config.yaml': expect.stringContaining('trustDomain') });
  await helm(['uninstall', 'nodesentry']);
});

test('is installed, changed in every value, and taken away', async () => {
  await upgrade({});
  expect((await daemonSet()).metadata.generation).toBe(1);
  await upgrade({
    image: { digest: `sha256:${'0a'.repeat(32)}`, pullPolicy: 'IfNotPresent' },
    imagePullSecrets: [{ name: 'registry' }],
    config: { sources: { cri: { endpoint: 'unix:///run/k3s/containerd/containerd.sock' } } },
    resources: { limits: { cpu: 2 } },
    tolerations: [{ key: 'dedicated', operator: 'Equal', value: 'apps', effect: 'NoExecute' }],
    nodeSelector: { pool: 'a' },
    affinity: {
      nodeAffinity: {
        requiredDuringSchedulingIgnoredDuringExecution: {
          nodeSelectorTerms: [{ matchExpressions: [{ key: 'virtual', operator: 'DoesNotExist' }] }],
        },
      },
    },
    updateStrategy: { type: 'OnDelete' },
    priorityClassName: 'system-cluster-critical',
    podAnnotations: { note: 'true' },
    podLabels: { team: 'network' },
    extraEnv: [{ name: 'TZ', value: 'UTC' }],
  });
  const { metadata, spec } = await daemonSet();
  expect(metadata.generation).toBe(2);
  expect(spec).toMatchObject({ updateStrategy: { type: 'OnDelete' } });
  expect(await configMap()).toMatchObject({ 'config.yaml': expect.stringContaining('unix:///run/k3s/') });
  await helm(['uninstall', 'nodesentry']);
  await expect(daemonSet()).rejects.toThrow('HTTP 404');
  await expect(
    plane.call('GET', '/apis/rbac.authorization.k8s.io/v1/clusterroles/nodesentry'),
  ).rejects.toThrow('HTTP 404');
});
