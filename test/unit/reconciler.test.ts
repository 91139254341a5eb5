/** Rounds: who is looked at when, and what is told. Pods are in a real store; kernel, links and canaries are stand-ins. */

import { beforeEach, describe, expect, test, vi } from 'vitest';
import type { FamilyOff } from '../../src/kernel/families.js';
import type { BpfProgram } from '../../src/native/bpf.js';
import { REMEMBERED_MS } from '../../src/pods/gone-pods.js';
import type { Pod, PodUid } from '../../src/pods/pod.js';
import { PodStore } from '../../src/pods/pod-store.js';
import { Proofs } from '../../src/reconcile/proofs.js';
import { Reconciler } from '../../src/reconcile/reconciler.js';
import { UNNAMED_MS } from '../../src/reconcile/removal.js';
import { StartingPods } from '../../src/reconcile/starting-pods.js';
import {
  CanariesStandIn,
  gate,
  identityOf,
  KernelStandIn,
  LinksStandIn,
  link,
  NO_SHAPERS,
  PROGRAMS,
  podNumber,
  recordingLog,
} from './reconcile-fixture.js';

const MANY = 175;

class NodeStandIn {
  /** What was asked of it, with the addresses. */
  readonly asked: [what: 'ensure' | 'addresses', ips: readonly string[]][] = [];
  wrong: string | undefined;
  off: FamilyOff[] = [];
  /** Runs during every look at everything. */
  meanwhile: () => Promise<void> = async () => undefined;

  problem(): string | undefined {
    return this.wrong;
  }

  familiesOff(): readonly FamilyOff[] {
    return this.off;
  }

  async ensure(ips: ReadonlySet<string>): Promise<void> {
    this.asked.push(['ensure', [...ips]]);
    await this.meanwhile();
  }

  async addresses(ips: ReadonlySet<string>): Promise<void> {
    this.asked.push(['addresses', [...ips]]);
  }

  wholeRounds(): number {
    return this.asked.filter(([what]) => what === 'ensure').length;
  }
}

function world(count: number) {
  const links = new LinksStandIn(count);
  const kernel = new KernelStandIn();
  const node = new NodeStandIn();
  const canaries = new CanariesStandIn();
  const log = recordingLog();
  const store = new PodStore();
  const state = { synced: true, nowMs: 1_700_000_000_000 };
  const removeStalePrograms = vi.fn(() => []);
  const nowMs = () => state.nowMs;
  const reconciler = new Reconciler({
    store,
    links: links.asPodLinks(),
    ...NO_SHAPERS,
    bridges: { renew: async () => undefined },
    defaults: { enrol: 'all', failure: 'closed', other: 'pass' },
    instanceFor: () => ({ name: 'default', number: 0, inbound: false }),
    identityOf,
    claimants: () => 1,
    instanceName: () => 'default',
    instanceNamed: () => undefined,
    drainOf: () => undefined,
    authorities: [],
    tables: kernel.tables,
    connections: kernel.connections,
    attachments: kernel.attachments,
    sysctls: kernel.sysctls,
    repairs: kernel,
    proofs: new Proofs(canaries, nowMs),
    programs: { programs: PROGRAMS, removeStalePrograms },
    node,
    synced: () => state.synced,
    starting: new StartingPods(),
    nowMs,
    log,
  });
  const pods = Array.from({ length: count }, (_, n) => podNumber(n));
  const tell = (...told: Pod[]) => store.replaceSource('static', told);
  tell(...pods);
  const stateOf = ({ uid }: Pod) => reconciler.statusOf(uid)?.state;
  return {
    store,
    links,
    kernel,
    node,
    canaries,
    log,
    state,
    removeStalePrograms,
    reconciler,
    pods,
    tell,
    stateOf,
  };
}

type World = ReturnType<typeof world>;
const [WEB, OTHER] = [podNumber(0), podNumber(1)];

let two: World;
beforeEach(() => {
  two = world(2);
});

const held = ({ kernel }: World) => [[...kernel.endpoints.keys()], [...kernel.attached.keys()]];
const BOTH = [
  [100, 101],
  ['egress 100', 'egress 101'],
];

describe('a pod that comes', () => {
  test('is PENDING until its canary has arrived, then INTERCEPTED', async () => {
    const { reconciler, canaries, stateOf } = two;
    const answer = gate();
    canaries.answered = answer.opened;
    expect(stateOf(WEB)).toBeUndefined();
    await reconciler.reconcile(); // does not wait for the answer
    expect(reconciler.statusOf(WEB.uid)).toMatchObject({ state: 'PENDING', reason: 'not proven yet' });
    answer.open();
    await vi.waitFor(() => expect(stateOf(WEB)).toBe('INTERCEPTED'));
    expect(canaries.take()).toEqual([100, 101]);
    expect(reconciler.statuses().map(({ podUid }) => podUid)).toEqual([WEB.uid, OTHER.uid]);
    expect(held(two)).toEqual(BOTH);
  });

  test('alone is looked at alone, without a look at everything', async () => {
    const { reconciler, node, stateOf } = two;
    await reconciler.reconcilePods([OTHER.uid]);
    expect(node.asked).toEqual([['addresses', OTHER.ips]]);
    await vi.waitFor(() => expect(stateOf(OTHER)).toBe('INTERCEPTED'));
    expect(stateOf(WEB)).toBeUndefined();
    expect(held(two)).toEqual([[101], ['egress 101']]);
  });

  test('is proven once, and again where something about it has changed', async () => {
    const { reconciler, canaries, kernel, stateOf } = two;
    await reconciler.reconcile();
    await vi.waitFor(() => expect(stateOf(WEB)).toBe('INTERCEPTED'));
    canaries.take();
    await reconciler.reconcile();
    kernel.attached.delete('egress 100');
    await reconciler.reconcile();
    expect(canaries.take()).toEqual([100]);
    expect(kernel.repairs).toEqual([['attachment', 'the program at veth0 was gone']]);
  });

  test('is not attached while something of the node is missing', async () => {
    const { reconciler, node, kernel, stateOf } = two;
    node.wrong = 'nft: command not found';
    await reconciler.reconcile();
    await reconciler.reconcilePods([OTHER.uid]);
    expect(reconciler.nodeProblem()).toBe('nft: command not found');
    for (const { uid } of [WEB, OTHER]) {
      expect(reconciler.statusOf(uid)).toMatchObject({
        state: 'PENDING',
        reason: node.wrong,
        programmed: false,
      });
    }
    expect([held(two), kernel.rows.size]).toEqual([[[], []], 0]);
    node.wrong = undefined;
    await reconciler.reconcile();
    await vi.waitFor(() => expect(stateOf(WEB)).toBe('INTERCEPTED'));
    expect(held(two)).toEqual(BOTH);
  });

  test('that is attached is kept, repaired and DEGRADED while something of the node is missing', async () => {
    const { reconciler, node, kernel } = two;
    await reconciler.reconcile();
    node.wrong = 'nft: command not found';
    kernel.endpoints.delete(100);
    await reconciler.reconcile();
    expect(reconciler.statusOf(WEB.uid)).toMatchObject({
      state: 'DEGRADED',
      reason: node.wrong,
      programmed: true,
      verified: false,
    });
    expect(held(two)[0]).toContain(100);
  });

  test('that an agent before us attached is DEGRADED as well, and not attached anew', async () => {
    await two.reconciler.reconcile();
    const restarted = world(2);
    restarted.node.wrong = 'nft: command not found';
    const left = two.kernel.endpoints.get(100);
    if (left !== undefined) {
      restarted.kernel.endpoints.set(100, left);
      restarted.kernel.rows.set(WEB.uid, left.row);
    }
    // As after an upgrade: what is attached is the program of the agent before.
    restarted.kernel.attached.set('egress 100', { id: 99 } as unknown as BpfProgram);
    await restarted.reconciler.reconcile();
    expect(restarted.stateOf(WEB)).toBe('DEGRADED');
    expect(restarted.stateOf(OTHER)).toBe('PENDING');
    expect(held(restarted)).toEqual([[100], ['egress 100']]);
  });

  test('with an address of a family that the node has not is told so', async () => {
    const { reconciler, node, tell, stateOf } = two;
    const both = podNumber(0, { ips: ['10.66.0.1', 'fd00::1'] });
    tell(both, OTHER);
    node.off = [{ family: 6, reason: 'it is off', everywhere: true, unknown: false }];
    await reconciler.reconcile();
    await vi.waitFor(() => expect(stateOf(OTHER)).toBe('INTERCEPTED'));
    expect(reconciler.statusOf(OTHER.uid)?.reason).toBeUndefined();
    expect(reconciler.statusOf(both.uid)).toMatchObject({
      state: 'INTERCEPTED',
      reason: "IPv6 is off on this node (it is off): nothing of the pod's gets out by it",
    });
    node.off = [{ family: 6, reason: 'it is off', everywhere: false, unknown: false }];
    await reconciler.reconcile();
    expect(stateOf(OTHER)).toBe('INTERCEPTED');
    expect(reconciler.statusOf(both.uid)).toMatchObject({
      state: 'DEGRADED',
      reason: expect.stringContaining('not intercepted: IPv6'),
    });
  });

  test('does not fail its round where asking for proof does', async () => {
    const { reconciler, canaries, log } = two;
    canaries.failure = new Error('E2BIG');
    await reconciler.reconcile();
    await vi.waitFor(() =>
      expect(log.error.mock.calls).toEqual([[{ err: canaries.failure }, 'asking for proof failed']]),
    );
  });
});

describe('a pod that goes', () => {
  test('is taken out of the kernel in the round that hears of it', async () => {
    const { reconciler, tell, stateOf, node } = two;
    await reconciler.reconcile();
    tell(OTHER);
    await reconciler.reconcilePods([WEB.uid]);
    expect(held(two)).toEqual([[101], ['egress 101']]);
    expect(stateOf(WEB)).toBeUndefined();
    expect(node.asked.at(-1)).toEqual(['addresses', OTHER.ips]);
  });

  test('stays in the kernel while the sources have not told of all pods, and goes then', async () => {
    const { reconciler, tell, state } = two;
    await reconciler.reconcile();
    state.synced = false;
    tell(OTHER);
    await reconciler.reconcilePods([WEB.uid]);
    await reconciler.reconcile();
    expect(held(two)).toEqual(BOTH);
    state.synced = true;
    await reconciler.reconcile();
    expect(held(two)).toEqual([[101], ['egress 101']]);
  });

  test('without a word stays for a while with its addresses, and is in place as before when it is back', async () => {
    const { reconciler, store, stateOf, node, state, kernel } = two;
    const [web, other] = [WEB, OTHER].map((pod): Pod => ({ ...pod, sources: ['cri'] }));
    store.replaceSource('static', []);
    store.replaceSource('cri', [web as Pod, other as Pod]);
    await reconciler.reconcile();
    kernel.take();
    store.replaceSource('cri', [other as Pod]);
    await reconciler.reconcilePods([WEB.uid]);
    await reconciler.reconcile();
    expect(held(two)).toEqual(BOTH);
    expect(stateOf(WEB)).toBeUndefined();
    expect(node.asked.at(-1)).toEqual(['ensure', [...OTHER.ips, ...WEB.ips]]);
    store.replaceSource('cri', [web as Pod, other as Pod]);
    await reconciler.reconcilePods([WEB.uid]);
    expect(kernel.rows.get(WEB.uid)?.generation).toBe(1);
    expect(kernel.repairs).toEqual([]);

    store.replaceSource('cri', [other as Pod]);
    await reconciler.reconcile();
    state.nowMs += UNNAMED_MS;
    await reconciler.reconcile();
    expect(held(two)).toEqual([[101], ['egress 101']]);
    expect(node.asked.at(-1)).toEqual(['addresses', OTHER.ips]);
  });

  test('and is still enrolled is held as DEGRADED, with the reason, and taken out when its interface is gone', async () => {
    const { reconciler, tell, links, node, stateOf } = two;
    await reconciler.reconcile();
    await vi.waitFor(() => expect(stateOf(WEB)).toBe('INTERCEPTED'));
    tell({ ...WEB, ips: [] }, OTHER);
    await reconciler.reconcilePods([WEB.uid]);
    expect(reconciler.statusOf(WEB.uid)).toMatchObject({
      state: 'DEGRADED',
      reason: 'held as it was: NO_ADDRESS: no source has told an IP address of this pod yet',
      programmed: true,
      verified: false,
    });
    expect(held(two)).toEqual(BOTH);
    expect(node.asked.at(-1)).toEqual(['addresses', [...OTHER.ips, ...WEB.ips]]);
    links.host.delete(100);
    await reconciler.linksChanged(new Set([100]));
    expect(held(two)).toEqual([[101], ['egress 101']]);
    expect(stateOf(WEB)).toBe('PENDING');
  });

  test('and comes back at once is put in place anew, and that is no repair', async () => {
    const { reconciler, tell, kernel, state } = two;
    const comesBack = async () => {
      tell(WEB, OTHER);
      await reconciler.reconcilePods([WEB.uid]);
      expect(held(two)[0]).toContain(100);
      expect(kernel.repairs).toEqual([]);
    };
    await reconciler.reconcile();
    tell(OTHER);
    await reconciler.reconcilePods([WEB.uid]);
    await comesBack();

    // The same where its going was noticed before all sources had told of their pods.
    state.synced = false;
    tell(OTHER);
    await reconciler.reconcilePods([WEB.uid]);
    state.synced = true;
    await reconciler.reconcile();
    expect(held(two)[0]).not.toContain(100);
    await comesBack();
  });

  test('is answered for a minute longer, counted from when it went last', async () => {
    const { reconciler, tell, kernel, state } = two;
    await reconciler.reconcile();
    tell(OTHER);
    await reconciler.reconcile();
    state.nowMs += REMEMBERED_MS - 1;
    for (const told of [[WEB, OTHER], [OTHER]]) {
      tell(...told);
      await reconciler.reconcilePods([WEB.uid]);
    }
    state.nowMs += 1;
    await reconciler.reconcile();
    expect([...kernel.rows.keys()]).toEqual([WEB.uid, OTHER.uid]);
    state.nowMs += REMEMBERED_MS;
    await reconciler.reconcile();
    expect([...kernel.rows.keys()]).toEqual([OTHER.uid]);
  });

  test('has its old interface taken out where it has another by now', async () => {
    const { reconciler, links } = two;
    await reconciler.reconcile();
    links.host.delete(100);
    links.host.set(300, link(300, 'veth300', { peerIndex: 2, peerNamespaceId: 0 }));
    links.inside[0] = [link(2, 'eth0', { peerIndex: 300, peerNamespaceId: 0 })];
    await reconciler.linksChanged(new Set([100]));
    expect(links.forgotten).toEqual([100]);
    expect(held(two)).toEqual([
      [101, 300],
      ['egress 101', 'egress 300'],
    ]);
  });
});

describe('what an agent before us left in the kernel', () => {
  const leave = async ({ kernel }: World) => {
    const plan = { ifindex: 555, instance: 0, failureOpen: false, dropOther: false, bridgeIndex: 0, ips: [] };
    kernel.tables.write(kernel.tables.enrol('uid-old' as PodUid, 555, false), plan);
    await kernel.attachments.attachAsync({ role: 'egress', ifindex: 555 }, PROGRAMS.pod_egress);
  };

  test('goes after the first look at everything once all sources have told, and not before', async () => {
    const { reconciler, state } = two;
    await leave(two);
    state.synced = false;
    await reconciler.reconcile();
    expect(held(two)[0]).toContain(555);
    state.synced = true;
    await reconciler.reconcilePods([WEB.uid]);
    expect(held(two)[0]).toContain(555);
    await reconciler.reconcile();
    expect(held(two)).toEqual(BOTH);
  });

  test('keeps its addresses on the node while no source has told of anybody', async () => {
    const { reconciler, tell, kernel, node, state } = two;
    tell();
    await leave(two);
    const endpoint = kernel.endpoints.get(555) as NonNullable<ReturnType<typeof kernel.endpoints.get>>;
    kernel.endpoints.set(555, { ...endpoint, plan: { ...endpoint.plan, ips: ['10.66.9.9'] } });
    state.synced = false;
    await reconciler.reconcile();
    await reconciler.reconcilePods([WEB.uid]);
    expect(node.asked).toEqual([
      ['ensure', ['10.66.9.9']],
      ['addresses', ['10.66.9.9']],
    ]);
  });

  test('stays where a source names it while everything is being looked at', async () => {
    await two.reconciler.reconcile();
    // As after a restart: the pods are in the kernel, and their source has not delivered when the round begins.
    const restarted = world(2);
    restarted.tell();
    for (const [ifindex, endpoint] of two.kernel.endpoints) {
      restarted.kernel.endpoints.set(ifindex, endpoint);
    }
    for (const [key, program] of two.kernel.attached) {
      restarted.kernel.attached.set(key, program);
    }
    restarted.state.synced = false;
    restarted.node.meanwhile = async () => {
      restarted.state.synced = true;
      restarted.tell(WEB, OTHER);
    };
    await restarted.reconciler.reconcile();
    expect(held(restarted)).toEqual(BOTH);
  });

  test('of its programs is removed once, when all pods have ours', async () => {
    const { reconciler, state, removeStalePrograms, kernel } = two;
    state.synced = false;
    await reconciler.reconcile();
    expect(removeStalePrograms).not.toHaveBeenCalled();
    state.synced = true;
    removeStalePrograms.mockImplementationOnce(() => {
      expect(kernel.attached.size).toBe(2);
      return [];
    });
    await reconciler.reconcile();
    await reconciler.reconcile();
    expect(removeStalePrograms).toHaveBeenCalledTimes(1);
  });
});

test('all pods are seen to when a look at everything has ended that began with all sources', async () => {
  const { reconciler, state, node } = two;
  state.synced = false;
  node.meanwhile = async () => {
    state.synced = true;
  };
  await reconciler.reconcile();
  expect(reconciler.caughtUp()).toBe(false);
  const answer = gate();
  node.meanwhile = () => answer.opened;
  const round = reconciler.reconcile();
  expect(reconciler.caughtUp()).toBe(false);
  answer.open();
  await round;
  expect(reconciler.caughtUp()).toBe(true);
});

describe('a look at everything', () => {
  test('follows once, however often it is asked for during another', async () => {
    const { reconciler, node } = two;
    const [begun, rest] = [gate(), gate()];
    node.meanwhile = () => {
      begun.open();
      return rest.opened;
    };
    const first = reconciler.reconcile();
    await begun.opened;
    const more = [reconciler.reconcile(), reconciler.reconcile(), reconciler.reconcile()];
    rest.open();
    await Promise.all([first, ...more]);
    expect(node.wholeRounds()).toBe(2);
    await reconciler.reconcile();
    expect(node.wholeRounds()).toBe(3);
  });

  test('leaves out the pods of which nothing has changed, and writes to none of them', async () => {
    const { reconciler, kernel } = two;
    kernel.tablesVersion = 1;
    await reconciler.reconcile();
    kernel.take();
    await reconciler.reconcile();
    expect(kernel.take()).toEqual([]);
  });

  test.each<[what: string, change: (kernel: World['kernel']) => void]>([
    ['program has gone', ({ attached }) => attached.delete('egress 101')],
    ['sysctl is another', ({ sysctlsWrong }) => sysctlsWrong.add(101)],
  ])('puts right at once the one pod whose %s', async (_, change) => {
    const { reconciler, kernel } = two;
    kernel.tablesVersion = 1;
    await reconciler.reconcile();
    kernel.take();
    change(kernel);
    await reconciler.reconcile();
    expect(kernel.take()).toEqual(expect.arrayContaining(['write 101', 'attach egress 101']));
    expect(kernel.repairs).toHaveLength(1);
    expect(held(two)).toEqual(BOTH);
  });

  test('looks at every pod again where the tables are others', async () => {
    const { reconciler, kernel } = two;
    kernel.tablesVersion = 1;
    await reconciler.reconcile();
    kernel.endpoints.delete(100);
    kernel.tablesVersion = 2;
    await reconciler.reconcile();
    expect(kernel.endpoints.has(100)).toBe(true);
    expect(kernel.repairs).toEqual([['map', 'the endpoint was missing']]);
  });

  test('looks at all of them in full every tenth time, whatever is told of changes', async () => {
    const { reconciler, kernel } = two;
    kernel.tablesVersion = 1;
    await reconciler.reconcile();
    kernel.endpoints.delete(100);
    for (let looks = 1; looks < 10; looks++) {
      await reconciler.reconcile();
    }
    expect(kernel.endpoints.has(100)).toBe(false);
    await reconciler.reconcile();
    expect(kernel.endpoints.has(100)).toBe(true);
  });

  test('that fails is told to who asked, and the next one is made', async () => {
    const { reconciler, node } = two;
    node.meanwhile = () => Promise.reject(new Error('EIO'));
    await expect(reconciler.reconcile()).rejects.toThrow('EIO');
    node.meanwhile = async () => undefined;
    await reconciler.reconcile();
    expect(held(two)).toEqual(BOTH);
  });

  test('over many pods lets one that starts meanwhile have its turn in between', async () => {
    const many = world(MANY);
    const { reconciler, kernel, pods, tell, links } = many;
    const late = podNumber(MANY);
    const written = () => [...kernel.endpoints.keys()];
    links.inside.push([link(2, 'eth0', { peerIndex: 900, peerNamespaceId: 0 })]);
    links.host.set(900, link(900, 'veth900', { peerIndex: 2, peerNamespaceId: MANY }));
    const stop = reconciler.onStatus((uid) => {
      if (uid === pods[0]?.uid) {
        stop();
        tell(...pods, late);
        void reconciler.reconcilePods([late.uid]);
      }
    });
    await reconciler.reconcile();
    expect(written()).toHaveLength(MANY + 1);
    expect(written().indexOf(900)).toBe(50);
  });

  test('is made after the few pods that are due already', async () => {
    const { reconciler, node } = two;
    const few = reconciler.reconcilePods([OTHER.uid]);
    await Promise.all([few, reconciler.reconcile()]);
    expect(node.asked.map(([what]) => what)).toEqual(['addresses', 'ensure']);
  });
});

describe('who watches', () => {
  test('is told of every pod whose status may be another, until it ends', async () => {
    const { reconciler, tell, stateOf } = two;
    const seen: [PodUid, string | undefined][] = [];
    const stop = reconciler.onStatus((uid) => seen.push([uid, reconciler.statusOf(uid)?.state]));
    await reconciler.reconcilePods([WEB.uid]);
    await vi.waitFor(() => expect(stateOf(WEB)).toBe('INTERCEPTED'));
    tell(OTHER);
    await reconciler.reconcilePods([WEB.uid]);
    expect(seen).toEqual([
      [WEB.uid, 'PENDING'],
      [WEB.uid, 'INTERCEPTED'],
      [WEB.uid, undefined],
    ]);
    stop();
    await reconciler.reconcile();
    expect(seen).toHaveLength(3);
  });

  test('reads of a state in the log when it is another, as a warning where something is wrong', async () => {
    const { reconciler, canaries, log, stateOf, state } = two;
    await reconciler.reconcilePods([WEB.uid]);
    await vi.waitFor(() => expect(stateOf(WEB)).toBe('INTERCEPTED'));
    await reconciler.reconcilePods([WEB.uid]);
    const toldBy = (calls: readonly (readonly [object, string])[]) =>
      calls.filter(([, message]) => message === 'pod state').map(([fields]) => fields);
    const pod = 'default/web-0';
    expect(toldBy(log.info.mock.calls)).toMatchObject([
      { pod, state: 'PENDING' },
      { pod, state: 'INTERCEPTED' },
    ]);
    canaries.answer = { kind: 'unproven', reason: 'something takes packets first' };
    state.nowMs += 1_000;
    await reconciler.prove();
    expect(toldBy(log.warn.mock.calls)).toMatchObject([
      { pod, state: 'DEGRADED', reason: 'something takes packets first' },
    ]);
  });
});

test('a pod that is proven by our program alone is DEGRADED from the start, and says so', async () => {
  const { reconciler, canaries, stateOf } = two;
  const reason = 'verified: program only: no source tells its network namespace';
  canaries.answer = { kind: 'program only', reason };
  await reconciler.reconcile();
  await vi.waitFor(() => expect(stateOf(WEB)).toBe('DEGRADED'));
  expect(reconciler.statusOf(WEB.uid)).toMatchObject({ programmed: true, verified: false, reason });
});

test('an interface that came inside a pod is found by looking inside, one look at a time', async () => {
  const { reconciler, links, stateOf } = two;
  await reconciler.reconcile();
  links.looked.length = 0;
  links.inside[1]?.push(link(3, 'net1', { kind: 'macvlan', peerIndex: 9, peerNamespaceId: 0 }));
  await Promise.all([reconciler.lookInside(), reconciler.lookInside()]);
  // The one that has another interface now, and once more in its round.
  expect(links.looked).toEqual(['/run/netns/1', '/run/netns/1']);
  expect(stateOf(OTHER)).toBe('DEGRADED');
  links.inside[1]?.pop();
  await reconciler.lookInside();
  await vi.waitFor(() => expect(stateOf(OTHER)).toBe('INTERCEPTED'));
});
