/** What is taken out of the kernel when pods go, and what is left alone. The kernel is a stand-in. */

import { beforeEach, describe, expect, test } from 'vitest';
import { REMEMBERED_MS } from '../../src/pods/gone-pods.js';
import type { PodUid } from '../../src/pods/pod.js';
import { PodStore } from '../../src/pods/pod-store.js';
import type { InterceptDecision } from '../../src/reconcile/decision.js';
import type { PlannedEndpoint } from '../../src/reconcile/planned-endpoint.js';
import { Removal, UNNAMED_MS } from '../../src/reconcile/removal.js';
import {
  bridged,
  decision,
  KernelStandIn,
  kernelError,
  LinksStandIn,
  link,
  PROGRAMS,
  podNumber,
  recordingLog,
  routed,
} from './reconcile-fixture.js';

const BRIDGE = link(7, 'cni0', { kind: 'bridge' });
const OTHER_BRIDGE = link(8, 'cni1', { kind: 'bridge' });

let kernel: KernelStandIn;
let store: PodStore;
let log: ReturnType<typeof recordingLog>;
let nowMs: number;
/** Interfaces that are not asked about any more. */
let unasked: number[];
let links: LinksStandIn;
let removal: Removal;

beforeEach(() => {
  kernel = new KernelStandIn();
  store = new PodStore();
  log = recordingLog();
  nowMs = 1_700_000_000_000;
  unasked = [];
  const { tables, attachments, sysctls } = kernel;
  const proofs = { removeInterface: (ifindex: number) => unasked.push(ifindex) };
  links = new LinksStandIn(0);
  const { connections } = kernel;
  const parts = { store, tables, attachments, sysctls, proofs, log, connections, links: links.asPodLinks() };
  removal = new Removal({ ...parts, nowMs: () => nowMs });
});

/** As an agent leaves a pod in the kernel. */
async function installed(wanted: InterceptDecision): Promise<InterceptDecision> {
  const { tables, attachments } = kernel;
  const row = tables.enrol(wanted.pod.uid, wanted.endpoints[0].plan.ifindex, false);
  for (const { at, plan } of wanted.endpoints) {
    tables.write(row, plan);
    await attachments.attachAsync({ role: 'egress', ifindex: plan.ifindex }, PROGRAMS.pod_egress);
    if (at.kind === 'bridge') {
      await attachments.attachAsync({ role: 'steer', ifindex: at.bridge.index }, PROGRAMS.bridge_steer);
    }
  }
  kernel.take();
  return wanted;
}

const held = () => ({ endpoints: [...kernel.endpoints.keys()], attached: [...kernel.attached.keys()] });
const NOTHING = { endpoints: [], attached: [] };

describe('the endpoints of a pod that goes', () => {
  const gone: readonly PlannedEndpoint[] = [routed(100), routed(200)];

  test('go program first, for it reads the tables', async () => {
    await installed(decision(0, routed(100), routed(200)));
    removal.removeEndpoints(gone, []);
    expect(kernel.take()).toEqual([
      'detach egress 100',
      'restore 100',
      'remove 100',
      'detach egress 200',
      'restore 200',
      'remove 200',
    ]);
    expect(held()).toEqual(NOTHING);
    expect(unasked).toEqual([100, 200]);
  });

  test('stay where another pod has the interface, or its number, by now', async () => {
    await installed(decision(0, routed(100), routed(200)));
    removal.removeEndpoints(gone, [decision(1, routed(100))]);
    expect(held()).toEqual({ endpoints: [100], attached: ['egress 100'] });
    expect(unasked).toEqual([200]);
  });

  test('go all the same where a program cannot be detached, and that is a warning', async () => {
    await installed(decision(0, routed(100), routed(200)));
    const refused = kernelError('EBUSY', 16);
    kernel.failures.set('detach egress 100', refused);
    removal.removeEndpoints(gone, []);
    expect(log.warn.mock.calls).toEqual([
      [{ role: 'egress', ifindex: 100, err: refused }, 'the program could not be detached'],
    ]);
    expect(held()).toEqual({ endpoints: [], attached: ['egress 100'] });
    expect(kernel.take()).toEqual(expect.arrayContaining(['restore 100', 'restore 200']));
  });

  test('go all the same where a sysctl cannot be restored, and that is a warning', async () => {
    await installed(decision(0, routed(100), routed(200)));
    const refused = kernelError('EROFS', 30);
    kernel.failures.set('restore 100', refused);
    removal.removeEndpoints(gone, []);
    expect(log.warn.mock.calls).toEqual([
      [{ role: 'egress', ifindex: 100, err: refused }, 'the sysctl of the interface could not be restored'],
    ]);
    expect(held()).toEqual(NOTHING);
  });

  test('leave the row by which flows are answered for', async () => {
    const { pod } = await installed(decision(0, routed(100)));
    removal.removeEndpoints([routed(100)], []);
    expect([...kernel.rows.keys()]).toEqual([pod.uid]);
  });
});

describe('what the kernel holds for nobody', () => {
  test('goes, all programs before any table, and what is wanted stays', async () => {
    const wanted = await installed(decision(0, bridged(100, BRIDGE)));
    await installed(decision(1, bridged(200, OTHER_BRIDGE)));
    await installed(decision(2, routed(300)));
    removal.removeUnwanted([wanted]);
    expect(kernel.take()).toEqual([
      'detach egress 200',
      'restore 200',
      'detach steer 8',
      'restore 8',
      'detach egress 300',
      'restore 300',
      'remove 200',
      'remove 300',
    ]);
    expect(held()).toEqual({ endpoints: [100], attached: ['egress 100', 'steer 7'] });
  });

  test('goes from a bridge or an interface that the other kind of program is wanted at', async () => {
    await installed(decision(0, routed(7)));
    await installed(decision(1, bridged(100, link(100, 'odd', { kind: 'bridge' }))));
    removal.removeUnwanted([decision(2, bridged(100, BRIDGE))]);
    expect(held()).toEqual({ endpoints: [100], attached: ['egress 100'] });
  });

  test('goes with all others where one program cannot be detached', async () => {
    await installed(decision(0, routed(100), routed(200)));
    kernel.failures.set('detach egress 100', kernelError('EBUSY', 16));
    removal.removeUnwanted([]);
    expect(log.warn).toHaveBeenCalledTimes(1);
    expect(held()).toEqual({ endpoints: [], attached: ['egress 100'] });
    kernel.failures.clear();
    removal.removeUnwanted([]);
    expect(held()).toEqual(NOTHING);
  });

  test('is nothing where everything is wanted', async () => {
    const wanted = [await installed(decision(0, routed(100))), await installed(decision(1, routed(101)))];
    removal.removeUnwanted(wanted);
    expect(kernel.take()).toEqual([]);
  });
});

describe('what the kernel holds of a pod that no source names', () => {
  let web: PodUid;
  const look = async (ms = 0) => {
    nowMs += ms;
    removal.removeUnwanted([], await removal.kept());
    return held();
  };
  const ALL = { endpoints: [100], attached: ['egress 100', 'steer 7'] };

  beforeEach(async () => {
    web = (await installed(decision(0, bridged(100, BRIDGE)))).pod.uid;
    links.host.set(100, link(100, 'veth100'));
  });

  test('stays for a while, the program of its bridge as well', async () => {
    expect(await look()).toEqual(ALL);
    expect(await look(UNNAMED_MS - 1)).toEqual(ALL);
    expect(await look(1)).toEqual(NOTHING);
  });

  test('goes at once where its interface is gone', async () => {
    links.host.delete(100);
    expect(await look()).toEqual(NOTHING);
  });

  test('goes at once where it was dropped explicitly, unless it came back', async () => {
    removal.drop(web);
    removal.remember(web);
    expect(await look()).toEqual(ALL);
    removal.drop(web);
    expect(await look()).toEqual(NOTHING);
  });

  test('goes at once where a source names it, and it is not wanted', async () => {
    store.replaceSource('static', [podNumber(0)]);
    expect(await look()).toEqual(NOTHING);
  });
});

describe('the row of a pod', () => {
  let web: PodUid;
  const rows = () => [...kernel.rows.keys()];
  const pass = (ms: number) => {
    nowMs += ms;
    removal.forgetGone();
  };

  beforeEach(async () => {
    web = (await installed(decision(0, routed(100)))).pod.uid;
  });

  test('is forgotten when no source has known it for a minute, and not before', () => {
    pass(0);
    pass(REMEMBERED_MS - 1);
    expect(rows()).toEqual([web]);
    pass(1);
    expect(rows()).toEqual([]);
  });

  test('that an agent before us left is given its minute from when we first look', () => {
    pass(10 * REMEMBERED_MS);
    expect(rows()).toEqual([web]);
  });

  test('stays as long as a source knows the pod', () => {
    store.replaceSource('static', [podNumber(0)]);
    pass(0);
    pass(2 * REMEMBERED_MS);
    expect(rows()).toEqual([web]);
  });

  test('begins its minute anew where the pod came back in between', () => {
    pass(0);
    store.replaceSource('static', [podNumber(0)]);
    pass(REMEMBERED_MS / 2);
    store.replaceSource('static', []);
    pass(REMEMBERED_MS / 2);
    expect(rows()).toEqual([web]);
    pass(REMEMBERED_MS);
    expect(rows()).toEqual([]);
  });

  test('begins its minute anew where it came and went between two looks', () => {
    pass(0);
    removal.remember(web);
    pass(REMEMBERED_MS);
    expect(rows()).toEqual([web]);
  });

  test('goes alone: that of a pod which is there stays', async () => {
    const other = await installed(decision(1, routed(101)));
    store.replaceSource('static', [other.pod]);
    pass(0);
    pass(REMEMBERED_MS);
    expect(rows()).toEqual([other.pod.uid]);
  });
});
