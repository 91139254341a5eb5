import { beforeEach, describe, expect, it } from 'vitest';
import type { Pod, PodUid } from '../../src/pods/pod.js';
import { Decisions, type DecisionsOptions } from '../../src/reconcile/decisions.js';
import { KernelStandIn, LinksStandIn, link, NO_SHAPERS, podNumber } from './reconcile-fixture.js';

function world(count: number, options: Partial<DecisionsOptions> = {}) {
  const pods = Array.from({ length: count }, (_, n) => podNumber(n));
  const links = new LinksStandIn(count);
  const kernel = new KernelStandIn();
  const get = (uid: PodUid) => pods.find((pod) => pod.uid === uid);
  const nextAgent = (changes: Partial<DecisionsOptions> = {}) =>
    new Decisions({
      store: { list: () => pods, get },
      links: links.asPodLinks(),
      ...NO_SHAPERS,
      defaults: { enrol: 'all', failure: 'closed', other: 'pass' },
      instanceFor: () => ({ name: 'default', number: 0, inbound: false }),
      instanceNamed: () => undefined,
      drainOf: () => undefined,
      instanceName: (number) => `number ${number}`,
      tables: kernel.tables,
      authorities: [],
      log: { error: () => undefined },
      ...options,
      ...changes,
    });
  const { inside, host, gone, looked, glimpsed } = links;
  return { decisions: nextAgent(), nextAgent, kernel, pods, get, inside, host, gone, looked, glimpsed };
}

/** As a round puts into the kernel what is decided. */
async function installed({ decisions, kernel }: ReturnType<typeof world>): Promise<void> {
  await decisions.update('all');
  for (const { pod, endpoints } of decisions.toIntercept()) {
    const row = kernel.tables.enrol(pod.uid, endpoints[0].plan.ifindex, true);
    for (const { plan } of endpoints) {
      kernel.tables.write(row, plan);
    }
  }
}

const MACVLAN = link(3, 'net1', { kind: 'macvlan', peerIndex: 9, peerNamespaceId: 0 });

it('an interface that came inside a pod is found, and one that went', async () => {
  const { decisions, pods, inside } = world(1);
  const uid = pods[0]?.uid as PodUid;
  await decisions.update('all');
  expect(await decisions.changedInside()).toEqual([]);
  inside[0]?.push(MACVLAN);
  expect(await decisions.changedInside()).toEqual([uid]);
  await decisions.update([uid]);
  expect(decisions.of(uid)).toMatchObject({ kind: 'intercept', unreachable: [{ name: 'net1' }] });
  inside[0]?.pop();
  expect(await decisions.changedInside()).toEqual([uid]);
  await decisions.update([uid]);
  expect(decisions.of(uid)).toMatchObject({ kind: 'intercept', unreachable: [] });
});

it('ten pods are looked into at a time, all of 25 in three, and those alone in full that have another interface', async () => {
  const { decisions, looked, glimpsed, inside } = world(25);
  await decisions.update('all');
  looked.length = 0;
  const seen = new Set<string>();
  inside[7]?.push(link(3, 'macvlan0', { peerIndex: 400, peerNamespaceId: 0 }));
  for (let look = 0; look < 3; look++) {
    glimpsed.length = 0;
    await decisions.changedInside();
    expect(glimpsed.length).toBeGreaterThanOrEqual(10);
    for (const netns of glimpsed) {
      seen.add(netns);
    }
  }
  expect(seen.size).toBe(25);
  expect(looked).toEqual(['/run/netns/7']);
});

it('a second veth is located as soon as its host end is heard of', async () => {
  const { decisions, pods, inside, host } = world(2);
  await decisions.update('all');
  inside[1]?.push(link(3, 'net1', { peerIndex: 300, peerNamespaceId: 0 }));
  host.set(300, link(300, 'veth300', { peerIndex: 3, peerNamespaceId: 1 }));
  const affected = await decisions.affectedBy(new Set([300]));
  expect(affected).toEqual([pods[1]?.uid]);
  await decisions.update(affected);
  const decision = decisions.of(pods[1]?.uid as PodUid);
  expect(decision).toMatchObject({
    endpoints: [{ plan: { ifindex: 101 } }],
    unreachable: [{ name: 'net1', kind: 'veth', reason: 'no source tells the addresses of net1' }],
  });
});

it('each veth has its own addresses, and one whose addresses nobody tells is left alone', async () => {
  const { decisions, pods, inside, host } = world(1);
  ['net1', 'net2'].forEach((name, n) => {
    inside[0]?.push(link(3 + n, name, { peerIndex: 300 + n, peerNamespaceId: 0 }));
    host.set(300 + n, link(300 + n, `veth${300 + n}`, { peerIndex: 3 + n, peerNamespaceId: 0 }));
  });
  pods[0] = {
    ...podNumber(0),
    ips: ['10.66.0.1', '10.77.0.1'],
    interfaceIps: { net1: ['10.77.0.1', 'fd00:77::1'] },
  };
  await decisions.update('all');
  expect(decisions.of(podNumber(0).uid)).toMatchObject({
    endpoints: [
      { plan: { ifindex: 100, ips: ['10.66.0.1'] } },
      { at: { podInterface: 'net1' }, plan: { ifindex: 300, ips: ['10.77.0.1', 'fd00:77::1'] } },
    ],
    unreachable: [{ name: 'net2', reason: 'no source tells the addresses of net2' }],
  });
});

describe('a pod that is in the kernel, and cannot be placed any more', () => {
  let now: ReturnType<typeof world>;
  let uid: PodUid;
  const AS_IT_WAS = [{ plan: { ifindex: 100, instance: 0, failureOpen: false, ips: ['10.66.0.1'] } }];
  const change = (n: number, fields: Partial<Pod>) => {
    now.pods[n] = { ...(now.pods[n] as Pod), ...fields };
  };
  /** What this agent makes of it, and what one makes of it that starts now. */
  const both = async (changes: Partial<DecisionsOptions> = {}, who = uid) => {
    const next = now.nextAgent(changes);
    await now.decisions.update('all');
    await next.update('all');
    return [now.decisions.of(who), next.of(who)];
  };
  const heldFor = (reason: string | RegExp) => ({
    kind: 'intercept',
    endpoints: AS_IT_WAS,
    held: expect.stringMatching(reason),
  });
  const twice = <T>(one: T) => [
    expect.objectContaining(one as object),
    expect.objectContaining(one as object),
  ];

  beforeEach(async () => {
    now = world(2);
    uid = now.pods[0]?.uid as PodUid;
    await installed(now);
  });

  it('is held while its namespace cannot be entered, and let go when its interface is gone', async () => {
    now.gone.add('/run/netns/0');
    await now.decisions.changedInside();
    for (const decision of await both()) {
      expect(decision).toMatchObject(heldFor('^NETNS_GONE: '));
    }
    now.host.delete(100);
    for (const decision of await both()) {
      expect(decision).toMatchObject({ kind: 'leave', state: 'PENDING' });
    }
  });

  it('is held where its eth0 is a port of a bridge of its own, until it is as before', async () => {
    const [eth0] = now.inside[0] ?? [];
    now.inside[0] = [link(2, 'eth0', { ...eth0, master: 9 }), link(9, 'br0', { kind: 'bridge' })];
    expect(await now.decisions.changedInside()).toEqual([uid]);
    for (const decision of await both()) {
      expect(decision).toMatchObject(heldFor('^NO_INTERFACE: '));
    }
    now.inside[0] = [link(2, 'eth0', { peerIndex: 100, peerNamespaceId: 0 })];
    for (const decision of await both()) {
      expect(decision).toMatchObject({ endpoints: AS_IT_WAS, held: undefined });
    }
  });

  it.each([
    ['no source tells its address', { ips: [] }, 'NO_ADDRESS'],
    ['the runtime leaves it out of an answer', { netns: undefined, ips: [] }, 'NO_ADDRESS'],
    ['no source tells its namespace', { netns: undefined }, 'NETNS_UNKNOWN'],
  ])('is held where %s', async (_, fields, code) => {
    change(0, fields as Partial<Pod>);
    for (const decision of await both()) {
      expect(decision).toMatchObject(heldFor(`^${code}: `));
    }
  });

  it('is held where no instance serves its app, by the policy that its labels name now', async () => {
    const none = { instanceFor: () => undefined };
    now = world(1, {
      ...none,
      instanceFor: (app) => (app === 'web' ? { name: 'web', number: 0, inbound: false } : undefined),
    });
    await installed(now);
    change(0, { labels: { app: 'other', 'nodesentry.io/failure': 'open' } });
    const [first] = AS_IT_WAS;
    for (const decision of await both()) {
      expect(decision).toMatchObject({
        endpoints: [{ plan: { ...first?.plan, failureOpen: true } }],
        instance: 'number 0',
        failure: 'open',
        held: 'NO_INSTANCE: no instance is configured for app other',
      });
    }
  });

  it('keeps its interface where another claims it, and the other is REFUSED', async () => {
    change(1, { netns: '/run/netns/0' });
    for (const decision of await both()) {
      expect(decision).toMatchObject(heldFor('^INTERFACE_SHARED: veth0 is also claimed by default/web-1$'));
    }
    const other = now.pods[1]?.uid as PodUid;
    now.host.delete(101);
    for (const decision of await both({}, other)) {
      expect(decision).toMatchObject({ kind: 'leave', state: 'REFUSED' });
    }
  });

  it('keeps of two interfaces the one that is not found any more, beside the other', async () => {
    now.inside[0]?.push(link(3, 'net1', { peerIndex: 300, peerNamespaceId: 0 }));
    now.host.set(300, link(300, 'veth300', { peerIndex: 3, peerNamespaceId: 0 }));
    await now.decisions.update(await now.decisions.affectedBy(new Set([300])));
    await installed(now);
    now.inside[0]?.shift();
    await now.decisions.changedInside();
    for (const decision of await both()) {
      expect(decision).toMatchObject({
        endpoints: [{ plan: { ifindex: 300 } }, { plan: { ifindex: 100 } }],
        held: expect.stringContaining('veth0 is not found in the pod any more'),
      });
    }
  });

  it('is looked at again whatever link is heard of', async () => {
    change(0, { ips: [] });
    await now.decisions.update('all');
    expect(await now.decisions.affectedBy(new Set([999]))).toEqual([uid]);
  });

  it('is held under the enrolment that it has, whichever of its interfaces the kernel names first', async () => {
    now.host.set(300, link(300, 'veth300', { peerIndex: 3, peerNamespaceId: 0 }));
    const written = now.kernel.endpoints.get(100) as NonNullable<ReturnType<typeof now.kernel.endpoints.get>>;
    now.kernel.endpoints.clear();
    now.kernel.endpoints.set(300, { row: written.row, plan: { ...written.plan, ifindex: 300 } });
    now.kernel.endpoints.set(100, written);
    change(0, { ips: [] });
    for (const decision of await both()) {
      expect(decision).toMatchObject({ endpoints: [{ plan: { ifindex: 100 } }, { plan: { ifindex: 300 } }] });
    }
  });

  it('is let go where a label says so, by a source that may', async () => {
    change(0, { ips: [], labels: { 'nodesentry.io/intercept': 'disabled' } });
    expect(await both()).toEqual(twice({ kind: 'leave', state: 'NOT_ENROLLED' }));
    const [, next] = await both({ authorities: [{ name: 'static' }] });
    expect(next).toMatchObject({ kind: 'leave', state: 'NOT_ENROLLED' });
  });
});

describe('a pod that is deleted by force, while its containers run on', () => {
  const KUBERNETES = {
    authorities: [{ name: 'kubernetes' }],
    defaults: { enrol: 'labelled', failure: 'open', other: 'pass' },
  };
  const LABELS = { 'nodesentry.io/intercept': 'enabled', 'nodesentry.io/failure': 'closed', app: 'web' };
  let now: ReturnType<typeof world>;
  let uid: PodUid;
  const say = (fields: Partial<Pod>) => {
    now.pods[0] = { ...(now.pods[0] as Pod), ...fields };
  };

  beforeEach(async () => {
    now = world(1, KUBERNETES as Partial<DecisionsOptions>);
    uid = now.pods[0]?.uid as PodUid;
    say({ sources: ['cri', 'kubernetes'], labels: LABELS });
    await installed(now);
    say({ sources: ['cri'], labels: { app: 'other' } });
  });

  it('stays as the API server told of it last, also where it is wired anew, and says that it ends', async () => {
    await now.decisions.update('all');
    expect(now.decisions.of(uid)).toMatchObject({
      kind: 'intercept',
      failure: 'closed',
      held: undefined,
      problems: [expect.stringMatching('^terminating: ')],
    });
    now.host.delete(100);
    now.host.set(300, link(300, 'veth300', { peerIndex: 2, peerNamespaceId: 0 }));
    now.inside[0] = [link(2, 'eth0', { peerIndex: 300, peerNamespaceId: 0 })];
    await now.decisions.update('all');
    expect(now.decisions.of(uid)).toMatchObject({
      endpoints: [{ plan: { ifindex: 300, failureOpen: false } }],
    });
  });

  it('is not enrolled by the copy that the runtime has of its labels where the API server said last that it is not', async () => {
    say({ sources: ['cri', 'kubernetes'], labels: {} });
    await now.decisions.update('all');
    say({ sources: ['cri'], labels: LABELS });
    await now.decisions.update('all');
    expect(now.decisions.of(uid)).toMatchObject({ kind: 'leave', state: 'NOT_ENROLLED' });
  });

  it('is held as it is in the kernel by an agent that starts meanwhile, until its interface is gone', async () => {
    const next = now.nextAgent();
    await next.update('all');
    expect(next.of(uid)).toMatchObject({
      endpoints: [{ plan: { ifindex: 100, failureOpen: false } }],
      failure: 'closed',
      held: 'UNCONFIRMED: kubernetes does not tell of this pod',
    });
    now.host.delete(100);
    await next.update('all');
    expect(next.of(uid)).toMatchObject({ kind: 'leave', state: 'NOT_ENROLLED' });
  });

  it('goes by what is left of it where it was the static file that enrolled it, and drops it', async () => {
    for (const sources of [['static', 'cri'], ['cri']] as const) {
      say({ sources, labels: sources.length === 2 ? LABELS : {} });
      await now.decisions.update('all');
    }
    expect(now.decisions.of(uid)).toMatchObject({ kind: 'leave', state: 'NOT_ENROLLED' });
  });

  it('is let go where the API server says so when it is back', async () => {
    say({ sources: ['cri', 'kubernetes'], labels: { app: 'web' } });
    await now.decisions.update('all');
    expect(now.decisions.of(uid)).toMatchObject({ kind: 'leave', state: 'NOT_ENROLLED' });
  });
});

describe('a pod whose rate is limited by an IFB device', () => {
  const limited = { shapers: { look: async () => undefined, of: () => 'bwp0123' } };

  it('is passed on to it behind our program', async () => {
    const { decisions, pods } = world(1, limited);
    await decisions.update('all');
    const decision = decisions.of(pods[0]?.uid as PodUid);
    expect(decision).toMatchObject({
      kind: 'intercept',
      shortfalls: [],
      endpoints: [{ plan: { shaped: true } }],
    });
  });

  it('is told not to be intercepted where the limit comes first', async () => {
    const { decisions, pods } = world(1, { ...limited, comesFirst: false });
    await decisions.update('all');
    expect(decisions.of(pods[0]?.uid as PodUid)).toMatchObject({
      shortfalls: [expect.stringMatching(/bwp0123, the bandwidth plugin.*before Linux 6.6/)],
      endpoints: [{ plan: { shaped: false } }],
    });
  });

  it('is decided on anew when the limit comes, and when it goes', async () => {
    let name: string | undefined;
    const { decisions, pods } = world(1, { shapers: { look: async () => undefined, of: () => name } });
    const uid = pods[0]?.uid as PodUid;
    for (const is of [undefined, 'bwp1', undefined]) {
      name = is;
      await decisions.update('all');
      expect(decisions.of(uid)).toMatchObject({ endpoints: [{ plan: { shaped: is !== undefined } }] });
    }
  });
});

describe('a drained pod', () => {
  function drained() {
    const orders = new Map<PodUid, { readonly to?: string; readonly sinceMs: number }>();
    const instances = new Map([['other', 5]]);
    const bothWays = new Set<string>();
    const made = world(2, {
      drainOf: (uid) => orders.get(uid),
      instanceNamed: (name) => {
        const number = instances.get(name);
        return number === undefined ? undefined : { name, number, inbound: bothWays.has(name) };
      },
    });
    const [one, two] = made.pods.map(({ uid }) => uid) as [PodUid, PodUid];
    return { ...made, orders, instances, bothWays, one, two };
  }

  it('is let alone from then on, and no other is; resumed, it is what it was', async () => {
    const made = drained();
    const { decisions, orders, one, two } = made;
    await installed(made);
    orders.set(one, { sinceMs: Date.UTC(2026, 10, 28) });
    expect(decisions.drainsChanged()).toEqual([one]);
    await decisions.update('all');
    expect(decisions.of(one)).toMatchObject({
      kind: 'leave',
      state: 'DRAINED',
      reason: expect.stringContaining('drained since 2026-11-28T00:00:00.000Z'),
    });
    expect(decisions.of(two)?.kind).toBe('intercept');
    expect(decisions.drainsChanged()).toEqual([]);
    orders.clear();
    expect(decisions.drainsChanged()).toEqual([one]);
    await decisions.update('all');
    expect(decisions.of(one)).toMatchObject({ kind: 'intercept', held: undefined });
  });

  it('goes to another instance, and back to its own with a word where that one goes', async () => {
    const { decisions, orders, instances, bothWays, one } = drained();
    await decisions.update('all');
    orders.set(one, { to: 'other', sinceMs: 1 });
    decisions.drainsChanged();
    await decisions.update('all');
    expect(decisions.of(one)).toMatchObject({
      kind: 'intercept',
      instance: 'other',
      endpoints: [{ plan: { instance: 5 } }],
    });
    bothWays.add('other');
    decisions.instancesChanged();
    await decisions.update('all');
    expect(decisions.of(one)).toMatchObject({
      instance: 'default',
      problems: ['drained to other, which has not the directions of its own: its own instance serves it'],
    });
    bothWays.clear();
    decisions.instancesChanged();
    await decisions.update('all');
    expect(decisions.of(one)).toMatchObject({ instance: 'other', problems: [] });
    instances.clear();
    decisions.instancesChanged();
    await decisions.update('all');
    expect(decisions.of(one)).toMatchObject({
      instance: 'default',
      problems: ['drained to other, which is not configured any more: its own instance serves it'],
    });
  });

  it('is not held where no source confirms it any more, nor by an agent that starts anew', async () => {
    const made = drained();
    const { nextAgent, orders, one } = made;
    await installed(made);
    orders.set(one, { sinceMs: 1 });
    const next = nextAgent({ authorities: [{ name: 'kubernetes' }] });
    await next.update('all');
    expect(next.of(one)).toMatchObject({ kind: 'leave', state: 'DRAINED' });
  });

  it('that cannot be located when it is resumed waits for that, and is not taken for drained', async () => {
    const made = drained();
    const { decisions, orders, gone, one } = made;
    orders.set(one, { sinceMs: 1 });
    await decisions.update('all');
    gone.add(made.pods[0]?.netns as string);
    orders.clear();
    decisions.drainsChanged();
    await decisions.update('all');
    expect(decisions.of(one)).toMatchObject({ kind: 'leave', state: 'PENDING' });
  });
});
