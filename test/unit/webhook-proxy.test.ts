/** What pods in explicit mode are given, and what becomes of a review that is none. */

import { describe, expect, it } from 'vitest';
import { explicitProxyPatch } from '../../src/webhook/explicit-proxy.js';
import { type PatchOperation, readReview, reviewAnswer } from '../../src/webhook/review.js';
import { podSchema } from '../../src/webhook/written-pod.js';

const PROXY = { port: 15_001, noProxy: 'localhost,127.0.0.1,10.0.0.0/8' };
const EXPLICIT = { 'nodesentry.io/explicit-proxy': 'enabled' };
const URL = 'http://$(NODESENTRY_NODE_IP):15001';
const ALL = [
  ['NODESENTRY_NODE_IP', undefined],
  ['HTTP_PROXY', URL],
  ['http_proxy', URL],
  ['HTTPS_PROXY', URL],
  ['https_proxy', URL],
  ['NO_PROXY', PROXY.noProxy],
  ['no_proxy', PROXY.noProxy],
];

interface Container {
  readonly name: string;
  readonly env?: readonly { readonly name: string; readonly value?: string }[];
}
interface PodObject {
  metadata: { annotations?: object; labels?: object };
  spec: { containers: Container[]; initContainers?: Container[] };
}

const pod = (
  containers: Container[],
  initContainers?: Container[],
  annotations: object = EXPLICIT,
): PodObject => ({
  metadata: { annotations },
  spec: { containers, ...(initContainers && { initContainers }) },
});
const patchOf = (object: unknown) => explicitProxyPatch(podSchema.parse(object), PROXY);

/** `add` at a member of an object (RFC 6902, 4.1), which is all that we send. */
function patched(object: PodObject, patch: readonly PatchOperation[]): PodObject {
  const copy = structuredClone(object);
  for (const { path, value } of patch) {
    const names = path.slice(1).split('/');
    const last = names.pop() ?? '';
    const parent = names.reduce<unknown>((at, name) => (at as Record<string, unknown>)[name], copy);
    (parent as Record<string, unknown>)[last] = value;
  }
  return copy;
}
const variables = ({ env = [] }: Container) => env.map(({ name, value }) => [name, value]);

describe('a pod in explicit mode', () => {
  it('has the proxy of its node in every container, with the address before those that refer to it', () => {
    const object = pod([{ name: 'a' }, { name: 'b', env: [] }], [{ name: 'init' }]);
    const { spec } = patched(object, patchOf(object));
    for (const container of [...spec.containers, ...(spec.initContainers ?? [])]) {
      expect(variables(container)).toEqual(ALL);
      expect(container.env?.[0]).toMatchObject({ valueFrom: { fieldRef: { fieldPath: 'status.hostIP' } } });
    }
  });

  it('is not changed by a second call', () => {
    const object = pod([{ name: 'a', env: [{ name: 'TZ', value: 'UTC' }] }], [{ name: 'init' }]);
    expect(patchOf(patched(object, patchOf(object)))).toEqual([]);
  });

  it('keeps what it has itself, in either spelling, and all of it', () => {
    const own = [
      { name: 'https_proxy', value: 'http://other:1' },
      { name: 'TOKEN', valueFrom: { secretKeyRef: { name: 's', key: 'k', optional: true } } },
      { name: 'NO_PROXY', value: '' },
    ];
    const object = pod([{ name: 'a', env: own }]);
    const [container] = patched(object, patchOf(object)).spec.containers;
    expect(container?.env?.slice(0, 3)).toEqual(own);
    expect(container?.env?.slice(3).map(({ name }) => name)).toEqual([
      'NODESENTRY_NODE_IP',
      'HTTP_PROXY',
      'http_proxy',
    ]);
  });

  it('may say so by a label, and takes it back by an annotation', () => {
    const object = { ...pod([{ name: 'a' }], undefined, {}), metadata: { labels: EXPLICIT } };
    expect(patchOf(object)).toHaveLength(1);
    const annotations = { 'nodesentry.io/explicit-proxy': 'disabled' };
    expect(patchOf({ ...object, metadata: { labels: EXPLICIT, annotations } })).toEqual([]);
  });

  it.each([{}, { 'nodesentry.io/intercept': 'enabled' }, { 'nodesentry.io/explicit-proxy': 'true' }])(
    'is none that says %j',
    (annotations) => {
      expect(patchOf(pod([{ name: 'a' }], undefined, annotations))).toEqual([]);
    },
  );
});

describe('a review', () => {
  const review = {
    apiVersion: 'admission.k8s.io/v1',
    kind: 'AdmissionReview',
    request: {
      uid: 'u-1',
      kind: { group: '', version: 'v1', kind: 'Pod' },
      operation: 'CREATE',
      object: pod([{ name: 'a' }]),
    },
  };

  it('is answered by its UID, with the patch or the reason', () => {
    const request = readReview(review);
    expect(reviewAnswer(request, {})).toMatchObject({ response: { uid: 'u-1', allowed: true } });
    const patch: PatchOperation[] = [{ op: 'add', path: '/x', value: 'ü' }];
    const { response } = reviewAnswer(request, { patch }) as {
      response: { patch: string; patchType: string };
    };
    expect(response.patchType).toBe('JSONPatch');
    expect(JSON.parse(Buffer.from(response.patch, 'base64').toString())).toEqual(patch);
    expect(reviewAnswer(request, { refusal: 'why' })).toMatchObject({
      response: { uid: 'u-1', allowed: false, status: { message: 'why' } },
    });
  });

  it.each<[string, unknown]>([
    ['apiVersion', { ...review, apiVersion: 'admission.k8s.io/v1beta1' }],
    ['kind', { ...review, kind: 'Pod' }],
    ['request', { ...review, request: undefined }],
    ['request.uid', { ...review, request: { ...review.request, uid: '' } }],
    ['request.operation', { ...review, request: { ...review.request, operation: 'DELETE' } }],
    ['request.object.spec', { ...review, request: { ...review.request, object: { metadata: {} } } }],
    [
      'request.kind.kind',
      { ...review, request: { ...review.request, kind: { group: '', version: 'v1', kind: 'Job' } } },
    ],
  ])('without a right %s is refused by that name', (field, body) => {
    expect(() => readReview(body)).toThrow(
      `expected an AdmissionReview of admission.k8s.io/v1 for a Pod: ${field}: `,
    );
  });
});
