/** What pods say that their node's proxy needs, and what is made of it. */

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { containerOf, targetPodSchema } from '../../src/capacity/container.js';
import { processesOf } from '../../src/capacity/container-processes.js';
import { Resizer } from '../../src/capacity/resizer.js';
import { appNeeds, needOf } from '../../src/capacity/sums.js';
import { TargetApi } from '../../src/capacity/target.js';
import { parseConfig } from '../../src/config/load.js';
import { capacityChecks } from '../../src/doctor/capacity.js';
import { runChecks } from '../../src/doctor/check.js';
import { interceptionOf } from '../../src/pods/annotations.js';
import type { Pod } from '../../src/pods/pod.js';
import { parseCpu, parseMemory } from '../../src/pods/quantity.js';
import { pod } from './api-fixture.js';

const MI = 2 ** 20;
const DEFAULTS = { enrol: 'labelled', failure: 'closed', other: 'pass' } as const;
const KEY = 'nodesentry.io/mesh-resources';

function meshed(name: string, app: string, said: object | undefined, fields: Partial<Pod> = {}): Pod {
  return pod(name, {
    labels: { app, 'nodesentry.io/intercept': 'enabled' },
    annotations: said === undefined ? {} : { [KEY]: JSON.stringify(said) },
    ...fields,
  });
}

const need = (cpuMillis: number, mebibytes: number) => ({ cpuMillis, memoryBytes: mebibytes * MI });

describe('a quantity', () => {
  it.each([
    ['100m', 100, 1],
    ['1', 1_000, 1],
    ['0.1', 100, 1],
    ['1.1', 1_100, 2],
    ['.5', undefined, undefined],
    ['1.', 1_000, 1],
    ['+2', 2_000, 2],
    ['2500u', 3, 1],
    ['1n', 1, 1],
    ['64Mi', 64_000 * MI, 64 * MI],
    ['1.5Gi', 1_536_000 * MI, 1_536 * MI],
    ['1k', 1_000_000, 1_000],
    ['3M', 3_000_000_000, 3_000_000],
    ['1e3', 1_000_000, 1_000],
    ['1E2', 100_000, 100],
    ['12e-1', 1_200, 2],
    ['0', 0, 0],
    ['-1', undefined, undefined],
    ['', undefined, undefined],
    ['1 Mi', undefined, undefined],
    ['1mi', undefined, undefined],
    ['1e', undefined, undefined],
    ['0x10', undefined, undefined],
    ['Infinity', undefined, undefined],
    ['99Ei', undefined, undefined],
  ])('%j: %j thousandths of a processor, %j bytes', (text, cpu, memory) => {
    expect([parseCpu(text), parseMemory(text)]).toEqual([cpu, memory]);
  });
});

describe('the annotation', () => {
  it('may leave out what is nothing', () => {
    const { meshResources, problems } = interceptionOf(meshed('a', 'a', { pod: { cpu: '10m' } }), DEFAULTS);
    expect(meshResources).toEqual({ shared: need(0, 0), pod: need(10, 0) });
    expect(problems).toEqual([]);
  });

  it.each([
    'shared: cpu=100m',
    '[]',
    'null',
    '{"shared": {"cpu": 1}}',
    '{"shared": {"cpu": "-1"}}',
    '{"shared": {"disk": "1Gi"}}',
    '{"both": {}}',
  ])('%s is told, and counts as not given', (text) => {
    const said = meshed('a', 'a', undefined, { annotations: { [KEY]: text } });
    const { enrolled, meshResources, problems } = interceptionOf(said, DEFAULTS);
    expect({ enrolled, meshResources }).toEqual({ enrolled: true, meshResources: undefined });
    expect(problems).toEqual([
      `${KEY}: expected JSON of quantities such as {"shared": {"cpu": "100m", "memory": "64Mi"}, "pod": {"cpu": "10m", "memory": "8Mi"}}, got ${JSON.stringify(text)}`,
    ]);
  });
});

describe('the sum over the pods of a node', () => {
  const said = { shared: { cpu: '100m', memory: '64Mi' }, pod: { cpu: '10m', memory: '8Mi' } };

  it('has what is shared once for each app, and the rest for each pod', () => {
    const pods = [
      meshed('a-0', 'a', said),
      meshed('b-0', 'b', said),
      meshed('b-1', 'b', said),
      ...[0, 1, 2, 3].map((index) => meshed(`c-${index}`, 'c', said)),
    ];
    const apps = appNeeds(pods, DEFAULTS);
    expect(apps.map(({ app, pods: count, sum }) => [app, count, sum])).toEqual([
      ['a', 1, need(110, 72)],
      ['b', 2, need(120, 80)],
      ['c', 4, need(140, 96)],
    ]);
    expect(needOf(apps)).toEqual({
      pods: 7,
      shared: need(300, 192),
      perPod: need(70, 56),
      sum: need(370, 248),
    });
  });

  it('has the largest of what the pods of an app say, whichever comes first, and tells that they differ', () => {
    const other = { shared: { cpu: '300m', memory: '16Mi' } };
    for (const order of [
      [said, other, said],
      [other, said, other],
    ]) {
      const [app] = appNeeds(
        order.map((one, index) => meshed(`a-${index}`, 'a', one)),
        DEFAULTS,
      );
      expect(app?.shared).toEqual(need(300, 64));
      expect(app?.problem).toBe('its pods differ in what they say of shared: the largest counts');
    }
  });

  it('has two apps of one name in two namespaces, and a pod of no app by itself', () => {
    const labels = { 'nodesentry.io/intercept': 'enabled' };
    const apps = appNeeds(
      [
        meshed('a', 'a', said),
        meshed('b', 'a', said, { namespace: 'other' }),
        meshed('c', '', said, { labels }),
        meshed('d', '', said, { labels }),
      ],
      DEFAULTS,
    );
    expect(apps.map(({ namespace, app, shared }) => [namespace, app, shared.cpuMillis])).toEqual([
      ['default', '', 100],
      ['default', '', 100],
      ['default', 'a', 100],
      ['other', 'a', 100],
    ]);
  });

  it('has no pod that is not enrolled or is on the host’s network; one that says nothing counts nothing', () => {
    const apps = appNeeds(
      [
        meshed('a', 'a', said, { labels: { app: 'a' } }),
        meshed('b', 'b', said, { hostNetwork: true }),
        meshed('c', 'c', undefined),
      ],
      DEFAULTS,
    );
    expect(apps.map(({ app, pods, sum, problem }) => [app, pods, sum, problem])).toEqual([
      ['c', 1, need(0, 0), ''],
    ]);
  });
});

/** A target whose pod is a plain object: a resize is carried out at once. */
function targetOf(capacity: string) {
  const { node, capacity: read } = parseConfig(
    `node: node-a
sources: {kubernetes: {}}
capacity: {target: {namespace: mesh, selector: app=proxy, container: proxy}, ${capacity}}`,
    'config.yaml',
  );
  const resources = (requests: object, limits: object) => ({ requests, limits });
  const first = resources({ cpu: '50m', memory: '64Mi' }, { memory: '256Mi' });
  const podObject = {
    metadata: { name: 'proxy-x' },
    spec: { containers: [{ name: 'proxy', resources: first }] },
    status: {
      phase: 'Running',
      qosClass: 'Burstable',
      conditions: [] as object[],
      containerStatuses: [{ name: 'proxy', containerID: 'containerd://abc', resources: first }],
    },
  };
  const state = { nowMs: 0, pods: [podObject] as object[], sum: need(0, 0), used: 0 as number | undefined };
  const calls: { path: string; patch: unknown }[] = [];
  const told: string[] = [];
  const log = {
    info: (_: object, message: string) => void told.push(message),
    warn: (_: object, message: string) => void told.push(message),
    error: (_: object, message: string) => void told.push(message),
  };
  const client = {
    get: async () => structuredClone({ metadata: { resourceVersion: '1' }, items: state.pods }),
    write: async ({ path }: { path: string }, write: object) => {
      const { patch } = write as { patch: { spec: { containers: [{ resources: typeof first }] } } };
      calls.push({ path, patch });
      const to = { ...patch.spec.containers[0].resources };
      podObject.spec.containers[0] = { name: 'proxy', resources: to };
      podObject.status.containerStatuses[0] = {
        name: 'proxy',
        containerID: 'containerd://abc',
        resources: to,
      };
    },
  };
  const target = { namespace: 'mesh', selector: 'app=proxy', container: 'proxy' };
  const resizer = new Resizer({
    config: { ...read, target },
    api: new TargetApi(client, target, node),
    sum: () => state.sum,
    usedBytes: (id) => (id === 'abc' ? state.used : undefined),
    nowMs: () => state.nowMs,
    unixMs: () => 1_700_000_000_000 + state.nowMs,
    log,
  });
  const step = async (seconds = 0) => {
    state.nowMs += seconds * 1_000;
    await resizer.step(new AbortController().signal);
    return { now: containerOf(targetPodSchema.parse(podObject), 'proxy')?.now };
  };
  return { state, calls, told, resizer, step, podObject };
}

const RESIZE = 'mode: resize, base: {cpu: 50m, memory: 32Mi}, headroomPercent: 50';
const allotted = (cpu: number, memory: number, limit: number) => ({
  requests: need(cpu, memory),
  limits: { cpuMillis: null, memoryBytes: limit * MI },
});

describe('the container of the target', () => {
  it('is made larger at once, with its limits above by the headroom, by its subresource and nothing else', async () => {
    const { state, calls, step, resizer } = targetOf(RESIZE);
    state.sum = need(370, 248);
    expect((await step()).now).toEqual(allotted(420, 280, 420));
    expect(calls).toEqual([
      {
        path: '/api/v1/namespaces/mesh/pods/proxy-x/resize',
        patch: {
          spec: {
            containers: [
              {
                name: 'proxy',
                resources: {
                  requests: { cpu: '420m', memory: '280Mi' },
                  limits: { memory: '420Mi' },
                },
              },
            ],
          },
        },
      },
    ]);
    await step(60);
    expect(calls.length).toBe(1);
    expect(resizer.report()).toMatchObject({
      state: 'FITS',
      podName: 'proxy-x',
      wanted: need(420, 280),
      lastResize: { ...allotted(420, 280, 420), atMs: 1_700_000_000_000 },
    });
  });

  it('is made smaller only after a while, which begins anew when it was needed in between', async () => {
    const { state, step } = targetOf(`${RESIZE}, hysteresis: {downSeconds: 100, percent: 10}`);
    state.sum = need(350, 268);
    await step();
    state.sum = need(150, 168);
    expect((await step(1)).now).toEqual(allotted(400, 300, 450));
    expect((await step(99)).now).toEqual(allotted(400, 300, 450));
    state.sum = need(350, 268);
    await step(1);
    state.sum = need(150, 168);
    await step(1);
    expect((await step(99)).now).toEqual(allotted(400, 300, 450));
    expect((await step(1)).now).toEqual(allotted(200, 200, 300));
  });

  it('stays as it is where it would be smaller by no more than the percentage', async () => {
    const { state, step } = targetOf(`${RESIZE}, hysteresis: {downSeconds: 0, percent: 10}`);
    state.sum = need(50, 68);
    await step();
    state.sum = need(40, 58);
    expect((await step(100)).now).toEqual(allotted(100, 100, 150));
    state.sum = need(39, 57);
    expect((await step(100)).now).toEqual(allotted(89, 89, 133.5));
  });

  it('is never made larger than the limit, which is told', async () => {
    const { state, step, told, resizer } = targetOf(`${RESIZE}, limit: {cpu: 200m, memory: 256Mi}`);
    state.sum = need(370, 248);
    expect((await step()).now).toEqual(allotted(200, 256, 256));
    const reason =
      '420m, 280.0 MiB is needed, which is above capacity.limit: no more than 200m, 256.0 MiB is asked for';
    expect(resizer.report()).toMatchObject({ state: 'DEGRADED', reason });
    await step(60);
    expect(told.filter((line) => line === `capacity: ${reason}`).length).toBe(1);
  });

  it('is never given less memory than it holds, nor less at all where nobody can read that', async () => {
    const { state, step } = targetOf(`${RESIZE}, hysteresis: {downSeconds: 0, percent: 10}`);
    state.sum = need(350, 268);
    state.used = 250.5 * MI;
    await step();
    state.sum = need(50, 68);
    expect((await step(10)).now).toEqual(allotted(100, 251, 376.5));
    state.used = undefined;
    expect((await step(10)).now).toEqual(allotted(100, 251, 376.5));
    state.used = 400 * MI;
    expect((await step(10)).now).toEqual(allotted(100, 251, 376.5));
    state.used = 10 * MI;
    expect((await step(10)).now).toEqual(allotted(100, 100, 150));
  });

  it('keeps limits that are its requests, where the pod is Guaranteed', async () => {
    const { state, step, podObject } = targetOf(RESIZE);
    podObject.status.qosClass = 'Guaranteed';
    const same = { cpu: '50m', memory: '64Mi' };
    podObject.spec.containers[0] = { name: 'proxy', resources: { requests: same, limits: same } as never };
    state.sum = need(50, 68);
    expect((await step()).now).toEqual({ requests: need(150, 150), limits: need(150, 150) });
  });

  it('is only looked at by default', async () => {
    const { state, calls, step, resizer } = targetOf('base: {cpu: 50m}');
    await step();
    expect(resizer.report()).toMatchObject({ state: 'FITS', usedMemoryBytes: 0 });
    state.sum = need(370, 248);
    await step();
    expect(calls).toEqual([]);
    expect(resizer.report()).toMatchObject({
      state: 'DEGRADED',
      reason: 'its requests are less than is wanted, and capacity.mode is report',
    });
  });

  it.each(['Infeasible', 'Deferred'])('that the kubelet calls %s is told', async (reason) => {
    const { step, resizer, podObject } = targetOf(RESIZE);
    const message = 'Node did not have enough capacity';
    podObject.status.conditions = [{ type: 'PodResizePending', status: 'True', reason, message }];
    await step();
    expect(resizer.report()).toMatchObject({
      state: 'DEGRADED',
      reason: `the kubelet does not resize it: ${reason}: ${message}`,
    });
  });

  it('is that of the one pod of the node which lives', async () => {
    const { state, step, resizer, podObject } = targetOf(RESIZE);
    const going = { ...podObject, metadata: { name: 'old', deletionTimestamp: '2026-11-29T00:00:00Z' } };
    const ended = { ...podObject, metadata: { name: 'done' }, status: { phase: 'Failed' } };
    const failed = async (pods: object[]) => {
      state.pods = pods;
      await expect(step(10)).rejects.toThrow();
      return resizer.report().reason;
    };
    expect(await failed([going, ended])).toBe('no pod of this node has the labels app=proxy');
    expect(await failed([podObject, { ...podObject, metadata: { name: 'two' } }])).toBe(
      'more than one pod of this node has the labels app=proxy: proxy-x, two',
    );
    expect(await failed([{ ...podObject, spec: { containers: [{ name: 'other' }] } }])).toBe(
      'pod proxy-x has no container proxy',
    );
    state.pods = [going, ended, podObject];
    await step();
    expect(resizer.report()).toMatchObject({ state: 'FITS', podName: 'proxy-x' });
  });

  it('holds what the processes of its control group hold', () => {
    const proc = mkdtempSync(join(tmpdir(), 'nodesentry-proc-'));
    onTestFinished(() => rmSync(proc, { recursive: true }));
    const processes = {
      7: '0::/../cri-containerd-abc.scope',
      8: '0::/kubepods/pod1/abd',
      9: '0::/k/abc/inner',
    };
    for (const [pid, cgroup] of Object.entries(processes)) {
      mkdirSync(join(proc, pid));
      writeFileSync(join(proc, pid, 'cgroup'), cgroup);
    }
    mkdirSync(join(proc, '10'));
    expect(processesOf('abc', proc)).toEqual([7, 9]);
    expect(processesOf('', proc)).toEqual([]);
  });
});

describe('the section capacity', () => {
  const read = (capacity: string, sources = 'kubernetes: {}') =>
    parseConfig(`node: a\nsources: {${sources}}\ncapacity: ${capacity}`, 'config.yaml');
  const target = 'target: {namespace: mesh, selector: app=proxy, container: proxy}';

  it('takes quantities as they are written', () => {
    const { capacity } = read(`{mode: resize, ${target}, base: {cpu: 0.5, memory: 1Gi}, limit: {cpu: 2}}`);
    expect(capacity).toMatchObject({ base: need(500, 1_024), limit: { cpuMillis: 2_000 } });
  });

  it.each([
    ['{mode: resize}', 'kubernetes: {}', 'mode resize needs a target'],
    [`{${target}}`, 'cri: {}', 'sources.kubernetes is needed'],
    ['{base: {cpu: many}}', 'kubernetes: {}', 'a quantity of processors such as 100m'],
    ['{hysteresis: {percent: 101}}', 'kubernetes: {}', 'a whole number from 0 to 100'],
  ])('%s is refused', (capacity, sources, expected) => {
    expect(() => read(capacity, sources)).toThrow(expected);
  });
});

describe('doctor', () => {
  const config = parseConfig(
    'node: a\nsources: {kubernetes: {}}\ncapacity: {target: {namespace: mesh, selector: a=b, container: c}}',
    'config.yaml',
  );

  it('says what the agent says of the target, and nothing where none is configured', async () => {
    const told = (state: string, reason = '') =>
      runChecks(capacityChecks(config, async () => ({ target: { state, reason } })));
    expect(await told('FITS')).toMatchObject([{ status: 'ok' }]);
    const found = 'the proxy does not have what the pods need: too large';
    expect(await told('DEGRADED', 'too large')).toMatchObject([{ name: 'capacity', status: 'warn', found }]);
    const away = capacityChecks(config, () => Promise.reject(new Error('no agent answers')));
    expect(await runChecks(away)).toMatchObject([{ status: 'warn', advice: 'start the agent' }]);
    const none = parseConfig('node: a\nsources: {kubernetes: {}}', 'config.yaml');
    expect(capacityChecks(none, () => Promise.reject())).toEqual([]);
  });
});
