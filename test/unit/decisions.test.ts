import { expect, it } from 'vitest';
import type { Link } from '../../src/net/link.js';
import type { Pod, PodUid } from '../../src/pods/pod.js';
import { Decisions } from '../../src/reconcile/decisions.js';
import type { PodLinks } from '../../src/runtimes/pod-links.js';

function link(index: number, name: string, rest: Partial<Link> = {}): Link {
  const base = { kind: 'veth', loopback: false, ethernet: true, master: 0 };
  return { index, name, ...base, peerIndex: undefined, peerNamespaceId: undefined, ...rest };
}

/** Pod n has its veth's host end at ifindex 100 + n; namespace ids are the pods' numbers. */
function world(count: number) {
  const pods = Array.from({ length: count }, (_, n): Pod => {
    return {
      uid: `uid-${n}` as PodUid,
      namespace: 'shop',
      name: `web-${n}`,
      serviceAccount: 'default',
      labels: {},
      annotations: {},
      ips: [`10.66.0.${n + 1}`],
      runtime: 'runc',
      runtimeHandler: '',
      sandboxId: '',
      hostNetwork: false,
      netns: `/run/netns/${n}`,
      sources: ['static'],
    };
  });
  const inside = pods.map((_, n): Link[] => [link(2, 'eth0', { peerIndex: 100 + n, peerNamespaceId: 0 })]);
  const host = new Map(
    pods.map((_, n) => [100 + n, link(100 + n, `veth${n}`, { peerIndex: 2, peerNamespaceId: n })]),
  );
  const gone = new Set<string>();
  const looked: string[] = [];
  /** A stand-in for netlink. */
  const links = {
    hostLink: async (index: number) => host.get(index),
    hostLinkByName: async () => undefined,
    podLinks: async (netns: string) => {
      looked.push(netns);
      if (gone.has(netns)) {
        throw Object.assign(new Error('gone'), { code: 'ENOENT' });
      }
      return inside[Number(netns.split('/').at(-1))] ?? [];
    },
    namespaceId: async (netns: string) => Number(netns.split('/').at(-1)),
    isHost: async () => false,
  };
  const decisions = new Decisions({
    store: { list: () => pods, get: (uid) => pods.find((pod) => pod.uid === uid) },
    links: links as unknown as PodLinks,
    defaults: { enrol: 'all', failure: 'closed' },
    instanceFor: () => ({ name: 'default', index: 0 }),
    log: { error: () => undefined },
  });
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
  expect(decision).toMatchObject({ endpoints: [{ plan: { ifindex: 101 } }, { plan: { ifindex: 300 } }] });
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
