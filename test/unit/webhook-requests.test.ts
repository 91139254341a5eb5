/** What the webhook adds to the requests of pods that ask for it. */

import { describe, expect, it } from 'vitest';
import { meshRequestsPatch } from '../../src/webhook/mesh-requests.js';
import { podSchema } from '../../src/webhook/written-pod.js';

const ASKS = {
  'nodesentry.io/mesh-requests': 'enabled',
  'nodesentry.io/mesh-resources':
    '{"shared": {"cpu": "100m", "memory": "64Mi"}, "pod": {"cpu": "10m", "memory": "8Mi"}}',
};

function patchOf(resources?: object, annotations: object = ASKS) {
  const containers = [{ name: 'app', ...(resources && { resources }) }, { name: 'other' }];
  return meshRequestsPatch(podSchema.parse({ metadata: { annotations }, spec: { containers } }));
}

describe('a pod that asks for it', () => {
  it.each([
    ['that has none', undefined, { requests: { cpu: '10m', memory: '8Mi' } }],
    [
      'and limits where it has them',
      { requests: { cpu: '0.5', memory: '64Mi', 'x/y': '1' }, limits: { memory: '64Mi' }, claims: [] },
      {
        requests: { cpu: '510m', memory: '72Mi', 'x/y': '1' },
        limits: { memory: '72Mi' },
        claims: [],
      },
    ],
    ['written as numbers', { requests: { cpu: 1 } }, { requests: { cpu: '1010m', memory: '8Mi' } }],
  ])('has its share added to the requests of its first container: %s', (_, given, value) => {
    expect(patchOf(given)).toEqual([
      { op: 'add', path: '/spec/containers/0/resources', value },
      {
        op: 'add',
        path: '/metadata/annotations/nodesentry.io~1mesh-requests-added',
        value: 'cpu 10m, memory 8Mi',
      },
    ]);
  });

  it('is not changed by a second call', () => {
    expect(patchOf({}, { ...ASKS, 'nodesentry.io/mesh-requests-added': 'cpu 10m' })).toEqual([]);
  });

  it.each([
    ['does not ask', { ...ASKS, 'nodesentry.io/mesh-requests': 'disabled' }],
    ['says nothing of what it needs', { 'nodesentry.io/mesh-requests': 'enabled' }],
    ['says what is not understood', { ...ASKS, 'nodesentry.io/mesh-resources': '{"pod": 1}' }],
  ])('is left alone where it %s', (_, annotations) => {
    expect(patchOf({}, annotations)).toEqual([]);
  });
});
