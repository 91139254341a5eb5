/** The parts that a node has once: when they are put in place, when repaired, and what is told while they are not. */

import { beforeEach, describe, expect, test, vi } from 'vitest';
import type { AttachResult } from '../../src/kernel/attachment.js';
import type { FamilyOff } from '../../src/kernel/families.js';
import type { Family } from '../../src/net/family.js';
import { NodeState, type NodeStateOptions } from '../../src/reconcile/node-state.js';
import type { RepairKind } from '../../src/reconcile/repairs.js';
import { PROGRAMS, recordingLog } from './reconcile-fixture.js';

const ADDRESSES = new Set(['10.66.0.1', 'fd00::1']);

/** Every step tells that it ran; a test sets what each finds wrong, and which fails. */
class NodeStandIn {
  readonly done: string[] = [];
  readonly wrong: Partial<
    Record<'pins' | 'maps' | 'routes' | 'nftables' | 'ipvs' | 'inbound', readonly string[]>
  > = {};
  readonly failures = new Map<string, Error>();
  readonly recount = vi.fn(async () => undefined);
  readonly asked: { families: readonly Family[]; ours: readonly Family[] }[] = [];
  off: FamilyOff[] = [];
  readonly repairs: [kind: RepairKind, what: string][] = [];
  readonly log = recordingLog();
  lookup: AttachResult = 'kept';
  followed = true;
  followedFor: readonly Family[] = [];
  /** Whether addresses are taken one by one. */
  takesChanges = true;
  readonly ensured = vi.fn<(ips: ReadonlySet<string>) => void>();
  readonly changed = vi.fn<NodeStateOptions['notrack']['change']>(() => this.takesChanges);

  readonly state = new NodeState({
    programs: {
      programs: PROGRAMS,
      ensurePins: () => this.#step('pins', this.wrong.pins),
    },
    tables: {
      refresh: () => this.#step('maps', this.wrong.maps),
      recount: this.recount,
    },
    slots: { ensure: () => [] },
    portSets: [{ ensure: () => this.#step('ports', []) }],
    routes: {
      ensure: async ({ families = [], ours = new Set() }) => {
        this.asked.push({ families, ours: [...ours] });
        return { repaired: this.#step('routes', this.wrong.routes) };
      },
      areFollowed: async (families) => {
        this.#step('followed');
        this.followedFor = families;
        return this.followed;
      },
    },
    notrack: {
      ensure: async (ips) => {
        this.ensured(ips);
        return { repaired: this.#step('nftables', this.wrong.nftables) };
      },
      change: this.changed,
    },
    ipvs: { ensure: async () => this.#step('ipvs', this.wrong.ipvs) },
    inbound: { ensure: async () => this.#step('inbound', this.wrong.inbound) },
    familiesOff: () => this.off,
    lookup: {
      attach: (program) => {
        expect(program).toBe(PROGRAMS.socket_lookup);
        this.#step('lookup');
        return this.lookup;
      },
    },
    settings: { table: 4242, rulePriority: 17 },
    repairs: { note: (kind, what) => this.repairs.push([kind, what]) },
    log: this.log,
  });

  #step(what: string, wrong: readonly string[] = []): string[] {
    this.done.push(what);
    const failure = this.failures.get(what);
    if (failure !== undefined) {
      throw failure;
    }
    return [...wrong];
  }

  /** As on a node that nobody has worked on before, and after somebody has taken everything away. */
  takeEverything(): void {
    Object.assign(this.wrong, {
      pins: ['the pin of flows'],
      maps: ['the row of the last id'],
      routes: ['the rule for IPv4'],
      nftables: ['table inet nodesentry'],
      ipvs: ['IPVS service for IPv4'],
      inbound: ['inbound steering attached'],
    });
    this.lookup = 'attached';
  }

  putEverything(): void {
    Object.assign(this.wrong, { pins: [], maps: [], routes: [], nftables: [], ipvs: [], inbound: [] });
    this.lookup = 'kept';
  }

  putInPlace(): unknown[] {
    return this.log.info.mock.calls.map(([fields, message]) => ({ ...fields, message }));
  }
}

const EVERYTHING = [
  ['pin', 'the pin of flows'],
  ['map', 'the row of the last id'],
  ['policy-route', 'the rule for IPv4'],
  ['nftables', 'table inet nodesentry'],
  ['ipvs', 'IPVS service for IPv4'],
  ['inbound', 'inbound steering attached'],
  ['socket-lookup', 'socket lookup attached'],
] as const;

let node: NodeStandIn;
let state: NodeState;
beforeEach(() => {
  node = new NodeStandIn();
  state = node.state;
});

describe('the parts of a node', () => {
  test('are put in place in their order: a mark is delivered before packets are marked', async () => {
    expect(state.problem()).toBe('the first round has not run yet');
    await state.ensure(ADDRESSES);
    expect(node.done).toEqual([
      'pins',
      'maps',
      'ports',
      'routes',
      'nftables',
      'ipvs',
      'inbound',
      'lookup',
      'followed',
    ]);
    expect(node.ensured.mock.calls).toEqual([[ADDRESSES]]);
    expect(state.problem()).toBeUndefined();
  });

  test('are no repair where they were never there', async () => {
    node.takeEverything();
    await state.ensure(ADDRESSES);
    expect(node.putInPlace()).toEqual(
      EVERYTHING.map(([kind, what]) => ({ kind, what, message: 'put in place' })),
    );
    expect(node.repairs).toEqual([]);
  });

  test('are repaired, each under its kind, when somebody takes them away later', async () => {
    await state.ensure(ADDRESSES);
    node.takeEverything();
    await state.ensure(ADDRESSES);
    expect(node.repairs).toEqual(EVERYTHING);
    expect(node.log.info).not.toHaveBeenCalled();
  });

  test('are no repair before all of them were in place once', async () => {
    node.followed = false;
    await state.ensure(ADDRESSES);
    node.failures.set('nftables', new Error('nft: command not found'));
    await state.ensure(ADDRESSES);
    node.failures.clear();
    node.followed = true;
    node.takeEverything();
    await state.ensure(ADDRESSES);
    expect(node.repairs).toEqual([]);
    await state.ensure(ADDRESSES);
    expect(node.repairs).toEqual(EVERYTHING);
  });

  test('are left alone where nothing is wrong', async () => {
    await state.ensure(ADDRESSES);
    await state.ensure(ADDRESSES);
    expect([node.repairs, node.putInPlace()]).toEqual([[], []]);
  });
});

describe('a routing table that we come to', () => {
  test('may belong to somebody else the first time, and is ours from then on', async () => {
    await state.ensure(ADDRESSES);
    await state.ensure(ADDRESSES);
    await state.ensure(ADDRESSES);
    expect(node.asked.map(({ ours }) => ours)).toEqual([[], [4, 6], [4, 6]]);
  });

  test('is ours although a later step failed the first time', async () => {
    node.failures.set('nftables', new Error('nft: command not found'));
    await state.ensure(ADDRESSES);
    await state.ensure(ADDRESSES);
    expect(node.asked.map(({ ours }) => ours)).toEqual([[], [4, 6]]);
  });

  test('is not ours as long as it is refused', async () => {
    node.failures.set('routes', new Error('table 4242 has a route of somebody else'));
    await state.ensure(ADDRESSES);
    await state.ensure(ADDRESSES);
    expect(node.asked.map(({ ours }) => ours)).toEqual([[], []]);
  });
});

describe('a family that the node does not have', () => {
  const OFF: FamilyOff = { family: 6, reason: 'it is off', everywhere: true, unknown: false };

  test('is asked nothing of, is no problem, and is told and logged once', async () => {
    node.off = [OFF];
    await state.ensure(ADDRESSES);
    node.off = [{ ...OFF }];
    await state.ensure(ADDRESSES);
    expect(node.asked.map(({ families }) => families)).toEqual([[4], [4]]);
    expect(node.followedFor).toEqual([4]);
    expect(state.problem()).toBeUndefined();
    expect(state.familiesOff()).toEqual([OFF]);
    expect(node.ensured.mock.lastCall).toEqual([ADDRESSES]);
    expect(node.log.warn).toHaveBeenCalledTimes(1);
  });

  test('comes, goes and comes back without a repair, and its table is new to us each time', async () => {
    node.off = [OFF];
    await state.ensure(ADDRESSES);
    for (const off of [[], [OFF], []]) {
      node.off = off;
      node.wrong.routes = off.length === 0 ? ['the IPv6 rule'] : [];
      await state.ensure(ADDRESSES);
    }
    expect(node.asked.map(({ ours }) => ours)).toEqual([[], [4], [4, 6], [4]]);
    expect(node.repairs).toEqual([]);
    await state.ensure(ADDRESSES);
    expect(node.repairs).toEqual([['policy-route', 'the IPv6 rule']]);
    expect(state.familiesOff()).toEqual([]);
  });
});

describe('what is wrong with a node', () => {
  test('is told, logged once, and over when it works again', async () => {
    const failure = new Error('nft: command not found');
    node.failures.set('nftables', failure);
    await state.ensure(ADDRESSES);
    await state.ensure(ADDRESSES);
    expect(state.problem()).toBe('nft: command not found');
    const message = 'the node-wide parts of the datapath are not in place';
    expect(node.log.error.mock.calls).toEqual([[{ err: failure }, message]]);
    expect(node.done).not.toContain('lookup');

    node.failures.clear();
    await state.ensure(ADDRESSES);
    expect(state.problem()).toBeUndefined();

    node.failures.set('nftables', failure);
    await state.ensure(ADDRESSES);
    expect(node.log.error).toHaveBeenCalledTimes(2);
  });

  test('is logged anew when it is something else', async () => {
    node.failures.set('nftables', new Error('nft: command not found'));
    await state.ensure(ADDRESSES);
    node.failures.set('pins', new Error('no space left on device'));
    await state.ensure(ADDRESSES);
    expect(state.problem()).toBe('no space left on device');
    expect(node.log.error).toHaveBeenCalledTimes(2);
  });

  test('names table and priority where marked packets go elsewhere', async () => {
    node.followed = false;
    await state.ensure(ADDRESSES);
    expect(state.problem()).toContain('not delivered by table 4242');
    expect(state.problem()).toContain('before priority 17');
    await state.ensure(ADDRESSES);
    expect(node.log.error).toHaveBeenCalledTimes(1);
    node.followed = true;
    await state.ensure(ADDRESSES);
    expect(state.problem()).toBeUndefined();
  });
});

describe('the addresses of pods that come and go', () => {
  beforeEach(async () => {
    await state.ensure(ADDRESSES);
    node.done.length = 0;
    node.ensured.mockClear();
  });

  test('are put in and taken out one by one', async () => {
    await state.addresses(new Set(['fd00::1', '10.66.0.2']));
    await state.addresses(new Set(['fd00::1', '10.66.0.2', '10.66.0.3']));
    expect(node.changed.mock.calls).toEqual([
      [{ add: ['10.66.0.2'], remove: ['10.66.0.1'] }],
      [{ add: ['10.66.0.3'], remove: [] }],
    ]);
    expect(node.done).toEqual([]);
  });

  test('are all put in, with everything looked at, where the change is refused', async () => {
    node.takesChanges = false;
    const addresses = new Set(['10.66.0.2']);
    await state.addresses(addresses);
    expect(node.ensured.mock.calls).toEqual([[addresses]]);
    expect(node.done).toEqual([
      'pins',
      'maps',
      'ports',
      'routes',
      'nftables',
      'ipvs',
      'inbound',
      'lookup',
      'followed',
    ]);

    node.takesChanges = true;
    await state.addresses(addresses);
    expect(node.changed.mock.lastCall).toEqual([{ add: [], remove: [] }]);
  });

  test('are put in by the next change where both ways failed', async () => {
    node.takesChanges = false;
    node.failures.set('nftables', new Error('nft: command not found'));
    await state.addresses(new Set([...ADDRESSES, '10.66.0.2']));
    expect(state.problem()).toBe('nft: command not found');

    node.takesChanges = true;
    await state.addresses(new Set([...ADDRESSES, '10.66.0.2', '10.66.0.3']));
    expect(node.changed.mock.lastCall).toEqual([{ add: ['10.66.0.2', '10.66.0.3'], remove: [] }]);
  });
});

test('the counters, which are the largest map, are looked at in one of ten rounds', async () => {
  const node = new NodeStandIn();
  for (let round = 0; round < 20; round++) {
    await node.state.ensure(new Set());
  }
  expect(node.recount).toHaveBeenCalledTimes(2);
});
