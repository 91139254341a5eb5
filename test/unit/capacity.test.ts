/** What pods say that their node's proxy needs, and what is made of it. */

import { describe, expect, it } from 'vitest';
import { appNeeds, needOf } from '../../src/capacity/sums.js';
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
