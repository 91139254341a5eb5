/** What the webhook refuses, and that the agent says the same of it. */

import { describe, expect, it } from 'vitest';
import type { Pod, PodUid } from '../../src/pods/pod.js';
import { Decisions } from '../../src/reconcile/decisions.js';
import { statusOf } from '../../src/reconcile/status.js';
import { readReview } from '../../src/webhook/review.js';
import { refusalOf } from '../../src/webhook/validation.js';
import { KernelStandIn, LinksStandIn, NO_SHAPERS, podNumber } from './reconcile-fixture.js';

type Texts = Readonly<Record<string, string>>;
interface Written {
  readonly annotations?: Texts;
  readonly labels?: Texts;
  readonly hostNetwork?: true;
  readonly owner?: { readonly kind: string; readonly name: string };
}

const ON = { 'nodesentry.io/intercept': 'enabled' };
const SERVED = ['web', 'payments'];
const isServed = (app: string | undefined) => app !== undefined && SERVED.includes(app);

const wrongValues: readonly (readonly [string, readonly string[]])[] = [
  ['intercept', ['', 'yes', 'true', 'Enabled', 'enabled ', 'on', '1', 'ENABLED', 'disable', '"enabled"']],
  ['failure', ['', 'ajar', 'Closed', 'open ', 'fail', 'closed,open']],
  ['other-protocols', ['', 'deny', 'Drop', 'drop;', 'none', 'pass\n']],
  ['explicit-proxy', ['', 'true', 'yes', 'Enabled', 'http://10.0.0.1:15001']],
  ['outbound', ['', '0', '99999', '80,', '90-80', 'http', '1-2-3', '-1', '80;81']],
  ['inbound', ['', '0', '65536', ',80', '8080-', 'ssh', 'x'.repeat(200)]],
  ['exclude-outbound-cidrs', ['', '10.0.0.0', '10.0.0.0/33', 'fd00::/129', 'all']],
];

const WRONG: readonly Written[] = [
  ...wrongValues.flatMap(([key, values]) =>
    values.map((value) => ({ annotations: { [`nodesentry.io/${key}`]: value } })),
  ),
  // As labels, where the API server lets the value through.
  { labels: { 'nodesentry.io/intercept': 'yes' } },
  { labels: { 'nodesentry.io/failure': 'ajar' } },
  { labels: ON, annotations: { 'nodesentry.io/intercept': 'no' } },
  // Several at once, of a pod that is intercepted all the same.
  {
    labels: { ...ON, app: 'web' },
    annotations: { 'nodesentry.io/failure': 'x', 'nodesentry.io/outbound': 'y' },
  },
  { labels: { ...ON, app: 'web' }, annotations: { 'nodesentry.io/inbound': '80-' } },
  { labels: { ...ON, app: 'web' }, annotations: { 'nodesentry.io/explicit-proxy': 'on' } },
  { labels: { ...ON, app: 'web' }, hostNetwork: true },
  { labels: ON, hostNetwork: true, annotations: { 'nodesentry.io/failure': 'ajar' } },
  { labels: { ...ON, app: 'unknown' } },
  { labels: { ...ON, 'nodesentry.io/app': 'other', app: 'web' } },
  { labels: { ...ON, 'app.kubernetes.io/name': 'other', app: 'web' } },
  { annotations: ON },
  { annotations: ON, owner: { kind: 'Deployment', name: 'nobody' } },
];

/** As `nodesentry pods` shows it: the decision's reason, or what an intercepted pod's row has after its state. */
async function saidByAgent({ labels = {}, annotations = {}, hostNetwork, owner }: Written): Promise<string> {
  const { owner: _, ...fields } = podNumber(0);
  const pod: Pod = {
    ...fields,
    labels,
    annotations,
    hostNetwork: hostNetwork ?? false,
    ...(owner === undefined ? {} : { owner }),
  };
  const decisions = new Decisions({
    store: { list: () => [pod], get: (uid: PodUid) => (uid === pod.uid ? pod : undefined) },
    links: new LinksStandIn(1).asPodLinks(),
    ...NO_SHAPERS,
    defaults: { enrol: 'labelled', failure: 'closed', other: 'pass' },
    instanceFor: (app) => (isServed(app) ? { name: 'default', number: 0, inbound: false } : undefined),
    instanceName: String,
    instanceNamed: () => undefined,
    drainOf: () => undefined,
    tables: new KernelStandIn().tables,
    authorities: [],
    log: { error: () => undefined },
  });
  await decisions.update('all');
  const decision = decisions.of(pod.uid);
  if (decision === undefined) {
    throw new Error('nothing was decided');
  }
  const observed = {
    installed: undefined,
    nodeProblem: 'NODE',
    proof: undefined,
    before: undefined,
    familiesOff: [],
  };
  return statusOf(decision, observed).reason?.replace(/^NODE; /, '') ?? '';
}

function reviewed(written: Written, more: object = {}, operation = 'CREATE') {
  const object = (given: Written, meta: object = {}) => ({
    metadata: {
      generateName: 'web-',
      labels: given.labels,
      annotations: given.annotations,
      ownerReferences: given.owner && [{ ...given.owner, controller: true, apiVersion: 'apps/v1', uid: 'u' }],
      ...meta,
    },
    spec: { hostNetwork: given.hostNetwork, containers: [{ name: 'app' }] },
  });
  const { old, meta } = more as { old?: Written; meta?: object };
  const request = readReview({
    apiVersion: 'admission.k8s.io/v1',
    kind: 'AdmissionReview',
    request: {
      uid: '1',
      kind: { group: '', version: 'v1', kind: 'Pod' },
      operation,
      object: object(written, meta),
      oldObject: old === undefined ? null : object(old),
    },
  });
  return refusalOf(request, isServed);
}

it('there are at least fifty wrong inputs, each another one', () => {
  expect(new Set(WRONG.map((written) => JSON.stringify(written))).size).toBeGreaterThanOrEqual(50);
});

describe('the webhook refuses in the words of the agent', () => {
  it.each(WRONG)('%j', async (written) => {
    const said = await saidByAgent(written);
    expect(said).toMatch(/nodesentry\.io\/|^HOST_NETWORK: |^NO_INSTANCE: /);
    expect(reviewed(written)).toBe(said);
  });
});

describe('the webhook lets through', () => {
  it.each<Written>([
    {},
    { labels: { ...ON, app: 'web' } },
    { annotations: { 'nodesentry.io/intercept': 'disabled' }, hostNetwork: true },
    { annotations: { 'nodesentry.io/explicit-proxy': 'enabled' }, hostNetwork: true },
    { labels: ON, owner: { kind: 'StatefulSet', name: 'payments' } },
    { annotations: { 'nodesentry.io/outbound': 'all', 'nodesentry.io/failure': 'open' } },
  ])('what the agent has nothing to say of: %j', async (written) => {
    expect(reviewed(written)).toBeUndefined();
    const said = await saidByAgent(written);
    expect(said === '' || said === 'NODE').toBe(true);
  });

  const wrong: Written = { annotations: { 'nodesentry.io/failure': 'ajar' } };

  it('a change of a pod that was wrong before, and one that is being deleted', () => {
    expect(reviewed(wrong, { old: wrong }, 'UPDATE')).toBeUndefined();
    expect(reviewed(wrong, { old: {}, meta: { deletionTimestamp: '2026-01-01T00:00:00Z' } }, 'UPDATE')).toBe(
      undefined,
    );
  });

  it('but no change that makes one wrong', () => {
    expect(reviewed(wrong, { old: {} }, 'UPDATE')).toBe(
      'nodesentry.io/failure: expected closed or open, got "ajar"',
    );
  });
});
