/** The Helm chart: the same objects as deploy/base, what its values do, and what is said of wrong ones. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { parse, parseAllDocuments, stringify } from 'yaml';
import { parseConfig } from '../../src/config/load.js';
import { kustomize, type Manifest, only, type PodSpec, podSpec, ROOT } from '../image/manifests.js';
import { type Output, run, tryRun } from '../lab/exec.js';

const CHART = join(ROOT, 'deploy/chart');
const NAMESPACE = 'nodesentry-system';

interface PodTemplate {
  readonly metadata: {
    readonly labels: Readonly<Record<string, string>>;
    readonly annotations?: Readonly<Record<string, string>>;
  };
  readonly spec: PodSpec;
}

function helm(command: readonly string[], values: object): Promise<Output> {
  const args = [...command, 'nodesentry', CHART, '--namespace', NAMESPACE, '--values', '-'];
  return tryRun(join(ROOT, '.cache/bin/helm'), args, { input: stringify(values) });
}

async function rendered(values: object = {}): Promise<Manifest[]> {
  const { stdout, stderr, code } = await helm(['template'], values);
  expect(stderr).toBe('');
  expect(code).toBe(0);
  return parseAllDocuments(stdout).map((document) => document.toJS() as Manifest);
}

const templateOf = (manifests: readonly Manifest[]) =>
  only(manifests, 'DaemonSet').spec?.template as unknown as PodTemplate;
const podWith = async (values: object) => podSpec(await rendered(values));
const agentWith = async (values: object) => (await podWith(values)).containers[0];
const configWith = async (config: object) =>
  only(await rendered({ config }), 'ConfigMap').data?.['config.yaml'] ?? '';
const checksum = async (values: object) =>
  templateOf(await rendered(values)).metadata.annotations?.['checksum/config'];

/** By kind and name, without what the two ways must do differently: how a changed configuration gets to the pods. */
function objects(manifests: readonly Manifest[]): Record<string, unknown> {
  const text = stringify(manifests.map(withoutChecksum)).replace(
    /nodesentry-config-[a-z0-9]{10}\b/g,
    'nodesentry-config',
  );
  const alike = parse(text) as Manifest[];
  return Object.fromEntries(
    alike.map(({ data, ...object }) => [
      `${object.kind} ${object.metadata.name}`,
      { ...object, ...(data && { data: Object.entries(data).map(([file, yaml]) => [file, parse(yaml)]) }) },
    ]),
  );
}

function withoutChecksum(manifest: Manifest): Manifest {
  if (manifest.kind !== 'DaemonSet') {
    return manifest;
  }
  const { metadata, ...template } = templateOf([manifest]);
  const { 'checksum/config': _, ...annotations } = metadata.annotations ?? {};
  const kept = { labels: metadata.labels, ...(Object.keys(annotations).length > 0 && { annotations }) };
  return { ...manifest, spec: { ...manifest.spec, template: { ...template, metadata: kept } } } as Manifest;
}

beforeAll(async () => {
  await run(join(ROOT, 'scripts/install-go-tools'), ['helm', 'kustomize'], { timeoutMs: 600_000 });
}, 600_000);

describe('by default the chart', () => {
  it('makes the objects of deploy/base, but for the namespace', async () => {
    const { [`Namespace ${NAMESPACE}`]: namespace, ...base } = objects(await kustomize('base'));
    expect(namespace).toBeDefined();
    expect(Object.keys(base).length).toBe(5);
    expect(objects(await rendered())).toEqual(base);
  });

  it('is the version of this release, and runs its image', async () => {
    const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string };
    const chart = parse(readFileSync(join(CHART, 'Chart.yaml'), 'utf8')) as Record<string, unknown>;
    expect([chart.version, chart.appVersion]).toEqual([version, version]);
    expect((await agentWith({}))?.image).toBe(`localhost/nodesentry:${version}`);
  });

  it('says what to type next, in the namespace of the release', async () => {
    const { stdout } = await helm(['install', '--dry-run=client'], {});
    const notes = stdout.slice(stdout.indexOf('NOTES:'));
    expect(notes).toContain(`kubectl -n ${NAMESPACE} rollout status daemonset/nodesentry`);
    expect(notes).toContain(
      `kubectl label namespace ${NAMESPACE} pod-security.kubernetes.io/enforce=privileged`,
    );
  });
});

describe('the image', () => {
  it('is taken by tag, or by digest where there is one', async () => {
    const image = { repository: 'registry.example/nodesentry', tag: '1.10' };
    const digest = `sha256:${'0a'.repeat(32)}`;
    expect((await agentWith({ image }))?.image).toBe('registry.example/nodesentry:1.10');
    expect((await agentWith({ image: { ...image, digest } }))?.image).toBe(`${image.repository}@${digest}`);
  });

  it('is pulled as the values say', async () => {
    const pod = await podWith({ image: { pullPolicy: 'Always' }, imagePullSecrets: [{ name: 'registry' }] });
    expect(pod).toMatchObject({ imagePullSecrets: [{ name: 'registry' }] });
    expect(pod.containers[0]).toMatchObject({ imagePullPolicy: 'Always' });
  });
});

describe('the configuration', () => {
  it('is rolled out when it changes, and only then', async () => {
    const before = await checksum({});
    expect(before).toMatch(/^[0-9a-f]{64}$/);
    expect(await checksum({ nodeSelector: { pool: 'a' } })).toBe(before);
    expect(await checksum({ config: { log: { level: 'debug' } } })).not.toBe(before);
  });

  it('reaches the agent with every number as it was written', async () => {
    const text = await configWith({
      interception: { table: 4_294_967_295 },
      identity: { history: { entries: 1_000_000 } },
      api: { allow: [{ uid: 4_294_967_294 }] },
    });
    expect(parseConfig(text, 'config.yaml')).toMatchObject({
      interception: { table: 4_294_967_295, failure: 'closed' },
      identity: { history: { entries: 1_000_000 } },
      api: { allow: [{ uid: 4_294_967_294 }] },
    });
  });

  it('loses what is set to null', async () => {
    const { sources } = parseConfig(await configWith({ sources: { cni: null } }), 'config.yaml');
    expect(Object.keys(sources).sort()).toEqual(['cri', 'kubernetes']);
  });

  it('says which folders of the node are mounted', async () => {
    const endpoint = 'unix:///run/k3s/containerd/containerd.sock';
    const cni = { confDir: '/var/lib/k3s/net.d', binDir: '/var/lib/k3s/bin' };
    const pod = await podWith({ config: { sources: { cri: { endpoint }, cni } } });
    for (const [name, path] of [
      ['containerd', '/run/k3s/containerd'],
      ['cni-config', cni.confDir],
      ['cni-bin', cni.binDir],
    ]) {
      expect(pod.volumes).toContainEqual({ name, hostPath: expect.objectContaining({ path }) });
      expect(pod.containers[0]?.volumeMounts).toContainEqual(
        expect.objectContaining({ name, mountPath: path }),
      );
    }
  });

  it('without an endpoint mounts the one that the agent asks then, and without CRI none', async () => {
    const folders = async (cri: object | null) =>
      (await podWith({ config: { sources: { cri } } })).volumes?.filter(({ name }) => name === 'containerd');
    expect(await folders({ endpoint: null })).toMatchObject([{ hostPath: { path: '/run/containerd' } }]);
    expect(await folders(null)).toEqual([]);
  });
});

describe('the pods', () => {
  it('are placed, sized and named as the values say', async () => {
    const given = {
      tolerations: [{ key: 'dedicated', operator: 'Equal', value: 'apps', effect: 'NoSchedule' }],
      nodeSelector: { 'kubernetes.io/os': 'linux', pool: 'a' },
      affinity: { nodeAffinity: { preferredDuringSchedulingIgnoredDuringExecution: [] } },
      priorityClassName: 'system-cluster-critical',
    };
    expect(await podWith(given)).toMatchObject(given);
    const resources = { requests: { cpu: 1, memory: '256Mi' }, limits: { memory: '1Gi' } };
    expect(await agentWith({ resources })).toMatchObject({ resources });
  });

  it('are updated as the values say', async () => {
    const updateStrategy = { type: 'RollingUpdate', rollingUpdate: { maxUnavailable: '10%', maxSurge: 0 } };
    expect(only(await rendered({ updateStrategy }), 'DaemonSet').spec).toMatchObject({ updateStrategy });
  });

  it('take more labels and annotations, but keep those that they are found and rolled out by', async () => {
    const component = 'app.kubernetes.io/component';
    const { labels, annotations } = templateOf(
      await rendered({
        podLabels: { team: 'network', [component]: 'other' },
        podAnnotations: { note: 'true', 'checksum/config': 'other' },
      }),
    ).metadata;
    expect(labels).toEqual({ team: 'network', [component]: 'agent' });
    expect(annotations).toEqual({ note: 'true', 'checksum/config': await checksum({}) });
  });

  it('take more environment after their own', async () => {
    const names = (await agentWith({ extraEnv: [{ name: 'TZ', value: 'UTC' }] }))?.env?.map(
      ({ name }) => name,
    );
    expect(names).toEqual(['NODESENTRY_NODE', 'NODESENTRY_PROC_SYS', 'TZ']);
  });
});

describe('the PodMonitor', () => {
  const monitored = async (podMonitor: object = {}, config: object = {}) =>
    rendered({ podMonitor: { enabled: true, ...podMonitor }, config });
  const listening = (manifests: readonly Manifest[]) =>
    parseConfig(only(manifests, 'ConfigMap').data?.['config.yaml'] ?? '', 'config.yaml').metrics.listen?.text;

  it('is off by default, and so is the port', async () => {
    const all = await rendered();
    expect(all.filter(({ kind }) => kind === 'PodMonitor')).toEqual([]);
    expect(listening(all)).toBeUndefined();
    expect(podSpec(all).containers[0]).not.toHaveProperty('ports');
  });

  it('finds the agents and the port that they answer on, and nobody else', async () => {
    const all = await monitored({ port: 9_999, interval: '15s', labels: { release: 'prometheus' } });
    const monitor = only(all, 'PodMonitor');
    expect(monitor.metadata).toMatchObject({ labels: { release: 'prometheus' } });
    expect(monitor.spec).toMatchObject({
      selector: { matchLabels: { 'app.kubernetes.io/component': 'agent' } },
      podMetricsEndpoints: [{ port: 'metrics', path: '/metrics', interval: '15s', honorLabels: true }],
    });
    expect(templateOf(all).metadata.labels).toMatchObject({ 'app.kubernetes.io/component': 'agent' });
    expect(podSpec(all).containers[0]).toMatchObject({
      ports: [{ name: 'metrics', containerPort: 9_999, hostPort: 9_999 }],
    });
    expect(listening(all)).toBe('0.0.0.0:9999');
  });

  it('rolls the agents out, whose configuration it changes', async () => {
    expect(await checksum({ podMonitor: { enabled: true } })).not.toBe(await checksum({}));
  });

  it('leaves an address that is configured, if its port is the same', async () => {
    expect(listening(await monitored({}, { metrics: { listen: '[::]:9464' } }))).toBe('[::]:9464');
    const { code, stderr } = await helm(['template'], {
      podMonitor: { enabled: true },
      config: { metrics: { listen: '0.0.0.0:9100' } },
    });
    expect(code).not.toBe(0);
    expect(stderr).toContain('config.metrics.listen is 0.0.0.0:9100, but podMonitor.port is 9464');
  });
});

describe('a proxy that is resized', () => {
  it('is so by the rights of deploy/capacity, in its own namespace alone', async () => {
    const target = { namespace: 'mesh', selector: 'app=proxy', container: 'proxy' };
    const added = async (mode: string) =>
      (await rendered({ config: { capacity: { mode, target } } })).filter(({ kind }) =>
        ['Role', 'RoleBinding'].includes(kind ?? ''),
      );
    expect(await added('report')).toEqual([]);
    const file = readFileSync(join(ROOT, 'deploy/capacity/rbac.yaml'), 'utf8');
    const [role, binding] = parseAllDocuments(file).map((document) => document.toJS() as Manifest);
    const inMesh = (object: Manifest | undefined) => ({
      ...object,
      metadata: { name: 'nodesentry-capacity', namespace: 'mesh' },
    });
    expect(await added('resize')).toMatchObject([inMesh(role), inMesh(binding)]);
  });
});

describe('the webhook', () => {
  it('is off by default, and where it is on, the objects of deploy/webhook', async () => {
    const base = objects(await rendered());
    const added = Object.entries(objects(await rendered({ webhook: { enabled: true } }))).filter(
      ([name]) => base[name] === undefined,
    );
    expect(added.length).toBe(11);
    expect(Object.fromEntries(added)).toEqual(objects(await kustomize('webhook')));
  });

  it('fails, waits and tells pods as the values say', async () => {
    const values = {
      failurePolicy: 'Fail',
      timeoutSeconds: 7,
      proxyPort: 16_001,
      direct: ['localhost', '10.0.0.0/8'],
    };
    const all = await rendered({ webhook: { enabled: true, replicas: 3, ...values } });
    for (const kind of ['MutatingWebhookConfiguration', 'ValidatingWebhookConfiguration']) {
      expect(only(all, kind)).toMatchObject({ webhooks: [{ failurePolicy: 'Fail', timeoutSeconds: 7 }] });
    }
    const { spec } = only(all, 'Deployment');
    expect(spec).toMatchObject({ replicas: 3 });
    expect(spec?.template.spec.containers[0]?.args).toEqual([
      'webhook',
      '--proxy-port=16001',
      '--direct=localhost,10.0.0.0/8',
    ]);
  });
});

describe('a wrong value', () => {
  it.each<[object, string]>([
    [{ images: {} }, "additional properties 'images' not allowed"],
    [{ image: { tag: 1.1 } }, "at '/image/tag': got number, want string"],
    [{ image: { digest: 'sha256:12' } }, "at '/image/digest': 'sha256:12' does not match pattern"],
    [{ image: { pullPolicy: 'Sometimes' } }, "at '/image/pullPolicy': value must be one of"],
    [{ tolerations: [{ operator: 'Exists', effekt: 'NoSchedule' }] }, "at '/tolerations/0': additional prop"],
    [{ updateStrategy: { rollingUpdate: { maxSurge: 1 } } }, "at '/updateStrategy/rollingUpdate/maxSurge'"],
    [{ config: { interception: { failure: 'never' } } }, "at '/config/interception/failure': value must be"],
    [
      { config: { sources: { cni: { install: 'yes please' } } } },
      "at '/config/sources/cni/install': got string",
    ],
    [
      { config: { sources: { cri: null, kubernetes: null, cni: null } } },
      "at '/config/sources': minProperties",
    ],
    [
      { config: { instances: [{ outbound: '127.0.0.1:15001' }] } },
      "at '/config/instances/0': missing property",
    ],
    [{ podMonitor: { interval: 'often' } }, "at '/podMonitor/interval': 'often' does not match pattern"],
    [{ webhook: { failurePolicy: 'Never' } }, "at '/webhook/failurePolicy': value must be one of"],
    [{ webhook: { direct: ['a,b'] } }, "at '/webhook/direct/0': 'a,b' does not match pattern"],
    // It would be the name of every node.
    [{ config: { node: 'node-a' } }, "at '/config': additional properties 'node' not allowed"],
  ])('is refused by its name: %j', async (values, message) => {
    const { code, stderr } = await helm(['template'], values);
    expect(code).not.toBe(0);
    expect(stderr).toContain(message);
  });
});

describe('the documentation', () => {
  it('has a row for every value, and for no other', () => {
    const values = parse(readFileSync(join(CHART, 'values.yaml'), 'utf8')) as Record<string, object>;
    const names = Object.entries(values).flatMap(([name, value]) =>
      ['image', 'podMonitor', 'webhook'].includes(name)
        ? Object.keys(value).map((key) => `${name}.${key}`)
        : [name],
    );
    const rows = [...readFileSync(join(CHART, 'README.md'), 'utf8').matchAll(/^\| `([\w.]+)` \|/gm)];
    expect(rows.map(([, name]) => name)).toEqual(names);
  });
});
