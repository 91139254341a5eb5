import { expect, it } from 'vitest';
import type { PodUid } from '../../src/pods/pod.js';
import { Decisions } from '../../src/reconcile/decisions.js';
import { LinksStandIn, link, podNumber } from './reconcile-fixture.js';

function world(count: number) {
  const pods = Array.from({ length: count }, (_, n) => podNumber(n));
  const links = new LinksStandIn(count);
  const decisions = new Decisions({
    store: { list: () => pods, get: (uid) => pods.find((pod) => pod.uid === uid) },
    links: links.asPodLinks(),
    defaults: { enrol: 'all', failure: 'closed', other: 'pass' },
    instanceFor: () => ({ name: 'default', number: 0 }),
    log: { error: () => undefined },
  });
  const { inside, host, gone, looked } = links;
  return { decisions, pods, inside, host, gone, looked };
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

it('ten pods are looked into at a time, and all of 25 in three', async () => {
  const { decisions, looked } = world(25);
  await decisions.update('all');
  const seen = new Set<string>();
  for (let look = 0; look < 3; look++) {
    looked.length = 0;
    await decisions.changedInside();
    expect(looked).toHaveLength(10);
    for (const netns of looked) {
      seen.add(netns);
    }
  }
  expect(seen.size).toBe(25);
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

it('a pod whose namespace cannot be entered any more stays intercepted while its interface is there', async () => {
  const { decisions, pods, gone, host } = world(1);
  const uid = pods[0]?.uid as PodUid;
  await decisions.update('all');
  gone.add('/run/netns/0');
  await decisions.update(await decisions.changedInside());
  expect(decisions.of(uid)).toMatchObject({ kind: 'intercept' });
  host.delete(100);
  await decisions.update('all');
  expect(decisions.of(uid)).toMatchObject({ kind: 'leave', state: 'PENDING' });
});
