import { describe, expect, it } from 'vitest';
import type { Link } from '../../src/net/link.js';
import type { Pod, PodUid, RuntimeKind } from '../../src/pods/pod.js';
import * as located from '../../src/runtimes/locate.js';
import type { LinkReader } from '../../src/runtimes/location.js';
import { link } from './reconcile-fixture.js';

const NETNS = '/run/netns/web-0';
const NAMESPACE_ID = 3;

const LO = link(1, 'lo', { kind: '', loopback: true, ethernet: false });
const ETH0 = link(2, 'eth0', { peerIndex: 40, peerNamespaceId: 0 });
const HOST_END = link(40, 'veth40', { peerIndex: 2, peerNamespaceId: NAMESPACE_ID });
const BRIDGE = link(7, 'cni0', { kind: 'bridge' });

interface World {
  readonly host: readonly Link[];
  readonly pod: readonly Link[] | Error;
  readonly namespaceId: number | undefined;
  readonly own: boolean;
}

const WORLD: World = { host: [LO, BRIDGE, HOST_END], pod: [LO, ETH0], namespaceId: NAMESPACE_ID, own: false };

function readerOf(world: World): LinkReader {
  return {
    hostLink: async (index) => world.host.find((candidate) => candidate.index === index),
    hostLinkByName: async (name) => world.host.find((candidate) => candidate.name === name),
    podLinks: async () => {
      if (world.pod instanceof Error) {
        throw world.pod;
      }
      return world.pod;
    },
    namespaceId: async () => world.namespaceId,
    isHost: async () => world.own,
  };
}

function podOf(rest: Partial<Pod> = {}): Pod {
  return {
    uid: 'uid' as PodUid,
    namespace: 'shop',
    name: 'web-0',
    serviceAccount: 'default',
    labels: {},
    annotations: {},
    ips: ['10.66.0.3'],
    runtime: 'runc',
    runtimeHandler: '',
    sandboxId: '',
    hostNetwork: false,
    netns: NETNS,
    sources: ['static'],
    ...rest,
  };
}

function locate(world: Partial<World> = {}, pod: Pod = podOf()) {
  return located.locate(pod, readerOf({ ...WORLD, ...world }));
}

function found(link: Link, podInterface: string | undefined = 'eth0') {
  return { kind: 'found', primary: { kind: 'routed', link, podInterface }, more: [], unreachable: [] };
}

/** A pod that only an interface name is known of. */
function named(name: string): Pod {
  const { netns: _, ...rest } = podOf({ interface: name });
  return rest;
}

const unlocated = (): Pod => {
  const { netns: _, ...rest } = podOf();
  return rest;
};

describe.each(['runc', 'runsc', 'rund', 'unknown'] as const)('a pod of %s', (runtime: RuntimeKind) => {
  const pod = podOf({ runtime });

  it('is found at the host end of its veth', async () => {
    expect(await locate({}, pod)).toEqual(found(HOST_END));
  });

  it('is found at a bridge port, with the bridge', async () => {
    const port = { ...HOST_END, master: BRIDGE.index };
    expect(await locate({ host: [LO, BRIDGE, port] }, pod)).toEqual({
      ...found(port),
      primary: { kind: 'bridge', link: port, bridge: BRIDGE, podInterface: 'eth0' },
    });
  });

  it('that uses the host network is refused for good', async () => {
    expect(await locate({}, { ...pod, hostNetwork: true })).toMatchObject({
      code: 'HOST_NETWORK',
      retry: false,
    });
  });
});

describe('what a pod may have besides', () => {
  it("a microVM's tap is skipped, wherever it stands", async () => {
    const tap = link(3, 'tap0_kata', { kind: 'tun' });
    expect(await locate({ pod: [LO, tap, ETH0] })).toEqual(found(HOST_END));
    expect(await locate({ pod: [LO, tap] })).toMatchObject({ code: 'NO_INTERFACE', retry: true });
  });

  it('of a microVM with a macvtap on eth0: that is the guest end', async () => {
    const macvtap = link(3, 'tap0_kata', { kind: 'macvtap', peerIndex: ETH0.index });
    expect(await locate({ pod: [LO, ETH0, macvtap] })).toEqual(found(HOST_END));
  });

  it('eth0 comes before an interface with a lower index, and further veths are found as well', async () => {
    const inside = link(1, 'net1', { peerIndex: 41, peerNamespaceId: 0 });
    const outside = link(41, 'veth41', { peerIndex: 1, peerNamespaceId: NAMESPACE_ID, master: BRIDGE.index });
    expect(await locate({ pod: [LO, inside, ETH0], host: [...WORLD.host, outside] })).toEqual({
      ...found(HOST_END),
      more: [{ kind: 'bridge', link: outside, bridge: BRIDGE, podInterface: 'net1' }],
    });
  });

  it('interfaces by which the pod gets past us are named', async () => {
    const elsewhere = link(4, 'net1', { peerIndex: 41, peerNamespaceId: 5 });
    const macvlan = link(5, 'net2', { kind: 'macvlan', peerNamespaceId: 0, peerIndex: 3 });
    const hardware = link(6, 'net3', { kind: '' });
    expect(await locate({ pod: [LO, ETH0, elsewhere, macvlan, hardware] })).toEqual({
      ...found(HOST_END),
      unreachable: [
        {
          name: 'net1',
          kind: 'veth',
          reason: "the peer of net1 is not in the agent's network namespace",
        },
        {
          name: 'net2',
          kind: 'macvlan',
          reason: 'net2 is a macvlan interface: it has no peer on the host',
        },
        {
          name: 'net3',
          kind: 'physical',
          reason: 'net3 is a physical interface: it has no peer on the host',
        },
      ],
    });
  });

  it('what is built inside the pod is its own affair: containers within it, tunnels, VLANs', async () => {
    const bridge = link(4, 'docker0', { kind: 'bridge' });
    const port = link(5, 'veth1', { peerIndex: 9, peerNamespaceId: 1, master: bridge.index });
    const vlan = link(6, 'eth0.7', { kind: 'vlan', peerIndex: ETH0.index });
    const tunnel = link(7, 'tunl0', { kind: 'ipip', ethernet: false });
    expect(await locate({ pod: [LO, ETH0, bridge, port, vlan, tunnel] })).toEqual(found(HOST_END));
  });

  it('without an eth0 the first interface counts', async () => {
    const first = { ...ETH0, name: 'ens3' };
    expect(await locate({ pod: [LO, first] })).toEqual(found(HOST_END, 'ens3'));
  });
});

describe('the host end is only believed when both ends name each other', () => {
  const stranger = expect.objectContaining({
    kind: 'refused',
    code: 'NO_INTERFACE',
    retry: true,
    reason: "the peer of eth0 (ifindex 40) is not in the agent's network namespace",
  });

  it.each([
    ['it names another interface in return', { host: [{ ...HOST_END, peerIndex: 9 }] }],
    ['it names none', { host: [{ ...HOST_END, peerIndex: undefined }] }],
    ['it leads into another namespace', { host: [{ ...HOST_END, peerNamespaceId: NAMESPACE_ID + 1 }] }],
    ['its peer is in the same namespace', { host: [{ ...HOST_END, peerNamespaceId: undefined }] }],
    ['the namespace has no id here', { namespaceId: undefined }],
    [
      'neither the namespace nor the peer has an id',
      { namespaceId: undefined, host: [{ ...HOST_END, peerNamespaceId: undefined }] },
    ],
    ['it is no veth', { host: [{ ...HOST_END, kind: 'macvlan' }] }],
    ['it is gone', { host: [LO] }],
  ] satisfies [string, Partial<World>][])('not where %s', async (_what, world) => {
    expect(await locate(world)).toEqual(stranger);
  });

  it('an interface with the same ifindex that is not the peer is passed over', async () => {
    // ifindexes repeat between namespaces: eth0's link says 40, and this namespace has a 40 of its own.
    const unrelated = link(40, 'docker0', { kind: 'bridge' });
    expect(await locate({ host: [unrelated] })).toEqual(stranger);
  });
});

describe('refusals', () => {
  it('NO_ADDRESS while no source has told one', async () => {
    expect(await locate({}, podOf({ ips: [] }))).toMatchObject({ code: 'NO_ADDRESS', retry: true });
  });

  it('NETNS_UNKNOWN while neither namespace nor interface is known', async () => {
    expect(await locate({}, unlocated())).toMatchObject({ code: 'NETNS_UNKNOWN', retry: true });
  });

  it('NETNS_GONE where the namespace does not exist, saying which', async () => {
    const gone = Object.assign(new Error('no such file'), { code: 'ENOENT' });
    expect(await locate({ pod: gone })).toMatchObject({
      code: 'NETNS_GONE',
      retry: true,
      reason: `the network namespace ${NETNS} does not exist`,
    });
  });

  it('any other failure is not taken for an answer', async () => {
    const denied = Object.assign(new Error('permission denied'), { code: 'EACCES' });
    await expect(locate({ pod: denied })).rejects.toBe(denied);
  });

  it("HOST_NETWORK where the namespace is the agent's own", async () => {
    expect(await locate({ own: true })).toMatchObject({
      code: 'HOST_NETWORK',
      retry: false,
      reason: `${NETNS} is the agent's own network namespace`,
    });
  });

  it('NO_INTERFACE while the namespace has only a loopback', async () => {
    expect(await locate({ pod: [LO] })).toMatchObject({ code: 'NO_INTERFACE', retry: true });
  });

  it.each(['macvlan', 'ipvlan', ''])(
    'UNSUPPORTED_INTERFACE for a "%s" interface in the pod',
    async (kind) => {
      expect(await locate({ pod: [LO, { ...ETH0, kind }] })).toMatchObject({
        code: 'UNSUPPORTED_INTERFACE',
        retry: false,
        reason: `eth0 in the pod is a ${kind || 'physical'} interface: it has no peer on the host`,
      });
    },
  );

  it('UNSUPPORTED_INTERFACE where the host end is a port of something else than a bridge', async () => {
    const bond = link(8, 'bond0', { kind: 'bond' });
    expect(await locate({ host: [bond, { ...HOST_END, master: 8 }] })).toMatchObject({
      code: 'UNSUPPORTED_INTERFACE',
      reason: 'veth40 is a port of bond0 (bond): only bridges are supported',
    });
    expect(await locate({ host: [{ ...HOST_END, master: 9 }] })).toMatchObject({
      reason: 'veth40 is a port of ifindex 9: only bridges are supported',
    });
  });
});

describe('an interface that a source names outright', () => {
  it('is taken as it stands: a veth or a tap', async () => {
    const at = (link: Link) => ({ kind: 'routed', link, podInterface: undefined });
    expect(await locate({}, named('veth40'))).toEqual({ ...found(HOST_END), primary: at(HOST_END) });
    const tap = link(41, 'tap0', { kind: 'tun' });
    expect(await locate({ host: [tap] }, named('tap0'))).toEqual({ ...found(tap), primary: at(tap) });
  });

  it('is only asked for where no namespace is known', async () => {
    expect(await locate({}, podOf({ interface: 'cni0' }))).toEqual(found(HOST_END));
  });

  it('INTERFACE_GONE where there is none of that name', async () => {
    expect(await locate({}, named('veth9'))).toMatchObject({
      code: 'INTERFACE_GONE',
      retry: true,
      reason: "there is no interface veth9 in the agent's network namespace",
    });
  });

  it.each([
    ['cni0', 'cni0 is a bridge interface: only veth and tap are intercepted'],
    ['lo', 'lo is a physical interface: only veth and tap are intercepted'],
    ['tun0', 'tun0 is a tun interface: only veth and tap are intercepted'],
    ['mac0', 'mac0 is a macvlan interface: only veth and tap are intercepted'],
  ])('UNSUPPORTED_INTERFACE for %s', async (name, reason) => {
    const layer3 = link(42, 'tun0', { kind: 'tun', ethernet: false });
    const host = [...WORLD.host, layer3, link(43, 'mac0', { kind: 'macvlan' })];
    expect(await locate({ host }, named(name))).toMatchObject({
      code: 'UNSUPPORTED_INTERFACE',
      retry: false,
      reason,
    });
  });
});
