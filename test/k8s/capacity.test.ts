/** The node's proxy is resized by the real kubelet to what the pods say; the kernel's own limit is the judge beside it. */

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { CapacityReport } from '../../src/capacity/report.js';
import { waitFor } from '../lab/exec.js';
import { patient } from '../lab/patience.js';
import { ENROLLED, Installation, ROOT, SYSTEM } from './installation.js';

const MI = 2 ** 20;
const HELD_BYTES = 96 * MI;
const DOWN_SECONDS = 5;
const WAIT_MS = 60_000;

/** Holds memory as a proxy does, until it finds /tmp/free. */
const STAND_IN = `(busybox head -c ${HELD_BYTES} /dev/zero; while [ ! -e /tmp/free ]; do sleep 1; done) |
  busybox tail -c ${HELD_BYTES} >/dev/null; exec sleep 1000000`;

const APPS = [
  { app: 'one', pods: 1, shared: { cpu: '20m', memory: '16Mi' }, pod: { cpu: '5m', memory: '4Mi' } },
  { app: 'two', pods: 2, shared: { cpu: '30m', memory: '24Mi' }, pod: { cpu: '6m', memory: '4Mi' } },
  { app: 'four', pods: 4, shared: { cpu: '40m', memory: '32Mi' }, pod: { cpu: '7m', memory: '4Mi' } },
] as const;

interface Given {
  readonly requests?: { readonly cpu?: string; readonly memory?: string };
  readonly limits?: { readonly memory?: string };
}
interface ContainerStatus {
  readonly restartCount: number;
  readonly resources?: Given;
  readonly allocatedResources?: Given['requests'];
}

let site: Installation;

beforeAll(async () => {
  site = await Installation.prepare();
  await site.cluster.kubectl(['apply', '-k', overlay()]);
  await site.rolledOut('daemonset/nodesentry', SYSTEM);
  const container = {
    resources: { requests: { cpu: '20m', memory: '32Mi' }, limits: { memory: '128Mi' } },
  };
  const command = ['/bin/sh', '-c', STAND_IN];
  await site.deploy('mesh', { namespace: SYSTEM, command, container });
}, patient(300_000));

afterAll(async () => {
  await site?.close();
});

/** examples/cluster with deploy/capacity and a configuration of our own. */
function overlay(): string {
  const folder = join(site.lab.directory, 'overlay');
  mkdirSync(folder);
  const from = (path: string) => relative(folder, join(ROOT, path));
  const capacity = `
capacity:
  mode: resize
  target: {namespace: ${SYSTEM}, selector: app=mesh, container: app}
  base: {cpu: 50m, memory: 32Mi}
  headroomPercent: 50
  hysteresis: {downSeconds: ${DOWN_SECONDS}, percent: 10}
`;
  writeFileSync(
    join(folder, 'config.yaml'),
    readFileSync(join(ROOT, 'examples/cluster/config.yaml'), 'utf8') + capacity,
  );
  writeFileSync(
    join(folder, 'kustomization.yaml'),
    JSON.stringify({
      apiVersion: 'kustomize.config.k8s.io/v1beta1',
      kind: 'Kustomization',
      resources: [from('examples/cluster')],
      components: [from('deploy/capacity')],
      configMapGenerator: [
        { name: 'nodesentry-config', namespace: SYSTEM, behavior: 'replace', files: ['config.yaml'] },
      ],
    }),
  );
  return folder;
}

async function status(): Promise<ContainerStatus> {
  const [pod] = await site.podsOf('mesh', SYSTEM);
  const told = pod?.status as { containerStatuses?: readonly ContainerStatus[] } | undefined;
  const [found] = told?.containerStatuses ?? [];
  if (found === undefined) {
    throw new Error('the kubelet tells nothing of the container');
  }
  return found;
}

/** As the kubelet tells it, once `is` holds of it. */
async function resized(is: (carriedOut: ContainerStatus) => boolean): Promise<ContainerStatus> {
  let seen: ContainerStatus | undefined;
  try {
    await waitFor(
      'the kubelet to resize it',
      async () => {
        seen = await status();
        return is(seen);
      },
      WAIT_MS,
      200,
    );
  } catch (error) {
    const told = await site.nodesentry('capacity').catch((why: Error) => why.message);
    throw new Error(`${(error as Error).message}: ${JSON.stringify(seen)}\n${told}`);
  }
  return seen as ContainerStatus;
}

const mebibytes = (text: string | undefined) =>
  Number(/^(\d+)Mi$/.exec(text ?? '')?.[1] ?? Number(text) / MI);

/** The limit that the container's own processes are held to. */
async function kernelLimit(): Promise<number> {
  const read = 'cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes';
  const words = ['-n', SYSTEM, 'exec', 'deployment/mesh', '--', '/bin/sh', '-c', read];
  return Number(await site.cluster.kubectl(words)) / MI;
}

const report = async () => JSON.parse(await site.nodesentry('capacity', '--json')) as CapacityReport;

test('it has what is added, what is shared once for each app and the rest for each pod, before one of them is ready', async () => {
  for (const { app, pods, shared, pod } of APPS) {
    const spec = site.deployment(app, {
      labels: ENROLLED,
      replicas: pods,
      container: { readinessProbe: { tcpSocket: { port: 81 } } },
    });
    const { template } = spec.spec as { template: { metadata: { annotations?: object } } };
    template.metadata.annotations = { 'nodesentry.io/mesh-resources': JSON.stringify({ shared, pod }) };
    await site.cluster.apply(spec);
  }
  // 50m + 20m + 30m + 40m + 5m + 2 * 6m + 4 * 7m; 32 + 16 + 24 + 32 + 7 * 4 mebibytes, and half as much again.
  const requests = { cpu: '185m', memory: '132Mi' };
  // The kubelet carries it out, and tells of it, one quantity after the other.
  const { restartCount } = await resized(
    ({ resources, allocatedResources }) =>
      isDeepStrictEqual(resources, { requests, limits: { memory: '198Mi' } }) &&
      isDeepStrictEqual(allocatedResources, requests),
  );
  expect(restartCount).toBe(0);
  expect(await kernelLimit()).toBe(198);
  // The stand-in may still be filling up.
  const holds = async () => ((await report()).target?.usedMemoryBytes ?? 0) > HELD_BYTES;
  await waitFor('it to hold its memory', holds, WAIT_MS, 200);
  const { apps, target } = await report();
  expect(apps.filter(({ namespace }) => namespace === 'default').map(({ app, pods }) => [app, pods])).toEqual(
    [
      ['four', 4],
      ['one', 1],
      ['two', 2],
    ],
  );
  expect(target).toMatchObject({ wanted: { cpuMillis: 185, memoryBytes: 132 * MI } });
  expect(target?.usedMemoryBytes).toBeLessThan(HELD_BYTES * 1.1);
}, 120_000);

test('it follows a scale-down after the hysteresis, but keeps the memory that it holds until that is free', async () => {
  for (const { app } of APPS.slice(1)) {
    await site.cluster.kubectl(['scale', `deployment/${app}`, '--replicas=0']);
  }
  await waitFor(
    'their pods to go',
    async () => (await report()).target?.wanted.cpuMillis === 75,
    WAIT_MS,
    100,
  );
  const goneMs = Date.now();
  const { resources, restartCount } = await resized(
    ({ resources: now }) => now?.requests?.cpu === '75m' && mebibytes(now.requests.memory) < 132,
  );
  expect(Date.now() - goneMs).toBeGreaterThan((DOWN_SECONDS - 1) * 1_000);
  expect(mebibytes(resources?.requests?.memory)).toBeGreaterThanOrEqual(96);
  expect(mebibytes(resources?.requests?.memory)).toBeLessThan(110);
  expect(mebibytes(resources?.limits?.memory)).toBeGreaterThan(110);
  expect(restartCount).toBe(0);
  const free = ['-n', SYSTEM, 'exec', 'deployment/mesh', '--', '/bin/sh', '-c', ': >/tmp/free'];
  await site.cluster.kubectl(free);
  const after = await resized(
    ({ resources: now }) => now?.requests?.memory === '52Mi' && now.limits?.memory === '78Mi',
  );
  expect(after.restartCount).toBe(0);
  expect(await kernelLimit()).toBe(78);
}, 180_000);
